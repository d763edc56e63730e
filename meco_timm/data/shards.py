"""Shards: parquet files, tars and image files, read where they are, any row at any time, without a copy.

The place of each row is found from the footers of parquet files and the headers of tars (tables.py, tars.py). So the
order of a training is computed without reading images (views.py), and only the images of a batch are read.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meco_timm.data import tars
from meco_timm.data.remote import local, stamp, unreadable

Stored = dict[str, Any]  # bytes (or None) and path, as `datasets` gives an undecoded image


class RowGroups:
    """Cache of the row groups that were read last: at most `limit` rows together, but at least one row group.

    A loader process needs the row groups of one window of `data.buffer` images.
    """

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

    location: a path or a URL of the Hub. runs: int64, numbers of images that are stored one after the other and best
    read so. stamp: what changes with the content, found without reading it. read: undecoded images by row of the shard.
    """

    @property
    def location(self) -> str: ...
    @property
    def runs(self) -> np.ndarray: ...
    def stamp(self) -> list[Any]: ...
    def read(self, rows: np.ndarray, groups: RowGroups) -> list[Stored]: ...


@dataclass
class ParquetShard:
    """A parquet file. column: of the images. groups: int64, number of rows of each row group."""

    location: str
    column: str
    groups: np.ndarray

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
            found.append(column[int(row - ends[group] + self.groups[group])].as_py())
        stored = [one if isinstance(one, dict) else {"bytes": one, "path": None} for one in found]
        names = [one["path"] or f"row {row}" for one, row in zip(stored, rows, strict=True)]
        return [{**one, "path": f"{self.location}: {name}"} for one, name in zip(stored, names, strict=True)]

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
class Files:
    """Image files. location: the folder. paths: one per row."""

    location: str
    paths: list[str]

    @property
    def runs(self) -> np.ndarray:
        return np.ones(len(self.paths), dtype=np.int64)

    def stamp(self) -> list[Any]:
        paths = (self.paths[i] for i in np.linspace(0, len(self.paths) - 1, num=64).astype(int))
        return [stamp(path) if os.path.exists(path) else [os.path.basename(path), -1] for path in paths]

    def read(self, rows: np.ndarray, groups: RowGroups) -> list[Stored]:
        return [{"bytes": None, "path": self.paths[row]} for row in rows]


class Shards:
    """Images of several shards, one after the other, indexed as a split of `datasets`: `split[rows]["image"]`.

    keep: rows of parquet files that a process keeps in memory. picked: int64, sorted, the rows that are used; by
    default all. ends: int64, the row after each run of images that are stored together.
    """

    def __init__(self, shards: list[Shard], keep: int, picked: np.ndarray | None = None):
        self.shards, self.keep = shards, keep
        self._ends = np.cumsum([shard.runs.sum() for shard in shards])
        self.picked = np.arange(self._ends[-1]) if picked is None else picked
        self.ends = self.picked.searchsorted(np.cumsum(np.concatenate([shard.runs for shard in shards])))
        self._groups = RowGroups(keep)

    def __len__(self) -> int:
        return len(self.picked)

    def __getitem__(self, rows: int | list[int]) -> dict[str, Any]:
        """`{"image": …}` with an undecoded image, or a list of them for a list of rows.

        Raises:
            UserError: a shard cannot be read.
        """
        found = self._read(self.picked[np.atleast_1d(rows).astype(np.int64)])
        return {"image": found if isinstance(rows, list) else found[0]}

    def _read(self, rows: np.ndarray) -> list[Stored]:
        which = self._ends.searchsorted(rows, side="right")
        found: dict[int, Stored] = {}
        for number in np.unique(which):
            shard, places = self.shards[number], np.flatnonzero(which == number)
            first = self._ends[number - 1] if number else 0
            try:
                stored = shard.read(rows[places] - first, self._groups)
            except (OSError, pa.ArrowException) as error:
                raise unreadable(error, shard.location) from None
            found |= zip(places.tolist(), stored, strict=True)
        return [found[place] for place in range(len(rows))]

    def select(self, rows: np.ndarray) -> "Shards":
        """A part of the images. rows: int64, sorted."""
        return Shards(self.shards, self.keep, self.picked[rows])

    def followed_by(self, other: "Shards") -> "Shards":
        """These images, and the others after them."""
        picked = np.concatenate([self.picked, other.picked + self._ends[-1]])
        return Shards(self.shards + other.shards, self.keep, picked)

    def stamp(self) -> list[Any]:
        """What changes with the images, found without reading them: name, bytes and number of rows of each shard."""
        return [[shard.stamp(), int(shard.runs.sum())] for shard in self.shards]
