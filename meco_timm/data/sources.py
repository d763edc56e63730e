"""2 · Where images and labels come from: class folders, parquet files, tars or a Hub id, opened and checked.

A folder of image files is read by folders.py. `datasets` finds the files and splits of all other sources; it also reads
them, unless they are read in place (tables.py).
"""

from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets
import numpy as np
from huggingface_hub import hf_hub_download

from meco_timm.common import UserError, did_you_mean, located
from meco_timm.data.folders import Folder, read_folder, split_name
from meco_timm.data.manifest import Manifest, manifest_of
from meco_timm.data.remote import refusal
from meco_timm.data.shards import Shards
from meco_timm.data.tables import Table, file_table, open_table
from meco_timm.networks import read_class_names
from meco_timm.recipe import Data

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


class Source(NamedTuple):
    """All splits of a source by name; `folder`: what lies in a folder on this machine."""

    splits: dict[str, Any]  # Dataset, Located or Table
    folder: Folder | None = None


class Opened(NamedTuple):
    """The splits that a run uses. validation: of a folder that has it beside a test split. test: None where the source
    has none."""

    classes: list[str]
    train: Split
    validation: Split | None
    test: Split | None
    folder: Folder | None


def read_source(settings: Data) -> Opened:
    """The images and labels of `data.source`.

    Raises:
        UserError: the source cannot be opened, or a split, a column or the labels are not what the recipe says.
    """
    source = _open(settings)
    names = _choose_splits(source, settings)
    train, classes = _columns(source.splits[names["train"]], settings)
    _check_labels(train.labels, classes, settings.train_split)
    others: dict[str, Split | None] = {"validation": None, "test": None}
    for role in others.keys() & names.keys():
        split, its_classes = _columns(source.splits[names[role]], settings, classes)
        if classes != its_classes:
            raise UserError(
                f"data.source: the training split has {len(classes)} classes, the {role} split {len(its_classes)}: "
                f"{', '.join(sorted(set(classes) ^ set(its_classes))[:5])} stand only in one of them."
            )
        _check_labels(split.labels, classes, role, every_class=False)
        others[role] = split
    return Opened(classes, train, others["validation"], others["test"], source.folder)


def read_split(settings: Data, split: str | None) -> tuple[list[str], Split]:
    """(class names, the images of one split): the one named, else `test`, else `validation`, else the first.

    Raises:
        UserError: as for `read_source`.
    """
    source = _open(settings)
    names = list(source.splits)
    name = _named(source, split) if split else next((n for n in ("test", "validation") if n in names), names[0])
    if name not in names:
        raise UserError(f"data.test_split: {name!r} is not a split of {settings.source}, which has {', '.join(names)}.")
    found, classes = _columns(source.splits[name], settings)
    _check_labels(found.labels, classes, name, every_class=False)
    return classes, found


def read_unlabelled(settings: Data) -> tuple[Rows, Folder | None]:
    """The images of `data.unlabelled`: its training split, or its first.

    Raises:
        UserError: it cannot be opened, or holds no images.
    """
    settings = settings.model_copy(update={"source": settings.unlabelled, "label_column": None})
    source = _open(settings, "unlabelled")
    name = _named(source, settings.train_split)
    found: Any = source.splits.get(name) or next(iter(source.splits.values()))
    split = found.table(settings) if isinstance(found, Located) else found
    images = _images(split, _image_column(split.features, settings), settings)
    if len(images) == 0:
        raise UserError(f"data.unlabelled: {settings.source} has no images.")
    return images, source.folder


def read_manifest(settings: Data) -> Manifest:
    """The files that local data consist of, as they are now; empty for data of the Hub, or that are not there."""
    places = {"source": settings.source, "unlabelled": settings.unlabelled}
    local = {key: Path(place) for key, place in places.items() if place and Path(place).is_dir()}
    if "source" not in local:
        return Manifest()
    return manifest_of([read_folder(place, settings.label_column, key) for key, place in local.items()])


def _open(settings: Data, key: str = "source") -> Source:
    """All splits of a folder or Hub id."""
    folder = Path(settings.source)
    looks_local = settings.source.startswith((".", "/", "~")) or settings.source.count("/") != 1
    if not folder.is_dir() and (looks_local or folder.exists() or folder.parent.is_dir()):
        near = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"data.{key}: there is no folder {located(folder)}.{did_you_mean(folder, near)}")
    if not folder.is_dir():
        return Source(_open_with_datasets(settings, settings.source, key))
    found = read_folder(folder, settings.label_column, key)
    tables = {split: file_table(found, split, settings.streaming) for split in found.splits}
    return Source(tables or _open_with_datasets(settings, found.root, key), found)


def _open_with_datasets(settings: Data, name: str, key: str) -> dict[str, Any]:
    """Splits of a Hub id, or of a folder of parquet files, Arrow files or tars."""
    datasets.disable_progress_bars()
    try:
        if not settings.streaming:
            return dict(datasets.load_dataset(name, settings.subset))
        builder = datasets.load_dataset_builder(name, settings.subset)
        kind = type(builder).__module__.rpartition(".")[2]
        return {str(split): Located(kind, list(files)) for split, files in (builder.config.data_files or {}).items()}
    except Exception as error:  # the library raises many kinds; all of them mean that the source cannot be used
        told = refusal(error, settings.source) or f"{settings.source}: cannot be loaded: {_last_line(error)}"
        raise UserError(f"data.{key}: {told}") from error


def _last_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause).strip() else cause!r}"


def _choose_splits(source: Source, settings: Data) -> dict[str, str]:
    """The source's name of the splits `train`, and, if they are to be used, `validation` and `test`."""
    names = list(source.splits)
    train, wanted = _named(source, settings.train_split), settings.test_split and _named(source, settings.test_split)
    for key, name in (("train_split", train), ("test_split", wanted)):
        if name is not None and name not in names:
            raise UserError(f"data.{key}: {name!r} is not a split of {settings.source}, which has {', '.join(names)}.")
    test = wanted or next((n for n in ("test", "validation") if n in names), None)
    if test is None or test == train:
        if not settings.test_fraction:
            raise UserError(
                "data.test_fraction: the source has no test split, so a share of its images must be held out."
            )
        return {"train": train}
    chosen = {"train": train, "test": test}
    if source.folder and source.folder.splits and settings.validation and "validation" in set(names) - {train, test}:
        chosen["validation"] = "validation"
    return chosen


def _named(source: Source, split: str) -> str:
    """A split by its name, or, of a folder, by the name of its own folder."""
    if source.folder is None or not source.folder.splits or split in source.splits:
        return split
    own = {part.folder: name for name, part in source.folder.splits.items()}
    return own.get(split) or split_name(split) or split


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
    return read_class_names(file, "data.source") if file.is_file() else None


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
