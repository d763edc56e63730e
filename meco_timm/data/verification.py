"""Every image is decoded once before anything is trained, so that all broken ones are known at the start.

The result is stored so that it happens once: for image files by name, size and time, in one file per data set; for
images in parquet files, tars and on the Hub together, by a digest of the data set. The range of the values and copies
(copies.py) are found on the way.
"""

import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import Dataset

from meco_timm.common import ProgressBar, UserError, get_logger, write_content
from meco_timm.data.copies import find_copies
from meco_timm.data.decoding import decode, why_unreadable
from meco_timm.data.images import NAMED
from meco_timm.data.loading import DataSource, in_parts
from meco_timm.data.manifest import UNKNOWN, Entry, checksum
from meco_timm.data.stored import FilesShard, Stored, StoredImages
from meco_timm.recipe import Data, fingerprint

logger = get_logger(__name__)
AUTO = 200_000  # images up to which `auto` verifies
PART = 10_000  # images after which the result is stored
GRID = (16, 16)  # pixels of an image whose values are looked at,
EVERY = 4  # in every so many images, since it takes a tenth of the time of decoding
DARK = 64  # of 255: values of a smaller range are warned of


class Checked(NamedTuple):
    """What was found of one image.

    size: bytes. time: of the last change of its file, ns. crc: CRC-32 of its bytes. fault: why it cannot be read, or
    empty. low, high: smallest and largest value of a grid of its pixels, -1 where they were not looked at. look: CRC-32
    of this grid.
    """

    size: int
    time: int
    crc: int
    fault: str
    low: int = -1
    high: int = -1
    look: int = 0


class Content(Dataset):
    """Images to be read and decoded, by number; of their pixels only a grid is looked at."""

    def __init__(self, images: StoredImages):
        self.images = images

    def __getitems__(self, numbers: list[int]) -> list[tuple[int, Checked]]:
        try:
            stored = self.images.read(numbers)
        except UserError as error:  # a shard that cannot be read
            return [(number, Checked(0, 0, UNKNOWN, str(error))) for number in numbers]
        return [(number, self._check(one, number % EVERY == 0)) for number, one in zip(numbers, stored, strict=True)]

    def _check(self, stored: Stored, looks: bool) -> Checked:
        size, crc = 0, UNKNOWN
        try:
            content = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
            size, crc = len(content), zlib.crc32(content)
            image = decode({"bytes": content, "path": None}, self.images.background)
        except Exception as error:  # decoders raise many kinds; each means that the image cannot be read
            return Checked(size, 0, crc, why_unreadable(error))
        if not looks:
            return Checked(size, 0, crc, "")
        grid = image.resize(GRID, Image.Resampling.NEAREST)
        low, high = zip(*grid.getextrema(), strict=True)
        return Checked(size, 0, crc, "", min(low), max(high), zlib.crc32(grid.tobytes()))


def verify(data: DataSource, settings: Data, folder: Path, accelerator: Accelerator) -> list[str]:
    """Decode every image that was not decoded before; all processes call it. The result is stored in `folder`, and
    `data` gets checksums, and notes about copies, which `data.copies: drop` takes out of the training images.

    Returns:
        Lines of the plan: values of a small range, copies.

    Raises:
        UserError: validation or test images cannot be read, or more training images than `data.max_bad`; lists them.
    """
    images = data.train.split.followed_by(data.test.split)
    if settings.verify == "none" or (settings.verify == "auto" and len(images) > AUTO):
        if settings.copies == "drop":
            raise UserError("data.copies: copies are found in the check of all images. Write data.verify=all.")
        return []
    found = _check_all(images, data, settings, folder, accelerator)
    _refuse_bad(images, data, found, settings.max_bad, folder / "bad_images.txt", accelerator.is_main_process)
    return [*_warn_of_range(found), *find_copies(data, images, [(one.crc, one.size) for one in found], settings.copies)]


def _check_all(images: StoredImages, data: DataSource, settings: Data, folder: Path, a: Accelerator) -> list[Checked]:
    """What is known of each image, by row; those that are not known are read."""
    manifest = data.manifest
    file, keys = _keys(images, data)
    known, entries = _read(folder / file), manifest.entries

    def is_known(key: str) -> bool:
        return key in known and (key not in entries or known[key][:2] == entries[key][1:3])

    todo = [row for row, key in enumerate(keys) if not is_known(key)]
    for part in _checked(images, todo, settings.workers, a):
        for row, one in part:
            known[keys[row]] = _dated(one, entries.get(keys[row]))
        if a.is_main_process:
            _store(folder / file, _table(known))
    if others := [name for name in entries if not is_known(name)]:  # files that are no images, or not used
        for name in others:
            known[name] = _dated(Checked(0, 0, checksum(manifest.path(name)), ""), entries[name])
        if a.is_main_process:
            _store(folder / file, _table(known))
    data.manifest = manifest.with_checksums({name: known[name].crc for name in entries})
    return [known[key] for key in keys]


def _dated(one: Checked, entry: Entry | None) -> Checked:
    return one if entry is None else one._replace(size=entry.size, time=entry.time)


def _keys(images: StoredImages, data: DataSource) -> tuple[str, list[str]]:
    """(file of the results, a key for each image): image files by name, others by row."""
    manifest = data.manifest
    if all(isinstance(shard, FilesShard) for shard in images.shards):
        names = {manifest.path(name): name for name in manifest.entries}
        keys = [names[stored["path"]] for stored in images.read(range(len(images)))]
        return f"files-{fingerprint([sorted(manifest.roots.items()), images.background])}.parquet", keys
    times = [entry.time for entry in manifest.entries.values()]
    digest = fingerprint([data.order, data.test.split.stamp(), manifest.digest(), times])
    return f"rows-{digest}.parquet", [f"row {row}" for row in range(len(images))]


def _refuse_bad(
    images: StoredImages, data: DataSource, found: list[Checked], allowed: int, file: Path, is_main: bool
) -> None:
    """Name the images that cannot be read.

    Raises:
        UserError: held-out images are among them, or more training images than are allowed.
    """
    bad = [row for row, one in enumerate(found) if one.fault]
    if not bad:
        return
    start = len(data.train.split)
    held = {*data.validation.rows.tolist(), *(start + data.test.rows).tolist()}
    lines = {row: f"{images.name(row)}: {found[row].fault}" for row in sorted(bad, key=lambda row: row not in held)}
    if is_main:
        _store(file, "".join(f"{lines[row]}\n" for row in bad))
    training = [row for row in bad if row not in held]
    if len(training) < len(bad) or len(training) > allowed:
        more = f"\n  and {len(bad) - NAMED} more; {file} lists all." if len(bad) > NAMED else ""
        hint = f" data.max_bad allows {allowed} of the {len(training)} bad training image(s)." if training else ""
        named = "\n  ".join([*lines.values()][:NAMED])
        raise UserError(
            f"data.source: {len(bad)} image(s) cannot be read; nothing was trained:\n  {named}{more}\n"
            f"Repair them or take them away.{hint}"
        )
    if is_main:
        for row in training[:NAMED]:
            logger.warning("data.max_bad: %s", lines[row])


def _warn_of_range(found: list[Checked]) -> Iterator[str]:
    looked = [one for one in found if one.low >= 0]
    low, high = min((one.low for one in looked), default=0), max((one.high for one in looked), default=255)
    values = f"values from {low} to {high} of 0 to 255"
    if len(looked) > 1 and len({one.look for one in looked}) == 1:
        yield f"warning: all images look the same ({values})"
    elif high - low < DARK:
        black = ", which is nearly black" if high < DARK else ""
        yield (
            f"warning: the images use {values}{black}. If they hold fewer bits than their files say, such as 12 in 16, "
            "scale them first"
        )


def _checked(
    images: StoredImages, todo: Sequence[int], workers: int, a: Accelerator
) -> Iterator[list[tuple[int, Checked]]]:
    """Read and decode these rows, in parts; each process takes its share and gets all results."""
    began = time.monotonic()
    with ProgressBar("images checked", len(todo), 0) as bar:
        for first in range(0, len(todo), PART):
            part = todo[first : first + PART]
            mine = part[a.process_index :: a.num_processes]
            found: list[tuple[int, Checked]] = []
            for batch in in_parts(Content(images), mine, workers):
                found += batch
                done = first + len(found) * a.num_processes
                bar.step(min(done, first + len(part)), [f"{done / (time.monotonic() - began):.0f} images/s"])
            yield gather_object(found) if a.num_processes > 1 else found


def _table(found: dict[str, Checked]) -> bytes:
    columns = [list(column) for column in zip(*((name, *result) for name, result in found.items()), strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(zip(("file", *Checked._fields), columns, strict=True))), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _read(file: Path) -> dict[str, Checked]:
    try:
        columns = [column.to_pylist() for column in pq.read_table(file, columns=["file", *Checked._fields]).columns]
    except (OSError, pa.ArrowException, KeyError):
        return {}
    return {name: Checked(*values) for name, *values in zip(*columns, strict=True)}


def _store(file: Path, content: Any) -> None:
    try:
        write_content(file, content)
    except OSError as error:
        logger.warning("%s cannot be written: %s; the images are checked again next time", file, error.strerror)
