"""A data set with its splits, and the loaders that make batches of it.

Images are not normalised: uint8, B×3×H×W. Each network normalises for itself (networks/streams.py). A training batch
is a function of (seed, step), and an image's augmentation of (seed, view, row), with one view per epoch. So neither the
number of loader processes nor an interruption changes the batches. Views can repeat after some epochs, so that teacher
outputs can be stored (zoo/store.py).
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from meco_timm.common import UserError, get_logger
from meco_timm.data.folders import Folder
from meco_timm.data.identity import sample
from meco_timm.data.images import BadImages, Batch, Images, Read, collate, transforms
from meco_timm.data.manifest import Manifest, manifest_of
from meco_timm.data.shards import Shards
from meco_timm.data.sources import Rows, read_source, read_split, read_unlabelled
from meco_timm.data.splitting import choose_rows, hold_out
from meco_timm.data.views import BatchStream, ChosenViews, Passes, Steps, shuffled, variety
from meco_timm.recipe import Data, fingerprint

logger = get_logger(__name__)

NO_LABEL = -1
SORTED = 0.7  # share of classes in a window below which shards seem to be sorted by class


def outlive_signals(worker: int) -> None:
    """Keep a loader process alive when Ctrl-C or Slurm signals the whole group: the main process decides when to stop.

    A loader ignores SIGINT. The first SIGTERM ends it after a minute, the second, of the main process, at once.
    """

    def survive(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        signal.alarm(60)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, survive)


@dataclass
class DataSource:
    """A data set with its splits.

    classes: K names. train: images that the student learns from. labelled: images whose labels teachers are trained on.
    alone: images whose labels the student alone is trained on. validation, test: held-out images. identity: digest of
    the labelled images, their splits and their order. workers: loader processes per device. repeats: views of an image
    in one batch. order: digest of all images and their rows, whatever the splits. buffer: images of shards that are
    mixed together. max_bad: unreadable training images that are allowed. folders: what each local folder contains.
    manifest: the files of the data set; empty for data of the Hub.
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
    buffer: int = 0
    max_bad: int = 0
    folders: tuple[Folder, ...] = ()
    manifest: Manifest = field(default_factory=Manifest)

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
        rows = {"train": self.train.rows[self.train.rows < len(images.labels)], "labelled": images.rows}
        counts = {name: np.bincount(images.labels[its], minlength=size) for name, its in rows.items()}
        for name, split in (("validation", self.validation), ("test", self.test)):
            counts[name] = np.bincount(split.labels[split.rows], minlength=size)
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


def load_data(settings: Data, seed: int, views: int | None = None) -> DataSource:
    """Open `settings.source` (and `settings.unlabelled`), find images, labels and classes, and split them by `seed`.

    views: number of epochs after which the student's augmented views repeat; None for never.

    Raises:
        UserError: the source, a split, a column or the labels do not fit the recipe.
    """
    classes, train, own_validation, test, *folders = read_source(settings)
    if test is None:
        train, test = hold_out(train, settings.test_fraction, seed, classes)
    images, labels = train
    if own_validation is not None:
        images = _followed_by(images, own_validation.images)
        labels = np.concatenate([labels, own_validation.labels])
    learns, labelled, validation = choose_rows(labels, len(train.labels), classes, settings, seed)
    learns_labels = learns if settings.images else labelled
    hidden = np.full_like(labels, NO_LABEL)
    hidden[labelled] = labels[labelled]
    truth, its_sample = labels.tolist(), sample(images)
    parts = [classes, truth, labelled.tolist(), validation.tolist(), len(test.labels), its_sample]
    parts += [settings.buffer, images.ends.tolist()] if isinstance(images, Shards) else []
    balanced = settings.sampling == "balanced"
    parts += ["balanced"] * balanced
    everything, order = images, [classes, truth, its_sample]
    if settings.unlabelled is not None:
        more, more_folder = read_unlabelled(settings)
        folders.append(more_folder)
        everything, order = _followed_by(images, more), [*order, len(more), sample(more)]
        learns = np.concatenate([learns, len(images) + np.arange(len(more))])
        hidden = np.concatenate([hidden, np.full(len(more), NO_LABEL)])
    view, plain = transforms(settings)
    taught = Images(images, labels, labelled, view, max_bad=settings.max_bad, balanced=balanced)
    _warn_of_sorted(taught, settings.buffer, seed)
    return DataSource(
        classes=classes,
        train=Images(everything, hidden, learns, view, views, settings.max_bad),
        labelled=taught,
        alone=Images(images, labels, learns_labels, view, max_bad=settings.max_bad, balanced=balanced),
        validation=Images(images, labels, validation, plain),
        test=Images(*test, np.arange(len(test.labels)), plain),
        identity=fingerprint(parts),
        workers=settings.workers,
        repeats=settings.augmentation.repeats,
        order=fingerprint(order),
        buffer=settings.buffer,
        max_bad=settings.max_bad,
        folders=tuple(places := [folder for folder in folders if folder is not None]),
        manifest=manifest_of(places),
    )


def _warn_of_sorted(images: Images, buffer: int, seed: int) -> None:
    """Say so where shards hold few classes each, and the buffer is too small to mix them."""
    size = len(images)
    if images.ends is None or buffer >= size:
        return
    share = variety(images.labels[images.rows[shuffled(size, seed, 0, images.ends, buffer)]], buffer)
    if share < SORTED:
        logger.warning(
            f"data.buffer: {buffer} images in a row have {share:.0%} of the classes that mixed ones would: "
            f"the shards seem to be sorted, and training will suffer. Raise it ({size} mixes all), or mix the shards."
        )


def _followed_by(images: Rows, more: Rows) -> Rows:
    """Both in a row; they are of one kind, since `data.streaming` holds for both."""
    if isinstance(images, Shards) and isinstance(more, Shards):
        return images.followed_by(more)
    return datasets.concatenate_datasets([images, more])


def whole_split(settings: Data, split: str | None) -> DataSource:
    """All images of one split, not augmented, for evaluation: every split of the result is this one.

    split: by default `data.test_split`, else `test`, else `validation`, else the first.

    Raises:
        UserError: as for `load_data`.
    """
    classes, found = read_split(settings, split or settings.test_split)
    images = Images(*found, np.arange(len(found.labels)), transforms(settings)[1])
    return DataSource(classes, images, images, images, images, images, fingerprint(classes), settings.workers)
