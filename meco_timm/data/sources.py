"""2 · Where images and labels come from: class folders, parquet files, tars or a Hub id, opened and checked.

`datasets` finds the files and their splits; it also reads them, unless they are read in place (tables.py).
"""

import os
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets
import numpy as np
from huggingface_hub import hf_hub_download

from meco_timm.common import UserError, did_you_mean
from meco_timm.data.remote import refusal
from meco_timm.data.shards import Shards
from meco_timm.data.tables import Table, open_table
from meco_timm.data.tars import IMAGES
from meco_timm.recipe import Data

SPLITS = ("train", "test", "validation", "val")  # names of folders
Rows: TypeAlias = datasets.Dataset | Shards  # `rows[list of int]["image"]` gives undecoded images


class Split(NamedTuple):
    """labels: int64, one per row."""

    images: Rows
    labels: np.ndarray


class Located(NamedTuple):
    """Files of a split that are to be read in place; kind as `datasets` calls it."""

    kind: str
    files: list[str]

    def table(self, settings: Data) -> Table:
        return open_table(self.kind, self.files, settings.image_column, settings.label_column)


Source: TypeAlias = dict[str, datasets.Dataset] | dict[str, Located]


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


def read_unlabelled(settings: Data) -> Rows:
    """The images of `data.unlabelled`: its training split, or its first.

    Raises:
        UserError: it cannot be opened, or holds no images.
    """
    settings = settings.model_copy(update={"source": settings.unlabelled, "label_column": None})
    source = _open(settings, "unlabelled")
    found: Any = source.get(settings.train_split) or next(iter(source.values()))
    split = found.table(settings) if isinstance(found, Located) else found
    images = _images(split, _image_column(split.features, settings), settings)
    if len(images) == 0:
        raise UserError(f"data.unlabelled: {settings.source} has no images.")
    return images


def _open(settings: Data, key: str = "source") -> Source:
    """All splits of a folder or Hub id; `datasets` tells which it is and what lies in it."""
    folder = Path(settings.source)
    looks_local = settings.source.startswith((".", "/", "~")) or settings.source.count("/") != 1
    if folder.is_dir():
        if key == "source":
            _check_class_folders(folder)
    elif looks_local or folder.exists() or folder.parent.is_dir():
        near = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"data.{key}: there is no folder {folder}.{did_you_mean(folder, near)}")
    if settings.streaming and folder.is_dir() and not _has_shards(folder):
        return _image_files(folder)
    datasets.disable_progress_bars()
    name = str(folder.resolve()) if folder.is_dir() else settings.source
    try:
        if not settings.streaming:
            return datasets.load_dataset(name, settings.subset)
        builder = datasets.load_dataset_builder(name, settings.subset)
        kind = type(builder).__module__.rpartition(".")[2]
        return {str(split): Located(kind, list(files)) for split, files in (builder.config.data_files or {}).items()}
    except Exception as error:  # the library raises many kinds; all of them mean that the source cannot be used
        told = refusal(error, settings.source) or f"{settings.source}: cannot be loaded: {_last_line(error)}"
        raise UserError(f"data.{key}: {told}") from error


def _has_shards(folder: Path) -> bool:
    endings = (".parquet", ".tar", ".tar.gz")
    return any(name.endswith(endings) for _, _, names in os.walk(folder) for name in names)


def _image_files(folder: Path) -> dict[str, Located]:
    """Class folders as `datasets` has them, in its order; it takes milliseconds for each file to find them."""
    splits = {split: folder / split for split in SPLITS if (folder / split).is_dir()} or {"train": folder}
    found = {}
    for split, place in splits.items():
        files = (os.path.join(at, name) for at, _, names in os.walk(place.resolve()) for name in names)
        images = sorted(f for f in files if f.rpartition(".")[2].lower() in IMAGES and not Path(f).name.startswith("."))
        found["validation" if split == "val" else split] = Located("imagefolder", images)
    return found


def _last_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause).strip() else cause!r}"


def _check_class_folders(folder: Path) -> None:
    """`datasets` drops an empty class folder silently, and with it a class; say so instead."""
    if _has_shards(folder):
        return
    splits = [p for p in folder.iterdir() if p.is_dir() and p.name in SPLITS]
    for split in splits or [folder]:
        classes = sorted(p for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))
        if len(classes) < 2:
            raise UserError(f"data.source: {split} holds {len(classes)} class folder(s); at least 2 are needed.")
        for name in classes:
            if not any(p.is_file() for p in name.rglob("*")):
                raise UserError(f"data.source: the class folder {name} is empty. Fill it or take it away.")


def _choose_splits(source: Source, settings: Data) -> tuple[Any, Any]:
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


def _columns(found: Any, settings: Data, known: list[str] | None = None) -> tuple[Split, list[str]]:
    """The split with its image column as `image` (undecoded), and its class names.

    `known` are the classes of a column that does not name its own: a test split need not show all of them.
    """
    split = found.table(settings) if isinstance(found, Located) else found
    features = split.features
    image, label = _image_column(features, settings), _label_column(features, settings)
    kind, values = features[label], _values(split, label)
    if isinstance(kind, dict):  # the json of a tar
        kind, values = kind["label"], [value["label"] for value in values]
    if isinstance(kind, datasets.ClassLabel) or "int" in getattr(kind, "dtype", ""):
        labels = np.asarray(values, dtype=np.int64)
        named = kind.names if isinstance(kind, datasets.ClassLabel) else known or _class_file(settings.source)
        names = list(named or map(str, range(labels.max(initial=-1) + 1)))
    else:
        words = [str(word) for word in values]
        names = sorted({*words, *(known or [])})
        place = {name: i for i, name in enumerate(names)}
        labels = np.array([place[word] for word in words], dtype=np.int64)
    return Split(_images(split, image, settings), labels), names


def _image_column(features: dict[str, Any], settings: Data) -> str:
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    return _one_column("image_column", settings.image_column, images, list(features))


def _label_column(features: dict[str, Any], settings: Data) -> str:
    classed = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    plain: list[str] = [name for name in ("label", "labels", "class", "cls", "target") if name in features]
    told = [name for name, kind in features.items() if name == "json" and isinstance(kind, dict) and "label" in kind]
    return _one_column("label_column", settings.label_column, classed or plain or told, list(features))


def _values(split: datasets.Dataset | Table, column: str) -> Any:
    if isinstance(split, Table):
        return split.values(column)
    numbers = "int" in getattr(split.features[column], "dtype", "")
    return split.with_format("numpy" if numbers else None)[column][:]


def _images(split: datasets.Dataset | Table, column: str, settings: Data) -> Rows:
    if isinstance(split, Table):
        return split.images(column, settings.buffer)
    split = split.select_columns([column])
    split = split if column == "image" else split.rename_column(column, "image")
    return split.cast_column("image", datasets.Image(decode=False))


def _class_file(source: str) -> list[str] | None:
    """Class names of a file `classes.txt`, one a line, beside images whose labels are numbers."""
    file = Path(source) / "classes.txt"
    if not Path(source).is_dir():
        try:
            file = Path(hf_hub_download(source, "classes.txt", repo_type="dataset"))
        except OSError:
            return None
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else None


def _one_column(key: str, named: str | None, found: list[str], columns: list[str]) -> str:
    if named is not None:
        if named not in columns:
            raise UserError(f"data.{key}: there is no column {named!r}; the data set has {', '.join(columns)}.")
        return named
    if len(found) != 1:
        what = "none was found" if not found else f"several fit ({', '.join(found)})"
        hint = " Images without labels are for data.unlabelled, beside labelled ones." if key == "label_column" else ""
        raise UserError(f"data.{key}: {what}; name one of the columns {', '.join(columns)}.{hint}")
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
