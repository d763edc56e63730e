"""Every image is decoded once before anything is trained, so that all broken ones are known at the start.

The result is stored so that it happens once: for image files by name, size and time, in one file per data set; for
images in parquet files, tars and on the Hub together, by a digest of the data set.
"""

import json
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset

from meco_timm.common import ProgressBar, UserError, get_logger, write_content
from meco_timm.data.decoding import decode, why_unreadable
from meco_timm.data.images import NAMED, Images
from meco_timm.data.loading import DataSource, outlive_signals
from meco_timm.data.manifest import UNKNOWN, checksum
from meco_timm.data.stored import FilesShard, Stored, StoredImages
from meco_timm.recipe import Data, fingerprint

logger = get_logger(__name__)
AUTO = 200_000  # images up to which `auto` verifies
PART = 10_000  # images after which the result is stored
FEW = 500  # images that need no loader processes


class Checked(NamedTuple):
    """One image, by its number. crc: CRC-32 of its bytes. fault: why it cannot be read, or empty."""

    number: int
    crc: int
    fault: str


class Result(NamedTuple):
    """What was found of one file of this size and time (ns)."""

    size: int
    time: int
    crc: int
    fault: str


class Content(Dataset):
    """Images to be read and decoded, by number; their pixels are thrown away."""

    def __init__(self, images: StoredImages):
        self.images = images

    def __getitems__(self, numbers: list[int]) -> list[Checked]:
        try:
            stored = self.images.read(numbers)
        except UserError as error:  # a shard that cannot be read
            return [Checked(number, UNKNOWN, str(error)) for number in numbers]
        return [self._check(number, one) for number, one in zip(numbers, stored, strict=True)]

    def _check(self, number: int, stored: Stored) -> Checked:
        crc = UNKNOWN
        try:
            content = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
            crc = zlib.crc32(content)
            decode({"bytes": content, "path": None}, self.images.background)
        except Exception as error:  # decoders raise many kinds; each means that the image cannot be read
            return Checked(number, crc, why_unreadable(error))
        return Checked(number, crc, "")


def verify(data: DataSource, settings: Data, folder: Path, accelerator: Accelerator) -> None:
    """Decode every image that was not decoded before; all processes call it. The result is stored in `folder`, and
    `data.manifest` gets checksums.

    Raises:
        UserError: validation or test images cannot be read, or more training images than `data.max_bad`; lists them.
    """
    size = len(data.train.split) + len(data.test.split)
    if settings.verify == "none" or (settings.verify == "auto" and size > AUTO):
        return
    files = data.folders and all(one.splits for one in data.folders)
    check = _check_files if files and (len(data.folders) == 2 or not settings.unlabelled) else _check_rows
    bad = check(data, settings, folder, accelerator)
    held_out, training = [b for b, held in bad.items() if held], [b for b, held in bad.items() if not held]
    if accelerator.is_main_process and bad:
        _store(folder / "bad_images.txt", "".join(f"{line}\n" for line in bad))
    if held_out or len(training) > settings.max_bad:
        raise _refusal(held_out, training, settings.max_bad, folder / "bad_images.txt")
    if accelerator.is_main_process:
        for line in training[:NAMED]:
            logger.warning("data.max_bad: %s", line)


def _refusal(held_out: list[str], training: list[str], allowed: int, file: Path) -> UserError:
    lines = [*held_out, *training]
    more = f"\n  and {len(lines) - NAMED} more; {file} lists all." if len(lines) > NAMED else ""
    hint = f" data.max_bad allows {allowed} of the {len(training)} bad training image(s)." if training else ""
    named = "\n  ".join(lines[:NAMED])
    return UserError(
        f"data.source: {len(lines)} image(s) cannot be read; nothing was trained:\n  {named}{more}\n"
        f"Repair them or take them away.{hint}"
    )


def _check_files(data: DataSource, settings: Data, folder: Path, a: Accelerator) -> dict[str, bool]:
    """Image files: bad ones, and whether each is held out for validation or test."""
    manifest = data.manifest
    file = folder / f"files-{fingerprint(sorted(manifest.roots.items()))}.parquet"
    before, entries = _read(file), manifest.entries
    found = {n: r for n, r in before.items() if n in entries and r[:2] == (entries[n].size, entries[n].time)}
    todo = [name for name in entries if name not in found]
    images = StoredImages([FilesShard("", [manifest.path(name) for name in todo])])
    for part in _checked(images, settings, a):
        for number, crc, fault in part:
            _, size, changed, _ = entries[todo[number]]
            found[todo[number]] = Result(size, changed, crc, fault)
        if a.is_main_process:
            _store(file, _table(found))
    data.manifest = manifest.with_checksums({name: result.crc for name, result in found.items()})
    bad = {manifest.path(name): result.fault for name, result in found.items() if result.fault}
    held = {path for images in (data.validation, data.test) for path in _paths(images)} if bad else set()
    return {f"{path}: {fault}": path in held for path, fault in bad.items()}


def _check_rows(data: DataSource, settings: Data, folder: Path, a: Accelerator) -> dict[str, bool]:
    """Images of other sources: bad ones, and whether each is held out for validation or test."""
    start, times = len(data.train.split), [entry.time for entry in data.manifest.entries.values()]
    file = folder / f"rows-{fingerprint([data.order, data.test.split.stamp(), data.manifest.digest(), times])}.json"
    images = data.train.split.followed_by(data.test.split)
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        checked = [one for part in _checked(images, settings, a) for one in part]
        crcs = {name: checksum(data.manifest.path(name)) for name in data.manifest.entries}
        stored = {"crcs": crcs, "bad": {str(number): fault for number, _, fault in checked if fault}}
        if a.is_main_process:
            _store(file, stored)
    data.manifest = data.manifest.with_checksums(stored["crcs"])
    held = {*data.validation.rows.tolist(), *(start + data.test.rows).tolist()}
    return {f"{_row_name(images, int(i), start)}: {fault}": int(i) in held for i, fault in stored["bad"].items()}


def _row_name(images: StoredImages, number: int, start: int) -> str:
    split, row = ("test", number - start) if number >= start else ("training", number)
    return images.read([number])[0]["path"] or f"row {row} of the {split} split"


def _checked(images: StoredImages, settings: Data, a: Accelerator) -> Iterator[list[Checked]]:
    """Read and decode all of them, in parts; each process takes its share and gets all results."""
    began = time.monotonic()
    with ProgressBar("images checked", len(images), 0) as bar:
        for first in range(0, len(images), PART):
            part = range(first, min(first + PART, len(images)))
            mine = part[a.process_index :: a.num_processes]
            found: list[Checked] = []
            for batch in _loader(images, mine, settings.workers):
                found += batch
                done = first + len(found) * a.num_processes
                bar.step(min(done, part[-1] + 1), [f"{done / (time.monotonic() - began):.0f} images/s"])
            yield gather_object(found) if a.num_processes > 1 else found


def _loader(images: StoredImages, numbers: range, workers: int) -> Iterable[list[Checked]]:
    return DataLoader(
        Content(images),
        batch_size=32,
        sampler=numbers,
        collate_fn=list,
        num_workers=workers if len(numbers) > FEW else 0,
        worker_init_fn=outlive_signals,
    )


def _paths(images: Images) -> list[str]:
    return [str(stored["path"]) for stored in images.split.read(images.rows)]


def _table(found: dict[str, Result]) -> bytes:
    columns = [list(column) for column in zip(*((name, *result) for name, result in found.items()), strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(zip(("file", *Result._fields), columns, strict=True))), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _read(file: Path) -> dict[str, Result]:
    try:
        columns = [column.to_pylist() for column in pq.read_table(file, columns=["file", *Result._fields]).columns]
    except (OSError, pa.ArrowException, KeyError):
        return {}
    return {name: Result(*values) for name, *values in zip(*columns, strict=True)}


def _store(file: Path, content: Any) -> None:
    try:
        write_content(file, content)
    except OSError as error:
        logger.warning("%s cannot be written: %s; the images are checked again next time", file, error.strerror)
