"""Files of a data set on the Hub: fetched when they are touched, and refusals in words."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from datasets.exceptions import DatasetNotFoundError
from filelock import FileLock
from huggingface_hub import HfFileSystem, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from meco_timm.common import UserError, get_logger
from meco_timm.recipe import fingerprint

logger = get_logger(__name__)

URL = re.compile(r"hf://datasets/([^@]+)@([^/]+)/(.+)")


class Place(NamedTuple):
    """Of a file in a data set's repository."""

    repo: str
    revision: str
    path: str


def place_of(location: str) -> Place | None:
    """Where on the Hub; None for a file of this machine."""
    match = URL.fullmatch(location)
    return Place(*match.groups()) if match else None


def local(location: str) -> str:
    """The path of a file, which is fetched first if it lies on the Hub: once per machine, whoever asks.

    Raises:
        OSError: it cannot be had.
    """
    if (place := place_of(location)) is None:
        return location
    return hf_hub_download(place.repo, place.path, repo_type="dataset", revision=place.revision)


def fetch(locations: list[str]) -> None:
    """Have all of them, which are of one data set, on this machine.

    Raises:
        OSError: one cannot be had.
    """
    places = [place for location in locations if (place := place_of(location))]
    missing = [place.path for place in places if not _is_here(place)]
    if missing:
        repo, revision, _ = places[0]
        logger.info("data    %s: %d tar(s), which have no index, are fetched before the start", repo, len(missing))
        snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=missing)


def _is_here(place: Place) -> bool:
    found = try_to_load_from_cache(place.repo, place.path, revision=place.revision, repo_type="dataset")
    return isinstance(found, str)


def opened(location: str) -> IO[bytes]:
    """A file for reading; of one on the Hub comes what is read and, without a cache, no more."""
    if place_of(location):
        return cast(IO[bytes], HfFileSystem().open(location, cache_type="none"))
    return open(location, "rb")


def stamp(location: str) -> list[Any]:
    """What changes when the file does, without reading it: its name, bytes, and on the Hub the digest there."""
    if (place := place_of(location)) is None:
        return [Path(location).name, os.path.getsize(location)]
    info = HfFileSystem().info(location)
    return [Path(place.path).name, info["size"], (info.get("lfs") or {}).get("sha256") or info.get("blob_id")]


def remembered(location: str, what: str, find: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The result of `find()`, cached on disk beside the Hub's cache by file and stamp: a changed file is read again."""
    now = stamp(location) if place_of(location) else [*stamp(location), os.stat(location).st_mtime_ns]
    folder = Path(constants.HF_HOME) / "meco_timm"
    file = folder / f"{fingerprint([os.path.abspath(location), what])}-{fingerprint(now)}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_suffix(".lock")).acquire()
    except OSError:  # a cache that cannot be written is none
        return find()
    with lock:
        if file.exists():
            with np.load(file) as arrays:
                return dict(arrays)
        found = find()
        _keep(file, found)
        return found


def _keep(file: Path, arrays: dict[str, np.ndarray]) -> None:
    beside = file.with_suffix(".tmp.npz")
    try:
        np.savez(beside, **arrays)  # type: ignore[arg-type]
        beside.replace(file)
    except OSError:  # a full disk costs finding it again
        beside.unlink(missing_ok=True)


def refusal(error: BaseException | None, source: str) -> str | None:
    """What the Hub's refusal means and how to mend it; None where this is something else."""
    page, token = f"{constants.ENDPOINT}/datasets/{source}", "log in with `hf auth login` (or set HF_TOKEN)"
    gated = f"{source} is gated on the Hub: {token}, and ask for access at {page}."
    missing = f"the Hub has no data set {source}, or it is private: look at {page}, or {token}."
    while error is not None:
        if isinstance(error, DatasetNotFoundError):
            return gated if "gated" in str(error) else missing
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, GatedRepoError):
            return gated
        if isinstance(error, RepositoryNotFoundError):
            return missing
        if isinstance(error, HfHubHTTPError) and status in (401, 403):
            return f"the Hub refuses {source} (HTTP {status}): {token}, and ask for access at {page}."
        if isinstance(error, LocalEntryNotFoundError):
            return f"the Hub cannot be reached for {source}; the same command goes on once it can."
        error = error.__cause__ or error.__context__
    return None


def unreadable(error: Exception, location: str) -> UserError:
    """A shard that cannot be read or fetched."""
    place = place_of(location)
    reason = refusal(error, place.repo) if place else None
    return UserError(f"data.source: {location}: {reason or f'the shard cannot be read: {error}'}")
