"""Which view of which image stands in which batch: functions of (seed, step), whoever reads the images."""

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


def shuffled(size: int, seed: int, epoch: int, ends: np.ndarray | None = None, buffer: int | None = None) -> np.ndarray:
    """The order of `size` images in an epoch, int64.

    buffer: None for any order; else the runs that are best read in a row, which end at `ends` (stored.py), are drawn in
    any order and laid end to end, and `buffer` neighbours at a time are mixed. Where these windows begin changes with
    the epoch.
    """
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    if ends is None or buffer is None or buffer >= size:
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


def balanced_copies(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """How often each image is shown in an epoch of as many images, int64, so that each class is shown alike.

    labels: int64, one per image. Copies of two images of a class differ by 1 at most; which of them have one more is
    drawn anew in each epoch, and so is who has the images that the classes cannot share evenly.
    """
    generator = np.random.default_rng(derive(seed, "balanced", epoch))
    present = generator.permutation(np.unique(labels))
    copies = np.zeros(len(labels), dtype=np.int64)
    for i, name in enumerate(present):
        own = generator.permutation(np.flatnonzero(labels == name))
        each, more = divmod(len(labels) // len(present) + (i < len(labels) % len(present)), len(own))
        copies[own] = each
        copies[own[:more]] += 1
    return copies


class Steps(NamedTuple):
    """Which batches: steps `start` to `stop`, the part of process `rank` of `world`. batch_size: images per process."""

    batch_size: int
    seed: int
    start: int
    stop: int
    rank: int = 0
    world: int = 1


class Passes(NamedTuple):
    """How the epochs go through `size` images. repeats: views of an image within an epoch. views: epochs after which
    the views repeat; None for never. ends, buffer: as of `shuffled`. labels: of the images if every class is to be
    shown equally often (`balanced_copies`)."""

    size: int
    repeats: int = 1
    views: int | None = None
    ends: np.ndarray | None = None
    buffer: int | None = None
    labels: np.ndarray | None = None


class BatchStream(Sampler[list[tuple[View, int]]]):
    """Endless shuffled passes, cut into batches; every image once per epoch, no short batch.

    Batch s is a function of (seed, s): a process takes its part of positions [s·B·world, (s+1)·B·world) in the sequence
    of all epochs' orders, so 2 processes × B see what 1 process × 2B sees. Epoch e shows view e, or e mod `views`. With
    `labels`, an image's second copy in an epoch has a view of its own.
    """

    def __init__(self, passes: Passes, steps: Steps):
        self.passes, self.steps = passes, steps
        self._epoch, self._views, self._order = -1, [PLAIN], np.zeros((1, 2), dtype=np.int64)

    def __len__(self) -> int:
        return self.steps.stop - self.steps.start

    def __iter__(self) -> Iterator[list[tuple[View, int]]]:
        size, _, start, stop, rank, world = self.steps
        for step in range(start, stop):
            first = (step * world + rank) * size
            yield [self._at(position) for position in range(first, first + size)]

    def _at(self, position: int) -> tuple[View, int]:
        """(view, which image) at a position in the sequence of all epochs."""
        size, repeats, views, *_ = self.passes
        image, repeat = divmod(position, repeats)
        epoch, i = divmod(image, size)
        if self._epoch != epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
            first = (epoch % views if views else epoch) * repeats
            self._views = [numbered(self.steps.seed, first + n, repeats) for n in range(repeats)]
        chosen, copy = self._order[i].tolist()
        view = self._views[repeat]
        return (view._replace(seed=derive(view.seed, "copy", copy)) if copy else view), chosen

    def _shuffled(self, epoch: int) -> np.ndarray:
        """(which image, which of its copies) at each position of an epoch, size×2."""
        size, _, _, ends, buffer, labels = self.passes
        if labels is None:
            order = shuffled(size, self.steps.seed, epoch, ends, buffer)
            return np.stack([order, np.zeros_like(order)], 1)
        copies = balanced_copies(labels, self.steps.seed, epoch)
        last = copies.cumsum()
        order = shuffled(size, self.steps.seed, epoch, None if ends is None else np.append(0, last)[ends], buffer)
        image = np.repeat(np.arange(size), copies)
        return np.stack([image, np.arange(size) - (last - copies)[image]], 1)[order]


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
