"""2 · The batch: data sets, transforms, loaders.

Images travel un-normalised: uint8, B×3×H×W. Every network normalises for itself (streams.py). A training batch is a
function of (seed, step) and an image's augmentation a function of (seed, epoch, index), so that neither the number of
workers nor an interruption changes what is seen.
"""

import io
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
from torch.utils.data import DataLoader, Sampler

from meco_timm.errors import UserError, did_you_mean
from meco_timm.randomness import derive, reseed
from meco_timm.reading import fingerprint
from meco_timm.recipe import Data

NO_LABEL = -1


class Batch(NamedTuple):
    """image: uint8, B×3×H×W. label: int64, B, `NO_LABEL` where hidden. row: int64, B, place in the source split."""

    image: Tensor
    label: Tensor
    row: Tensor


class Images(torch.utils.data.Dataset):
    """Rows `rows` of a split, decoded on demand. Asked for (view seed, i) it gives that view, for i the plain image."""

    def __init__(self, split: datasets.Dataset, labels: np.ndarray, rows: np.ndarray, transform: Any):
        self.split, self.labels, self.rows, self.transform = split, labels, rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[Any]) -> list[tuple[Tensor, int, int] | UserError]:
        """All of a batch at once, which `datasets` reads ten times faster than row by row."""
        keys = [key if isinstance(key, tuple) else (None, key) for key in keys]
        rows = [int(self.rows[i]) for _, i in keys]
        stored = self.split[rows]["image"]
        return [self._view(image, row, seed) for image, row, (seed, _) in zip(stored, rows, keys, strict=True)]

    def _view(self, stored: dict[str, Any], row: int, seed: int | None) -> tuple[Tensor, int, int] | UserError:
        try:
            image = _decode(stored)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            name = stored.get("path") or f"row {row}"
            return UserError(f"data.source: {name}: the image cannot be read: {error}. Mend it or take it out.")
        if seed is not None:
            reseed(seed, row)
        return self.transform(image), int(self.labels[row]), row


def _decode(stored: dict[str, Any]) -> Image.Image:
    source = io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"]
    with Image.open(source) as image:
        return image.convert("RGB")


def _collate(items: list[Any]) -> Batch | UserError:
    """Errors are handed over as values: raised in a worker they would reach the user inside a traceback."""
    for item in items:
        if isinstance(item, UserError):
            return item
    images, labels, rows = zip(*items, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(rows))


class BatchStream(Sampler[list[tuple[int, int]]]):
    """Endless shuffled passes over `size` images, cut into batches; every image once per epoch, no short batch.

    Batch s is a function of (seed, s): process `rank` of `world` takes its part of positions [s·B·world, (s+1)·B·world)
    in the row of all epochs' permutations, so 2 processes × B see what 1 process × 2B sees.
    """

    def __init__(self, size: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, world: int = 1):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world
        self._epoch, self._view_seed, self._order = -1, 0, [0]

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.stop):
            first = (step * self.world + self.rank) * self.batch_size
            yield [self._at(position) for position in range(first, first + self.batch_size)]

    def _at(self, position: int) -> tuple[int, int]:
        """(seed of the epoch's views, which image) at a position in the row of all epochs."""
        epoch, i = divmod(position, self.size)
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
            self._order = torch.randperm(self.size, generator=generator).tolist()
            self._epoch, self._view_seed = epoch, derive(self.seed, "view", epoch)
        return self._view_seed, self._order[i]


@dataclass
class DataSource:
    """A data set, split: `train` (all training images), `labelled` (those whose labels may be used), `validation`,
    `test`, and the class names. `identity` changes when the images, labels or splits do."""

    classes: list[str]
    train: Images
    labelled: Images
    validation: Images
    test: Images
    identity: str
    workers: int

    def batches(
        self, images: Images, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Training batches `start` to `stop`; raises `UserError` naming an image that cannot be read."""
        if len(images) < batch_size * world:
            raise UserError(
                f"loop.batch_size: {batch_size} × {world} process(es) is more than the {len(images)} training images "
                f"there are. Write at most {len(images) // world}."
            )
        order = BatchStream(len(images), batch_size, seed, start, stop, rank, world)
        workers = self.workers if stop - start > 1 else 0
        return _checked(self._loader(images, batch_sampler=order, num_workers=workers))

    def in_order(self, images: Images, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Every `world`-th image from `rank` on, once and in order, for evaluation."""
        mine = range(rank, len(images), world)
        workers = self.workers if len(mine) > 2000 else 0  # starting workers costs more than decoding a few images
        return _checked(self._loader(images, batch_size=batch_size, sampler=mine, num_workers=workers))

    def _loader(self, images: Images, **options: Any) -> DataLoader:
        pin = torch.cuda.is_available()
        return DataLoader(images, collate_fn=_collate, pin_memory=pin, **options)


def _checked(loader: DataLoader) -> Iterator[Batch]:
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def load_data(settings: Data, seed: int) -> DataSource:
    """Open `settings.source`, find its columns and classes, and split it.

    Raises:
        UserError: the source, a split, a column or the labels are not what the recipe says.
    """
    source = _open(settings)
    train_split, found_test = _choose_splits(source, settings)
    train_split, classes, labels = _columns(train_split, settings)
    _check_labels(labels, classes, settings.train_split)
    if found_test is None:
        size = round(settings.test_fraction * len(labels))
        held_out = _stratified(labels, np.arange(len(labels)), size, derive(seed, "test"), leave_one=True)
        rest = np.setdiff1d(np.arange(len(labels)), held_out)
        test_split, test_classes, test_labels = train_split.select(held_out), classes, labels[held_out]
        train_split, labels = train_split.select(rest), labels[rest]
    else:
        test_split, test_classes, test_labels = _columns(found_test, settings, classes)
    if classes != test_classes:
        raise UserError(
            f"data.source: the training split has {len(classes)} classes, the test split {len(test_classes)}: "
            f"{', '.join(sorted(set(classes) ^ set(test_classes))[:5])} stand only in one of them."
        )
    _check_labels(test_labels, classes, "test", every_class=False)
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
    parts = [classes, labels.tolist(), labelled.tolist(), validation.tolist(), len(test_labels), _sample(train_split)]
    return DataSource(
        classes=classes,
        train=Images(train_split, hidden, train, view),
        labelled=Images(train_split, labels, labelled, view),
        validation=Images(train_split, labels, validation, plain),
        test=Images(test_split, test_labels, np.arange(len(test_labels)), plain),
        identity=fingerprint(parts),
        workers=settings.workers,
    )


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
    return view, create_transform(**common, is_training=False)


def _open(settings: Data) -> datasets.DatasetDict:
    """All splits of the source: a folder (class folders or parquet) or a Hub id; `datasets` tells them apart."""
    folder = Path(settings.source)
    looks_local = settings.source.startswith((".", "/", "~")) or settings.source.count("/") != 1
    if folder.is_dir():
        _check_class_folders(folder)
    elif looks_local or folder.exists() or folder.parent.is_dir():
        near = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"data.source: there is no folder {folder}.{did_you_mean(folder, near)}")
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(str(folder.resolve()) if folder.is_dir() else settings.source)
    except Exception as error:  # the library raises many kinds; all of them mean that the source cannot be used
        raise UserError(f"data.source: {settings.source}: cannot be loaded: {_last_line(error)}") from error


def _last_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause).strip() else cause!r}"


def _check_class_folders(folder: Path) -> None:
    """`datasets` drops an empty class folder silently, and with it a class; say so instead."""
    if any(folder.rglob("*.parquet")):
        return
    splits = [p for p in folder.iterdir() if p.is_dir() and p.name in ("train", "test", "validation", "val")]
    for split in splits or [folder]:
        classes = sorted(p for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))
        if len(classes) < 2:
            raise UserError(f"data.source: {split} holds {len(classes)} class folder(s); at least 2 are needed.")
        for name in classes:
            if not any(p.is_file() for p in name.rglob("*")):
                raise UserError(f"data.source: the class folder {name} is empty. Fill it or take it away.")


def _choose_splits(source: datasets.DatasetDict, settings: Data) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Training and test split by name; None where the test images must be taken out of the training split."""
    names = list(source)
    for key, name in (("train_split", settings.train_split), ("test_split", settings.test_split)):
        if name is not None and name not in names:
            raise UserError(f"data.{key}: {name!r} is not a split of {settings.source}, which has {', '.join(names)}.")
    train = source[settings.train_split]
    found = settings.test_split or next((n for n in ("test", "validation") if n in names), None)
    if found is not None and found != settings.train_split:
        return train, source[found]
    if not settings.test_fraction:
        raise UserError("data.test_fraction: the source has no test split, so a share of its images must be held out.")
    return train, None


def _columns(
    split: datasets.Dataset, settings: Data, known: list[str] | None = None
) -> tuple[datasets.Dataset, list[str], np.ndarray]:
    """The split with its image column as `image` (undecoded), its class names and its labels.

    `known` are the classes of a column that does not name its own: a test split need not show all of them.
    """
    features = split.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    image = _one_column("image_column", settings.image_column, images, list(features))
    classed = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    plain = [name for name in ("label", "labels", "class", "cls", "target") if name in features]
    label = _one_column("label_column", settings.label_column, classed or plain, list(features))
    kind = features[label]
    if isinstance(kind, datasets.ClassLabel) or "int" in getattr(kind, "dtype", ""):
        labels = np.asarray(split.with_format("numpy")[label][:], dtype=np.int64)
        named = kind.names if isinstance(kind, datasets.ClassLabel) else known
        names = list(named or map(str, range(labels.max(initial=-1) + 1)))
    else:
        words = [str(word) for word in split.with_format(None)[label][:]]
        names = sorted({*words, *(known or [])})
        place = {name: i for i, name in enumerate(names)}
        labels = np.array([place[word] for word in words], dtype=np.int64)
    split = split.select_columns([image])
    split = split if image == "image" else split.rename_column(image, "image")
    return split.cast_column("image", datasets.Image(decode=False)), names, labels


def _one_column(key: str, named: str | None, found: list[str], columns: list[str]) -> str:
    if named is not None:
        if named not in columns:
            raise UserError(f"data.{key}: there is no column {named!r}; the data set has {', '.join(columns)}.")
        return named
    if len(found) != 1:
        what = "none was found" if not found else f"several fit ({', '.join(found)})"
        raise UserError(f"data.{key}: {what}; name one of the columns {', '.join(columns)}.")
    return found[0]


def _check_labels(labels: np.ndarray, classes: list[str], split: str, every_class: bool = True) -> None:
    if len(labels) == 0:
        raise UserError(f"data.source: the {split} split has no images.")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise UserError(
            f"data.source: labels out of range: row {wrong[0]} of the {split} split has label {labels[wrong[0]]}, "
            f"but there are {len(classes)} classes (0 to {len(classes) - 1}); {len(wrong)} such row(s)."
        )
    counts = np.bincount(labels, minlength=len(classes))
    if len(classes) < 2:
        raise UserError(f"data.source: only one class ({classes[0]}); at least 2 are needed.")
    if every_class and (counts == 0).any():
        empty = [classes[i] for i in np.flatnonzero(counts == 0)[:5]]
        raise UserError(f"data.source: empty class(es): {', '.join(empty)}. The {split} split has no image of them.")


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
