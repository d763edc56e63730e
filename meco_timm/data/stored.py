"""Undecoded images, read where they are stored, any row at any time: of parquet files, tars, image files, `datasets`.

The place of each row is known from the footers of parquet files and the headers of tars (tables.py, tars.py). So the
order of a training is computed without reading images (views.py), and only the images of a batch are read.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meco_timm.common import printable
from meco_timm.data import tars
from meco_timm.data.decoding import WHITE
from meco_timm.data.hub_files import local, stamp, unreadable
from meco_timm.recipe import fingerprint

Stored = dict[str, Any]  # bytes (or None) and path of an undecoded image
SAMPLE = 64  # images or files of which a stamp is made
KEPT_BYTES = 1 << 29  # of parquet files in a process, for a whole shuffle


class RowGroups:
    """Cache of the row groups that were read last: at most `limit` rows together, but at least one row group."""

    def __init__(self, limit: int):
        self.limit, self.rows = limit, 0
        self.groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()

    def get(self, key: tuple[str, int], read: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        """The row group `key` (file, number), from the cache or by `read`."""
        if key in self.groups:
            self.groups.move_to_end(key)
        else:
            self.groups[key] = read()
            self.rows += len(self.groups[key])
            while self.rows > self.limit and len(self.groups) > 1:
                self.rows -= len(self.groups.popitem(last=False)[1])
        return self.groups[key]


class Shard(Protocol):
    """A file or files with some images.

    location: a path, a URL of the Hub, or what `datasets` calls it. runs: int64, numbers of images that are stored one
    after the other and best read so. stamp: changes with the content; found without reading all of it. read: undecoded
    images by row of the shard.
    """

    @property
    def location(self) -> str: ...
    @property
    def runs(self) -> np.ndarray: ...
    def stamp(self) -> list[Any]: ...
    def read(self, rows: np.ndarray, groups: RowGroups) -> list[Stored]: ...


@dataclass
class ParquetShard:
    """A parquet file. column: of the images. groups, bytes: int64, rows and bytes of each row group."""

    location: str
    column: str
    groups: np.ndarray
    bytes: np.ndarray

    @property
    def runs(self) -> np.ndarray:
        return self.groups.sum(keepdims=True)

    def stamp(self) -> list[Any]:
        return stamp(self.location)

    def read(self, rows: np.ndarray, groups: RowGroups) -> list[Stored]:
        ends = self.groups.cumsum()
        found = []
        for row in rows:
            group = int(ends.searchsorted(row, side="right"))
            column = groups.get((self.location, group), lambda group=group: self._group(group))  # type: ignore[misc]
            one = column[int(row - ends[group] + self.groups[group])].as_py()
            one = one if isinstance(one, dict) else {"bytes": one, "path": None}
            name = f"{self.location}: {one['path'] or f'row {row}'}"
            found.append({"bytes": one["bytes"], "path": name if one["bytes"] is not None else one["path"] or name})
        return found

    def _group(self, group: int) -> pa.ChunkedArray:
        with pq.ParquetFile(local(self.location)) as file:
            # No threads: in a forked loader process Arrow's pool may not be there.
            return file.read_row_group(group, columns=[self.column], use_threads=False)[self.column]


@dataclass
class TarShard:
    """A webdataset tar. offset, size: int64, N each, of the images, in bytes."""

    location: str
    offset: np.ndarray
    size: np.ndarray

    @property
    def runs(self) -> np.ndarray:
        return np.array([len(self.offset)])

    def stamp(self) -> list[Any]:
        return stamp(self.location)

    def read(self, rows: np.ndarray, groups: RowGroups) -> list[Stored]:
        members = [tars.Member(int(self.offset[row]), int(self.size[row])) for row in rows]
        return tars.read(local(self.location), members)


@dataclass
class FilesShard:
    """Image files. location: the folder. paths: one per row."""

    location: str
    paths: list[str]

    @property
    def runs(self) -> np.ndarray:
        return np.ones(len(self.paths), dtype=np.int64)

    def stamp(self) -> list[Any]:
        paths = (self.paths[i] for i in np.linspace(0, len(self.paths) - 1, num=SAMPLE).astype(int))
        return [stamp(path) if os.path.exists(path) else [os.path.basename(path), -1] for path in paths]

    def read(self, rows: np.ndarray, groups: RowGroups) -> list[Stored]:
        return [{"bytes": None, "path": self.paths[row]} for row in rows]


@dataclass
class DatasetShard:
    """A split of the library `datasets`, with the undecoded images in the column `image`."""

    location: str
    rows: datasets.Dataset

    @property
    def runs(self) -> np.ndarray:
        return np.ones(len(self.rows), dtype=np.int64)

    def stamp(self) -> list[Any]:
        rows = np.linspace(0, len(self.rows) - 1, num=min(SAMPLE, len(self.rows))).astype(int)
        return [fingerprint(content_of(self.rows[int(row)]["image"]).hex()) for row in rows]

    def read(self, rows: np.ndarray, groups: RowGroups) -> list[Stored]:
        return self.rows[rows.tolist()]["image"]


def content_of(stored: Stored) -> bytes:
    """The bytes of an image; none of one that cannot be read, which is found when it is decoded."""
    try:
        return stored["bytes"] or Path(stored["path"]).read_bytes()
    except (OSError, TypeError):
        return b""


class StoredImages:
    """Images of several shards, one after the other, by row.

    buffer: images in a row that a training mixes, of which a process keeps the row groups; None for a whole shuffle.
    background: red, green, blue of what transparent images are laid on. picked: int64, sorted, the rows that are used;
    by default all. ends: int64, the row after each run of images that are stored together.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        buffer: int | None = None,
        background: Sequence[int] = WHITE,
        picked: np.ndarray | None = None,
    ):
        self.shards, self.buffer, self.background = list(shards), buffer, tuple(background)
        self._ends = np.cumsum([shard.runs.sum() for shard in shards], dtype=np.int64)
        runs = np.concatenate([np.zeros(0, np.int64), *(shard.runs for shard in shards)])
        self.picked = np.arange(runs.sum()) if picked is None else picked
        self.ends = self.picked.searchsorted(np.cumsum(runs))
        self._groups = RowGroups(self._rows_to_keep())

    def __len__(self) -> int:
        return len(self.picked)

    def read(self, rows: Sequence[int] | np.ndarray) -> list[Stored]:
        """The undecoded images of these rows.

        Raises:
            UserError: a shard cannot be read.
        """
        chosen = self.picked[np.asarray(rows, dtype=np.int64)]
        which = self._ends.searchsorted(chosen, side="right")
        found: dict[int, Stored] = {}
        for number in np.unique(which):
            shard, places = self.shards[number], np.flatnonzero(which == number)
            first = self._ends[number - 1] if number else 0
            try:
                stored = shard.read(chosen[places] - first, self._groups)
            except (OSError, pa.ArrowException) as error:
                raise unreadable(error, shard.location) from None
            found |= zip(places.tolist(), stored, strict=True)
        return [found[place] for place in range(len(chosen))]

    def name(self, row: int) -> str:
        """What a message calls an image: its file, or the row."""
        (stored,) = self.read([row])
        return printable(stored["path"] or f"row {row}")

    def select(self, rows: np.ndarray) -> "StoredImages":
        """A part of the images. rows: int64, sorted."""
        return StoredImages(self.shards, self.buffer, self.background, self.picked[rows])

    def followed_by(self, other: "StoredImages") -> "StoredImages":
        """These images, and the others after them."""
        picked = np.concatenate([self.picked, other.picked + self._ends[-1]])
        return StoredImages(self.shards + other.shards, self.buffer, self.background, picked)

    def stamp(self) -> list[Any]:
        """What changes with the images: of files names, bytes and number of rows, of others a digest of some images."""
        return [[shard.stamp(), int(shard.runs.sum())] for shard in self.shards]

    @property
    def parquet_bytes(self) -> int:
        """Bytes of the row groups of all parquet files."""
        return sum(int(shard.bytes.sum()) for shard in self.shards if isinstance(shard, ParquetShard))

    def _rows_to_keep(self) -> int:
        parquet = [shard for shard in self.shards if isinstance(shard, ParquetShard)]
        rows = sum(int(shard.groups.sum()) for shard in parquet)
        if self.buffer is None:
            return rows * KEPT_BYTES // max(self.parquet_bytes, 1)
        # A window seldom begins and ends with a row group.
        return self.buffer + 2 * max((int(shard.groups.max(initial=0)) for shard in parquet), default=0)
