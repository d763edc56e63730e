"""The cache: training and validation images, decoded once, where they need little memory (`data.cache`).

It changes no pixel and no view, only the time that they take. So it may be there in one process of a run and not in the
next, and stores and checkpoints stay valid.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock
from PIL import Image
from torch.utils.data import Dataset

from meco_timm.common import ProgressBar, UserError, get_logger
from meco_timm.data.batched_views import BatchedView
from meco_timm.data.decoding import decode
from meco_timm.data.images import Images, collate
from meco_timm.data.loading import DataSource, in_parts
from meco_timm.data.pixels import Pixels, lines_of, write_pixels
from meco_timm.data.stored import DatasetShard, Stored, StoredImages, content_of
from meco_timm.data.views import numbered
from meco_timm.recipe import Data, fingerprint

logger = get_logger(__name__)

SHARE = 0.1  # of free memory that `auto` takes
SAMPLE = 256  # images whose sizes are read to predict that of all
GREY = {"1", "L", "I", "I;16", "I;16B", "LA"}  # Pillow's modes
CHECKED = 8  # images on which the batched views are compared with timm's
PART = 1000  # images that are read at once


class CachePlan(NamedTuple):
    """bytes: predicted. used: whether the images are kept. why: the reason, where not."""

    bytes: int
    used: bool
    why: str = ""

    def __str__(self) -> str:
        """The line of a plan."""
        if self.used:
            return f"cache   training and validation images are decoded once: {self.bytes / 2**20:,.1f} MiB of memory"
        return f"cache   none, images are decoded each time: {self.why}"


def plan_cache(data: DataSource, settings: Data) -> CachePlan:
    """Whether the images are decoded once, and what that takes.

    Raises:
        UserError: `data.cache` or `data.augment_on` ask for what is not possible.
    """
    plan = _plan(data, settings)
    if settings.augment_on == "device":
        if not plan.used:
            raise UserError(
                f"data.augment_on: device works on cached images, and there are none: {plan.why}. Write cache: memory, "
                "or augment_on: auto."
            )
        if BatchedView.of(data.train.transform) is None:
            raise UserError(
                "data.augment_on: device knows random crops, resized with bilinear or bicubic, and flips; "
                "data.augmentation has more. Write augment_on: auto."
            )
    return plan


def _plan(data: DataSource, settings: Data) -> CachePlan:
    if settings.cache == "none":
        return CachePlan(0, False, "data.cache is none")
    free = psutil.virtual_memory().available
    stored = data.train.split.parquet_bytes  # at least so many decoded; nothing is read, or fetched, to predict more
    size = stored if settings.cache == "auto" and stored > SHARE * free else _predicted(data, settings)
    if settings.cache == "memory":
        if size > free:
            raise UserError(
                f"data.cache: all images are {size / 2**30:.1f} GiB when decoded, and {free / 2**30:.1f} GiB of memory "
                "are free. Write cache: auto."
            )
        return CachePlan(size, True)
    return CachePlan(size, size <= SHARE * free, f"{size / 2**30:,.1f} GiB are more than a tenth of the free memory")


def _predicted(data: DataSource, settings: Data) -> int:
    """Bytes of the decoded images, from the headers of some of them, and of the views of the validation images."""
    rows = _rows(data)
    sample = rows[np.linspace(0, len(rows) - 1, num=min(SAMPLE, len(rows))).astype(int)]
    sizes = [_header(stored) for stored in data.train.split.read(sample)]
    return int(len(rows) * np.mean(sizes)) + len(data.validation) * 3 * settings.image_size**2


def _header(stored: Stored) -> int:
    """Bytes of an image when decoded; 0 if it cannot be read."""
    try:
        with Image.open(io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"]) as image:
            return image.width * image.height * (1 if image.mode in GREY else 3)
    except Exception:  # decoders raise many kinds; what cannot be read is reported when it is used
        return 0


def _rows(data: DataSource) -> np.ndarray:
    """All that are used in training, sorted."""
    return np.unique(np.concatenate([images.rows for images in _cached(data)]))


def _cached(data: DataSource) -> tuple[Images, ...]:
    return data.train, data.labelled, data.alone, data.validation


def cache_images(data: DataSource, settings: Data, folder: Path, accelerator: Accelerator) -> None:
    """Decode the images into a file in `folder`, unless it is there, and use it; all processes call it.

    Raises:
        UserError: as `plan_cache`.
    """
    place = None
    if accelerator.is_main_process and plan_cache(data, settings).used:
        rows = _rows(data)
        place = folder / f"pixels-{fingerprint([data.order, rows.tolist(), _content(data, rows)])}"
        place = place if _written(place, data, rows, settings) else None
    (place,) = broadcast_object_list([place])
    if place is None:
        return
    pixels = Pixels(place)
    for images in _cached(data):
        images.pixels = pixels
    data.validation.kept = {}
    if settings.augment_on != "loader":
        _batch_views(data, accelerator.device, always_matrices=settings.augment_on == "device")


def _content(data: DataSource, rows: np.ndarray) -> list[Any]:
    """What changes with the content of any of these images: names, sizes and times of local files, digests of the Hub's
    files, and a digest of all images of `datasets`."""
    images = data.train.split
    times = [entry.time for entry in data.manifest.entries.values()]
    parts = [data.manifest.digest(), times, images.stamp(), images.background]
    if any(isinstance(shard, DatasetShard) for shard in images.shards):
        digest = hashlib.blake2b(digest_size=8)
        for part in np.array_split(rows, -(-len(rows) // PART)):
            for stored in images.read(part):
                digest.update(content_of(stored))
        parts.append(digest.hexdigest())
    return parts


def _written(place: Path, data: DataSource, rows: np.ndarray, settings: Data) -> bool:
    """Whether the file is there, or could be written; a run that needs the same one at this moment waits for it."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f"{place.name}.lock")):
            if not _is_whole(place):
                write_pixels(place, _decoded(data.train.split, rows, settings.workers))
    except OSError as error:
        logger.warning("%s cannot be written: %s; images are decoded each time", place, error.strerror)
        return False
    return _is_whole(place)  # without a single image that can be read there is none


def _is_whole(place: Path) -> bool:
    try:
        Pixels(place)
    except (OSError, ValueError, EOFError):
        return False
    return True


def _decoded(split: StoredImages, rows: np.ndarray, workers: int) -> Iterator[tuple[int, np.ndarray]]:
    """(row, uint8 H×C×W) of those that can be decoded; the others are left out."""
    done = 0
    with ProgressBar("images decoded", len(rows), 0) as bar:
        for part in in_parts(_Lines(split), rows.tolist(), workers):
            yield from ((row, image) for row, image in part if image is not None)
            done += len(part)
            bar.step(done)


class _Lines(Dataset):
    """Decoded images by row; None of one that cannot be read."""

    def __init__(self, split: StoredImages):
        self.split = split

    def __getitems__(self, rows: list[int]) -> list[tuple[int, np.ndarray | None]]:
        return [(row, self._lines(stored)) for row, stored in zip(rows, self.split.read(rows), strict=True)]

    def _lines(self, stored: Stored) -> np.ndarray | None:
        try:
            return lines_of(decode(stored, self.split.background))
        except Exception:  # decoders raise many kinds; what cannot be read is reported when it is used
            return None


def _batch_views(data: DataSource, device: torch.device, always_matrices: bool) -> None:
    """Make training views batch by batch, if these versions of the libraries give the same pixels either way."""
    batched = BatchedView.of(data.train.transform, device, always_matrices)
    if batched is None:
        return
    rows = data.train.rows[np.linspace(0, len(data.train) - 1, num=CHECKED).astype(int)].tolist()
    views = [numbered(0, 0)] * CHECKED
    one_by_one, together = collate(data.train.at(rows, views)), data.train.together(rows, views, batched)
    if isinstance(one_by_one, UserError) or together is None:  # an image cannot be read
        return
    if not torch.equal(one_by_one.batch().image, together.batch(device).image.cpu()):
        logger.warning("the views of a batch are not those of its images, so they are made one by one")
        return
    for images in (data.train, data.labelled, data.alone):
        images.batched = batched
