"""2 · Which view of which image stands in which batch: functions of (seed, step), whoever reads the images."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from meco_timm.common import derive


class View(NamedTuple):
    """One augmentation of every image: what it draws from, and its number."""

    seed: int
    number: int


PLAIN = View(0, -1)


def numbered(seed: int, number: int, repeats: int = 1) -> View:
    """The view that a run shows as its `number`-th: `repeats` of them per epoch."""
    return View(derive(seed, "view", *divmod(number, repeats)), number)


def shuffled(size: int, seed: int, epoch: int, ends: np.ndarray | None = None, buffer: int = 0) -> np.ndarray:
    """The order of `size` images in an epoch, int64.

    ends: where each of the runs ends that are best read in a row (shards.py). The runs are then drawn in any order and
    laid end to end, and `buffer` neighbours at a time are mixed; where these windows begin changes with the epoch.
    """
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    if ends is None or buffer >= size:
        return torch.randperm(size, generator=generator).numpy()
    runs = torch.randperm(len(ends), generator=generator).numpy()
    lengths = np.diff(ends, prepend=0)[runs]
    row = np.repeat(ends[runs] - lengths.cumsum(), lengths) + np.arange(size)
    first = torch.randint(buffer, (), generator=generator).item()
    window = (np.arange(size) + first) // buffer
    return row[np.lexsort((torch.rand(size, generator=generator, dtype=torch.float64).numpy(), window))]


def variety(labels: np.ndarray, window: int) -> float:
    """Classes in `window` labels of this row, the mean of its windows, as a share of what labels mixed evenly give."""
    counts = np.bincount(labels)
    windows = [labels[i : i + window] for i in range(0, len(labels) - window + 1, window)]
    expected = (1 - (1 - counts / len(labels)) ** window).sum()
    return float(np.mean([len(np.unique(one)) for one in windows]) / expected)


class BatchStream(Sampler[list[tuple[View, int]]]):
    """Endless shuffled passes over `size` images, cut into batches; every image once per epoch, no short batch.

    Batch s is a function of (seed, s): process `rank` of `world` takes its part of positions [s·B·world, (s+1)·B·world)
    in the row of all epochs' orders (`shuffled`, with `ends` and `buffer`), so 2 processes × B see what 1 process × 2B
    sees. Epoch e shows view e, or e mod `views`.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
        views: int | None = None,
        ends: np.ndarray | None = None,
        buffer: int = 0,
    ):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world
        self.repeats, self.views = repeats, views
        self.ends, self.buffer = ends, buffer
        self._epoch, self._views, self._order = -1, [PLAIN], np.zeros(1, dtype=np.int64)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[View, int]]]:
        for step in range(self.start, self.stop):
            first = (step * self.world + self.rank) * self.batch_size
            yield [self._at(position) for position in range(first, first + self.batch_size)]

    def _at(self, position: int) -> tuple[View, int]:
        """(view, which image) at a position in the row of all epochs."""
        image, repeat = divmod(position, self.repeats)
        epoch, i = divmod(image, self.size)
        if self._epoch != epoch:
            self._epoch, self._order = epoch, shuffled(self.size, self.seed, epoch, self.ends, self.buffer)
            first = (epoch % self.views if self.views else epoch) * self.repeats
            self._views = [numbered(self.seed, first + n, self.repeats) for n in range(self.repeats)]
        return self._views[repeat], int(self._order[i])


class ChosenViews(Sampler[list[tuple[View, int]]]):
    """Views of images, n×2 of (number of the view, which image), in order, cut into batches."""

    def __init__(self, chosen: Tensor, batch_size: int, seed: int, repeats: int):
        self.parts = chosen.split(batch_size) if len(chosen) else ()
        self.seed, self.repeats = seed, repeats

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[list[tuple[View, int]]]:
        for part in self.parts:
            yield [(numbered(self.seed, number, self.repeats), i) for number, i in part.tolist()]
