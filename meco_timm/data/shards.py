"""2 · Shards: parquet files, tars and image files read in place, any row at any time, without a copy of their own.

What stands in which row is known from footers, label columns and the headers of tars, so that the order of a training
is arithmetic (batches.py) and only the bytes of the images that are due are read.
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
    """The row groups read last, of at most `limit` rows together, or one: a process of a loader needs those of one
    window."""

    def __init__(self, limit: int):
        self.limit, self.rows = limit, 0
        self.groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()

    def get(self, key: tuple[str, int], read: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        if key in self.groups:
            self.groups.move_to_end(key)
        else:
            self.groups[key] = read()
            self.rows += len(self.groups[key])
            while self.rows > self.limit and len(self.groups) > 1:
                self.rows -= len(self.groups.popitem(last=False)[1])
        return self.groups[key]


class Shard(Protocol):
    """Some images. runs: how many of them in a row lie together. stamp: what changes when they do, cheaply."""

    @property
    def location(self) -> str: ...
    @property
    def runs(self) -> np.ndarray: ...
    def stamp(self) -> list[Any]: ...
    def read(self, rows: np.ndarray, groups: RowGroups) -> list[Stored]: ...


@dataclass
class ParquetShard:
    """A parquet file; `groups`: rows of each row group."""

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
    """A webdataset tar; offset and size of each image."""

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
    """Image files, each for itself."""

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
    """Images of several shards in a row, by number, as a split of `datasets`: `split[rows]["image"]`.

    picked: those that count, sorted; by default all. `ends`: where each run of images that lie together ends.
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
        """Raises: UserError: a shard cannot be read."""
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
        """Some of them; rows sorted."""
        return Shards(self.shards, self.keep, self.picked[rows])

    def followed_by(self, other: "Shards") -> "Shards":
        """These and then the others."""
        picked = np.concatenate([self.picked, other.picked + self._ends[-1]])
        return Shards(self.shards + other.shards, self.keep, picked)

    def stamp(self) -> list[Any]:
        """What changes when the images do, cheaply: names, bytes and rows of the shards."""
        return [[shard.stamp(), int(shard.runs.sum())] for shard in self.shards]
