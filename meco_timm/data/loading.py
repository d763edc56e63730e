"""A data set with its splits, and the loaders that make batches of it.

Images are not normalised: uint8, B×3×H×W. Each network normalises for itself (networks/streams.py). A training batch
is a function of (seed, step), and an image's augmentation of (seed, view, row), with one view per epoch. So neither the
number of loader processes nor an interruption changes the batches. Views can repeat after some epochs, so that teacher
outputs can be stored (zoo/store.py).
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from meco_timm.common import UserError, get_logger
from meco_timm.data.folders import Folder
from meco_timm.data.images import BadImages, Batch, Images, Read, collate, transforms
from meco_timm.data.labels import NO_LABEL, Split
from meco_timm.data.manifest import Manifest, manifest_of
from meco_timm.data.sources import read_source, read_split, read_unlabelled
from meco_timm.data.splitting import ChosenRows, choose_rows, hold_out
from meco_timm.data.stored import KEPT_BYTES
from meco_timm.data.views import BatchStream, ChosenViews, Passes, Steps, shuffled, variety
from meco_timm.recipe import Data, fingerprint

logger = get_logger(__name__)

SORTED = 0.7  # share of classes in a window below which shards seem to be sorted by class
FEW = 500  # images that need no loader processes
PART = 32  # images that are handed over at a time


def outlive_signals(worker: int) -> None:
    """Keep a loader process alive when Ctrl-C or Slurm signals the whole group: the main process decides when to stop.

    A loader ignores SIGINT. The first SIGTERM ends it after a minute, the second, of the main process, at once.
    """

    def survive(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        signal.alarm(60)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, survive)


def in_parts(images: Dataset, rows: Sequence[int], workers: int) -> DataLoader:
    """Lists of what `images` gives for these rows, in order; a few are read without loader processes."""
    workers = workers if len(rows) > FEW else 0
    return DataLoader(images, PART, sampler=rows, collate_fn=list, num_workers=workers, worker_init_fn=outlive_signals)


@dataclass
class DataSource:
    """A data set with its splits.

    classes: K names.
    train: images that the student learns from, with the labels that it may see.
    labelled: images whose labels teachers are trained on. alone: those that the student alone is trained on.
    validation, test: held-out images.
    identity: digest of what a training on labels depends on: images, labels, splits, order.
    workers: loader processes per device.
    repeats: views of an image in one batch.
    order: digest of all images and their rows, whatever the splits.
    buffer: images in a row that are mixed; None for all.
    max_bad: unreadable training images that are allowed.
    label_column: where the labels stand.
    folders: what each local folder contains.
    manifest: the files of the data set; empty for data of the Hub.
    notes: what a table of results must say of the images (verification.py).
    """

    classes: list[str]
    train: Images
    labelled: Images
    alone: Images
    validation: Images
    test: Images
    identity: str
    workers: int
    repeats: int = 1
    order: str = ""
    buffer: int | None = None
    max_bad: int = 0
    label_column: str = ""
    folders: tuple[Folder, ...] = ()
    manifest: Manifest = field(default_factory=Manifest)
    notes: list[str] = field(default_factory=list)

    def label_counts(self, images: Images) -> Tensor:
        """Number of the labelled `images` of each class: int64, K."""
        found = images.labels[images.rows]
        return torch.from_numpy(np.bincount(found, minlength=len(self.classes)))

    def batches(self, images: Images, steps: Steps, bad: BadImages | None = None) -> Iterator[Batch]:
        """The training batches of `steps`, in random order and augmented.

        bad: collects the images that cannot be read; by default they are counted for these batches only.

        Raises:
            UserError: the batch is larger than the split, more than `data.max_bad` images cannot be read, or a shard
                cannot be read.
        """
        check_batch(images, steps.batch_size, steps.world)
        labels = images.labels[images.rows] if images.balanced else None
        passes = Passes(len(images), self.repeats, images.views, images.ends, self.buffer, labels)
        workers = self.workers if steps.stop - steps.start > 1 else 0
        loader = self._loader(images, batch_sampler=BatchStream(passes, steps), num_workers=workers)
        return _checked(loader, images, bad)

    def chosen(self, images: Images, views: Tensor, rows: Tensor, batch_size: int, seed: int) -> Iterator[Batch]:
        """Chosen views of chosen images, as `batches` with this seed shows them.

        views, rows: int64, N each: the number of the view, and the row of the image in the split.

        Raises:
            UserError: an image or a shard cannot be read.
        """
        places = torch.from_numpy(images.rows.searchsorted(rows.numpy()))
        order = ChosenViews(torch.stack([views, places], 1), batch_size, seed, self.repeats)
        workers = self.workers if len(order) > 1 else 0
        return _checked(self._loader(images, batch_sampler=order, num_workers=workers), images)

    def in_order(self, images: Images, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Every `world`-th image from `rank` on, once, in order and not augmented, for evaluation.

        Raises:
            UserError: an image or a shard cannot be read.
        """
        if images.kept is None:
            return self._in_order(images, batch_size, rank, world)
        if (rank, world) not in images.kept:
            columns = zip(*self._in_order(images, batch_size, rank, world), strict=True)
            images.kept[rank, world] = Batch(*map(torch.cat, columns))
        return map(Batch._make, zip(*(column.split(batch_size) for column in images.kept[rank, world]), strict=True))

    def _in_order(self, images: Images, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
        mine = range(rank, len(images), world)
        workers = self.workers if len(mine) > 2000 else 0  # starting workers costs more than decoding a few images
        return _checked(self._loader(images, batch_size=batch_size, sampler=mine, num_workers=workers), images)

    def class_counts(self) -> dict[str, np.ndarray]:
        """Number of images of each class, by split (train, labelled, validation, test): int64, K each."""
        images, size = self.labelled, len(self.classes)
        known = np.flatnonzero(images.labels != NO_LABEL)
        rows = {"train": np.intersect1d(self.train.rows, known), "labelled": images.rows}
        counts = {name: np.bincount(images.labels[its], minlength=size) for name, its in rows.items()}
        for name, split in (("validation", self.validation), ("test", self.test)):
            labels = split.labels[split.rows]
            counts[name] = np.bincount(labels[labels != NO_LABEL], minlength=size)
        return counts

    def _loader(self, images: Images, **options: Any) -> DataLoader:
        pin = torch.cuda.is_available()
        return DataLoader(images, collate_fn=collate, pin_memory=pin, worker_init_fn=outlive_signals, **options)


def check_batch(images: Images, batch_size: int, world: int) -> None:
    """Raises: UserError: a batch of all `world` processes has more images than there are."""
    if len(images) < batch_size * world:
        raise UserError(
            f"loop.batch_size: {batch_size} × {world} process(es) is more than the {len(images)} training images "
            f"there are. Write at most {len(images) // world}."
        )


def _checked(loader: DataLoader, images: Images, bad: BadImages | None = None) -> Iterator[Batch]:
    bad = BadImages(images.max_bad) if bad is None else bad
    try:
        for read in loader:
            if isinstance(read, UserError):
                raise read
            found: Read = read
            bad.add(found.bad)
            yield found.batch(images.batched.device if images.batched else None)
    except (ConnectionError, EOFError) as error:  # killed while it handed a batch over
        raise RuntimeError(f"DataLoader worker is gone: {error}") from error


def load_data(settings: Data, seed: int, views: int | None = None, labels_needed: bool = True) -> DataSource:
    """Open `settings.source` (and `settings.unlabelled`), find images, labels and classes, and split them by `seed`.

    views: number of epochs after which the student's augmented views repeat; None for never.
    labels_needed: False for any images, such as a tree without class folders or a table without a column of labels;
    labels that are there are read.

    Raises:
        UserError: the source, a split, a column or the labels do not fit the recipe.
    """
    opened = read_source(settings, labels_needed)
    (classes, column, _), train, test = opened.classes, opened.train, opened.test
    if test is None:
        train, test = hold_out(train, settings.test_fraction, seed, classes)
    own = train if opened.validation is None else _followed_by(train, opened.validation)
    rows = choose_rows(own.labels, len(train.labels), classes, settings, seed)
    seen = Split(own.images, np.where(np.isin(np.arange(len(own.labels)), rows.labelled), own.labels, NO_LABEL))
    alone = rows.train if settings.images else rows.labelled
    seen_rows, folders = rows.train, [opened.folder]
    if settings.unlabelled is not None:
        more, folder = read_unlabelled(settings)
        seen = _followed_by(seen, Split(more, np.full(len(more), NO_LABEL)))
        seen_rows, folders = np.append(seen_rows, len(own.labels) + np.arange(len(more))), [*folders, folder]
    view, plain = transforms(settings)
    balanced = settings.sampling == "balanced"
    data = DataSource(
        classes=classes,
        train=Images(*seen, seen_rows, view, views, settings.max_bad),
        labelled=Images(*own, rows.labelled, view, None, settings.max_bad, balanced),
        alone=Images(*own, alone, view, None, settings.max_bad, balanced),
        validation=Images(*own, rows.validation, plain),
        test=Images(*test, np.arange(len(test.labels)), plain),
        identity=_identity(classes, own, rows, len(test.labels), settings),
        workers=settings.workers,
        repeats=settings.augmentation.repeats,
        order=fingerprint([classes, own.labels.tolist(), seen.images.stamp(), seen.images.background]),
        buffer=settings.buffer,
        max_bad=settings.max_bad,
        label_column=column,
        folders=tuple(found := [folder for folder in folders if folder is not None]),
        manifest=manifest_of(found),
    )
    _warn_of_order(data, seed)
    return data


def _followed_by(first: Split, second: Split) -> Split:
    """The rows of both, one after the other."""
    return Split(first.images.followed_by(second.images), np.concatenate([first.labels, second.labels]))


def _identity(classes: list[str], own: Split, rows: ChosenRows, tests: int, settings: Data) -> str:
    """Digest of what a training on labels depends on: images, labels, splits and order."""
    images = [own.images.stamp(), own.images.background, tests, settings.copies]
    order = (
        [settings.sampling]
        if settings.buffer is None
        else [settings.sampling, settings.buffer, own.images.ends.tolist()]
    )
    return fingerprint([classes, own.labels.tolist(), rows.labelled.tolist(), rows.validation.tolist(), images, order])


def _warn_of_order(data: DataSource, seed: int) -> None:
    """Warn of shards of few classes that the buffer is too small to mix, and of parquet files too large to be mixed."""
    images, size = data.labelled, len(data.labelled)
    if data.buffer is None and (held := data.train.split.parquet_bytes) > KEPT_BYTES:
        logger.warning(
            f"data.buffer: the parquet files hold {held / 2**30:.1f} GiB, and images in random order are read from all "
            "of them, which is slow. data.buffer=2048 mixes so many images in a row instead, and reads each file once."
        )
    if data.buffer is None or data.buffer >= size:
        return
    order = shuffled(size, seed, 0, images.ends, data.buffer)
    if (share := variety(images.labels[images.rows[order]], data.buffer)) < SORTED:
        logger.warning(
            f"data.buffer: {data.buffer} images in a row have {share:.0%} of the classes that mixed ones would: "
            f"the shards seem to be sorted, and training will suffer. Raise it ({size} mixes all), or mix the shards."
        )


def whole_split(settings: Data, split: str | None) -> tuple[DataSource, str]:
    """All images of one split, not augmented, for evaluation, and its name: every split of the result is this one.

    split: by default `data.test_split`, else `test`, else `validation`, else the first.

    Raises:
        UserError: as for `load_data`.
    """
    name, classes, found = read_split(settings, split or settings.test_split)
    images = Images(*found, np.arange(len(found.labels)), transforms(settings)[1])
    return DataSource(classes, images, images, images, images, images, fingerprint(classes), settings.workers), name
