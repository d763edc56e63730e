"""Files of a data set, on this machine or on the Hub: fetched when they are first read, and refusals in words."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
from datasets.exceptions import DatasetNotFoundError
from filelock import FileLock
from huggingface_hub import HfFileSystem, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from pyarrow import feather

from meco_timm.common import UserError, get_logger
from meco_timm.recipe import fingerprint

logger = get_logger(__name__)

URL = re.compile(r"hf://datasets/([^@]+)@([^/]+)/(.+)")


class HubFile(NamedTuple):
    """A file in a data set's repository."""

    repo: str
    revision: str
    path: str


def hub_file(location: str) -> HubFile | None:
    """Where on the Hub a URL of `datasets` leads; None for a file of this machine."""
    match = URL.fullmatch(location)
    return HubFile(*match.groups()) if match else None


def local(location: str) -> str:
    """The path of a file, which is fetched first if it lies on the Hub: once per machine, whoever asks.

    Raises:
        OSError: it cannot be fetched.
    """
    if (file := hub_file(location)) is None:
        return location
    return hf_hub_download(file.repo, file.path, repo_type="dataset", revision=file.revision)


def fetch(locations: list[str]) -> None:
    """Fetch all files, which are of one data set, that are not on this machine.

    Raises:
        OSError: one cannot be fetched.
    """
    files = [file for location in locations if (file := hub_file(location))]
    if not files:
        return
    repo, revision = files[0][:2]
    known = {file.path: try_to_load_from_cache(repo, file.path, None, revision, "dataset") for file in files}
    missing = [path for path, found in known.items() if not isinstance(found, str)]
    if missing:
        logger.info("data    %s: %d tar(s), which have no index, are fetched before the start", repo, len(missing))
        snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=missing)


def open_file(location: str) -> IO[bytes]:
    """Open a file for reading; of one on the Hub only what is read is fetched."""
    if hub_file(location):
        return cast(IO[bytes], HfFileSystem().open(location, cache_type="none"))
    return open(location, "rb")


def stamp(location: str) -> list[Any]:
    """What changes when the file does, without reading it: its name, bytes, and on the Hub the digest there."""
    if (file := hub_file(location)) is None:
        return [Path(location).name, os.path.getsize(location)]
    info = HfFileSystem().info(location)
    return [Path(file.path).name, info["size"], (info.get("lfs") or {}).get("sha256") or info.get("blob_id")]


def cached_table(location: str, what: str, find: Callable[[], pa.Table]) -> pa.Table:
    """The result of `find()`, cached on disk beside the Hub's cache by file and stamp: a changed file is read again."""
    now = stamp(location) if hub_file(location) else [*stamp(location), os.stat(location).st_mtime_ns]
    folder = Path(constants.HF_HOME) / "meco_timm"
    file = folder / f"{fingerprint([os.path.abspath(location), what])}-{fingerprint(now)}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_suffix(".lock")).acquire()
    except OSError:  # a cache that cannot be written is none
        return find()
    with lock:
        if file.exists():
            return feather.read_table(file, memory_map=False)
        found = find()
        beside = file.with_suffix(".tmp")
        try:
            feather.write_feather(found, str(beside))
            beside.replace(file)
        except OSError:  # a full disk costs finding it again
            beside.unlink(missing_ok=True)
        return found


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
    """The error for a shard that cannot be read or fetched."""
    file = hub_file(location)
    reason = refusal(error, file.repo) if file else None
    return UserError(f"data.source: {location}: {reason or f'the shard cannot be read: {error}'}")
