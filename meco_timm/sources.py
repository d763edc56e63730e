"""2 · Where images and labels come from: class folders, parquet files or a Hub id, opened by `datasets` and checked."""

from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np

from meco_timm.errors import UserError, did_you_mean
from meco_timm.sections import Data


class Split(NamedTuple):
    """images: rows with an undecoded `image`. labels: int64, one per row."""

    images: datasets.Dataset
    labels: np.ndarray


def read_source(settings: Data) -> tuple[list[str], Split, Split | None]:
    """(class names, training split, test split or None where the source has none).

    Raises:
        UserError: the source cannot be opened, or a split, a column or the labels are not what the recipe says.
    """
    images, found_test = _choose_splits(_open(settings), settings)
    train, classes = _columns(images, settings)
    _check_labels(train.labels, classes, settings.train_split)
    if found_test is None:
        return classes, train, None
    test, test_classes = _columns(found_test, settings, classes)
    if classes != test_classes:
        raise UserError(
            f"data.source: the training split has {len(classes)} classes, the test split {len(test_classes)}: "
            f"{', '.join(sorted(set(classes) ^ set(test_classes))[:5])} stand only in one of them."
        )
    _check_labels(test.labels, classes, "test", every_class=False)
    return classes, train, test


def read_split(settings: Data, split: str | None) -> tuple[list[str], Split]:
    """(class names, the images of one split): the one named, else `test`, else `validation`, else the first.

    Raises:
        UserError: as for `read_source`.
    """
    source = _open(settings)
    name = split or next((name for name in ("test", "validation") if name in source), next(iter(source)))
    if name not in source:
        raise UserError(
            f"data.test_split: {name!r} is not a split of {settings.source}, which has {', '.join(source)}."
        )
    found, classes = _columns(source[name], settings)
    _check_labels(found.labels, classes, name, every_class=False)
    return classes, found


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
        return datasets.load_dataset(str(folder.resolve()) if folder.is_dir() else settings.source, settings.subset)
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


def _columns(split: datasets.Dataset, settings: Data, known: list[str] | None = None) -> tuple[Split, list[str]]:
    """The split with its image column as `image` (undecoded), and its class names.

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
    return Split(split.cast_column("image", datasets.Image(decode=False)), labels), names


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
