"""2 · The batch: data sets, transforms, loaders.

Images travel un-normalised: uint8, B×3×H×W. Every network normalises for itself (streams.py). A training batch is a
function of (seed, step) and an image's augmentation a function of (seed, view, index), one view per epoch, so that
neither the number of workers nor an interruption changes what is seen. Views may repeat after some epochs: then what
the teachers say of them can be kept (store.py).
"""

import io
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader

from meco_timm.batches import PLAIN, BatchStream, ChosenViews, View
from meco_timm.errors import UserError
from meco_timm.randomness import derive, reseed
from meco_timm.reading import fingerprint
from meco_timm.sections import Data
from meco_timm.sources import Split, read_source, read_split

NO_LABEL = -1


class Batch(NamedTuple):
    """image: uint8, B×3×H×W. label: int64, B, `NO_LABEL` where hidden. row: int64, B, place in the source split.
    view: int64, B, number of the augmented view, -1 of a plain image."""

    image: Tensor
    label: Tensor
    row: Tensor
    view: Tensor


class Images(torch.utils.data.Dataset):
    """Rows `rows` of a split, decoded on demand. Asked for (view, i) it gives that view, for i the plain image.

    `views`: after so many epochs of training its views repeat; None for never.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        labels: np.ndarray,
        rows: np.ndarray,
        transform: Any,
        views: int | None = None,
    ):
        self.split, self.labels, self.rows, self.transform, self.views = split, labels, rows, transform, views

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[Any]) -> list[tuple[Tensor, int, int, int] | UserError]:
        """All of a batch at once, which `datasets` reads ten times faster than row by row."""
        keys = [key if isinstance(key, tuple) else (PLAIN, key) for key in keys]
        return self.at([int(self.rows[i]) for _, i in keys], [view for view, _ in keys])

    def at(self, rows: list[int], views: list[View]) -> list[tuple[Tensor, int, int, int] | UserError]:
        """The same by rows of the split."""
        stored = self.split[rows]["image"]
        return [self._view(*item) for item in zip(stored, rows, views, strict=True)]

    def _view(self, stored: dict[str, Any], row: int, view: View) -> tuple[Tensor, int, int, int] | UserError:
        try:
            image = _decode(stored)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            name = stored.get("path") or f"row {row}"
            return UserError(f"data.source: {name}: the image cannot be read: {error}. Mend it or take it out.")
        if view.number >= 0:
            reseed(view.seed, row)
        return self.transform(image), int(self.labels[row]), row, view.number


def _decode(stored: dict[str, Any]) -> Image.Image:
    source = io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"]
    with Image.open(source) as image:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy


def _collate(items: list[Any]) -> Batch | UserError:
    """Errors are handed over as values: raised in a worker they would reach the user inside a traceback."""
    for item in items:
        if isinstance(item, UserError):
            return item
    images, *numbers = zip(*items, strict=True)
    return Batch(torch.stack(images), *map(torch.tensor, numbers))


def _outlive_signals(worker: int) -> None:
    """Ctrl-C and Slurm reach the whole group of processes, loaders included; when to stop is the main one's affair.

    A loader hence survives SIGTERM for a minute, or until the second, which is the main process clearing up.
    """

    def survive(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        signal.alarm(60)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, survive)


@dataclass
class DataSource:
    """A data set, split: `train` (images the student learns from), `labelled` (those whose labels may be used),
    `validation`, `test`, and the class names. `identity` changes when the images, labels or splits do, `order` when the
    images or their order do, whatever the splits."""

    classes: list[str]
    train: Images
    labelled: Images
    validation: Images
    test: Images
    identity: str
    workers: int
    repeats: int = 1
    order: str = ""

    def batches(
        self, images: Images, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Training batches `start` to `stop`; raises `UserError` naming an image that cannot be read."""
        check_batch(images, batch_size, world)
        order = BatchStream(len(images), batch_size, seed, start, stop, rank, world, self.repeats, images.views)
        workers = self.workers if stop - start > 1 else 0
        return _checked(self._loader(images, batch_sampler=order, num_workers=workers))

    def chosen(self, images: Images, views: Tensor, rows: Tensor, batch_size: int, seed: int) -> Iterator[Batch]:
        """Views of images by number and row, N each, as `batches` with this seed shows them."""
        places = torch.from_numpy(images.rows.searchsorted(rows.numpy()))
        order = ChosenViews(torch.stack([views, places], 1), batch_size, seed, self.repeats)
        workers = self.workers if len(order) > 1 else 0
        return _checked(self._loader(images, batch_sampler=order, num_workers=workers))

    def in_order(self, images: Images, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Every `world`-th image from `rank` on, once and in order, for evaluation."""
        mine = range(rank, len(images), world)
        workers = self.workers if len(mine) > 2000 else 0  # starting workers costs more than decoding a few images
        return _checked(self._loader(images, batch_size=batch_size, sampler=mine, num_workers=workers))

    def _loader(self, images: Images, **options: Any) -> DataLoader:
        pin = torch.cuda.is_available()
        return DataLoader(images, collate_fn=_collate, pin_memory=pin, worker_init_fn=_outlive_signals, **options)


def check_batch(images: Images, batch_size: int, world: int) -> None:
    """Refuse a batch of more images than there are."""
    if len(images) < batch_size * world:
        raise UserError(
            f"loop.batch_size: {batch_size} × {world} process(es) is more than the {len(images)} training images "
            f"there are. Write at most {len(images) // world}."
        )


def _checked(loader: DataLoader) -> Iterator[Batch]:
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except (ConnectionError, EOFError) as error:  # killed while it handed a batch over
        raise RuntimeError(f"DataLoader worker is gone: {error}") from error


def load_data(settings: Data, seed: int, views: int | None = None) -> DataSource:
    """Open `settings.source`, find its columns and classes, and split it. `views`: the student's repeat so often.

    Raises:
        UserError: the source, a split, a column or the labels are not what the recipe says.
    """
    classes, (images, labels), test = read_source(settings)
    if test is None:
        size = round(settings.test_fraction * len(labels))
        held_out = _stratified(labels, np.arange(len(labels)), size, derive(seed, "test"), leave_one=True)
        rest = np.setdiff1d(np.arange(len(labels)), held_out)
        test = Split(images.select(held_out), labels[held_out])
        images, labels = images.select(rest), labels[rest]
    rows = np.arange(len(labels))
    size = round(settings.validation * len(rows))
    validation = _stratified(labels, rows, size, derive(seed, "validation"), leave_one=True)
    train = np.setdiff1d(rows, validation)
    labelled = train
    if settings.labelled is not None:
        if not len(classes) <= settings.labelled <= len(train):
            raise UserError(
                f"data.labelled: {settings.labelled} must lie between {len(classes)} (one per class) and "
                f"{len(train)} (the training images without the validation split)."
            )
        labelled = _stratified(labels, train, settings.labelled, derive(seed, "labelled"))
    hidden = np.full_like(labels, NO_LABEL)
    hidden[labelled] = labels[labelled]
    view, plain = _transforms(settings)
    truth, sample = labels.tolist(), _sample(images)
    parts = [classes, truth, labelled.tolist(), validation.tolist(), len(test.labels), sample]
    return DataSource(
        classes=classes,
        train=Images(images, hidden, train if settings.student_sees == "all" else labelled, view, views),
        labelled=Images(images, labels, labelled, view),
        validation=Images(images, labels, validation, plain),
        test=Images(*test, np.arange(len(test.labels)), plain),
        identity=fingerprint(parts),
        workers=settings.workers,
        repeats=settings.augmentation.repeats,
        order=fingerprint([classes, truth, sample]),
    )


def whole_split(settings: Data, split: str | None) -> DataSource:
    """All images of one split, plain, for evaluation: each part of the `DataSource` is that split.

    Raises:
        UserError: as for `load_data`.
    """
    classes, found = read_split(settings, split or settings.test_split)
    images = Images(*found, np.arange(len(found.labels)), _transforms(settings)[1])
    return DataSource(classes, images, images, images, images, fingerprint(classes), settings.workers)


def _transforms(settings: Data) -> tuple[Any, Any]:
    """timm's transforms for training and evaluation, both ending in uint8 3×H×W."""
    common: dict[str, Any] = {
        "input_size": settings.image_size,
        "interpolation": settings.interpolation,
        "crop_pct": settings.crop_pct,
        "normalize": False,
    }
    a = settings.augmentation
    view = create_transform(
        **common,
        is_training=True,
        train_crop_mode=a.crop_mode,
        scale=tuple(a.scale),
        ratio=tuple(a.ratio),
        hflip=a.hflip,
        vflip=a.vflip,
        color_jitter=a.color_jitter or None,
        auto_augment=a.auto_augment,
    )
    transforms = view, create_transform(**common, is_training=False)
    for transform in transforms:
        transform.transforms[-1] = _as_tensor
    return transforms


def _as_tensor(image: Image.Image) -> Tensor:
    """uint8, 3×H×W, as torchvision's: of lines, not pixels, which a batch is put together from a third faster."""
    width, height = image.size
    lines = torch.frombuffer(bytearray(image.tobytes("raw", "RGB;L")), dtype=torch.uint8)
    return lines.view(height, 3, width).permute(1, 0, 2)


def _stratified(labels: np.ndarray, rows: np.ndarray, size: int, seed: int, leave_one: bool = False) -> np.ndarray:
    """`size` of `rows`, sorted, every class in its proportion and none missing if `size` allows; seeded.

    `leave_one`: the last image of a class is taken last, so that the rest has one of each class.
    """
    if size == 0:
        return rows[:0]
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(rows)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels[rows])
    rank_in_class = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # The k-th image of a class of n stands at share (k + ½)/n: the first `size` by share are evenly drawn from all.
    share = (rank_in_class + 0.5) / np.repeat(sizes, sizes)
    share[rank_in_class == 0] -= 1 if size >= np.count_nonzero(sizes) else 0
    if leave_one:
        share[rank_in_class == np.repeat(sizes, sizes) - 1] = 2
    return np.sort(by_class[np.argsort(share, kind="stable")[:size]])


def _sample(split: datasets.Dataset) -> list[str]:
    """Names for 64 images spread over the split: enough to tell another data set, cheap for a large one."""
    rows = np.linspace(0, len(split) - 1, num=min(64, len(split))).astype(int)
    stored = (split[int(row)]["image"] for row in rows)
    return [fingerprint((s["bytes"] or Path(s["path"]).read_bytes()).hex()) for s in stored]
