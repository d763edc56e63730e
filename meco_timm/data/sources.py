"""Where images and labels come from: class folders, parquet files, tars or a Hub id, opened and checked.

A folder of image files is read by folders.py. `datasets` finds the files and splits of all other sources; it also reads
them, unless they are read in place (tables.py).
"""

from pathlib import Path
from typing import Any, NamedTuple

import datasets

from meco_timm.common import UserError, did_you_mean, is_object, located
from meco_timm.data.columns import Rows, Split, check_labels, image_column, read_columns, undecoded_images
from meco_timm.data.folders import Folder, read_folder
from meco_timm.data.names import split_name
from meco_timm.data.remote import refusal
from meco_timm.data.tables import Table, file_table, open_table
from meco_timm.recipe import Data


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

    def table(self, split: str, settings: Data) -> Any:
        """A split's columns."""
        found = self.splits[split]
        return found.table(settings) if isinstance(found, Located) else found


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
    train, classes = read_columns(source.table(names["train"], settings), settings)
    check_labels(train.labels, classes, settings.train_split)
    others: dict[str, Split | None] = {"validation": None, "test": None}
    for role in others.keys() & names.keys():
        split, its_classes = read_columns(source.table(names[role], settings), settings, classes)
        if classes != its_classes:
            raise UserError(
                f"data.source: the training split has {len(classes)} classes, the {role} split {len(its_classes)}: "
                f"{', '.join(sorted(set(classes) ^ set(its_classes))[:5])} stand only in one of them."
            )
        check_labels(split.labels, classes, role, every_class=False)
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
    found, classes = read_columns(source.table(name, settings), settings)
    check_labels(found.labels, classes, name, every_class=False)
    return classes, found


def read_unlabelled(settings: Data) -> tuple[Rows, Folder | None]:
    """The images of `data.unlabelled`: its training split, or its first.

    Raises:
        UserError: it cannot be opened, or holds no images.
    """
    settings = settings.model_copy(update={"source": settings.unlabelled, "label_column": None})
    source = _open(settings, "unlabelled")
    name = _named(source, settings.train_split)
    split = source.table(name if name in source.splits else next(iter(source.splits)), settings)
    images = undecoded_images(split, image_column(split.features, settings), settings)
    if len(images) == 0:
        raise UserError(f"data.unlabelled: {settings.source} has no images.")
    return images, source.folder


def _open(settings: Data, key: str = "source") -> Source:
    """All splits of a folder or Hub id."""
    if key == "source" and settings.object is not None:
        return Source(settings.object)
    if is_object(settings.source):
        raise UserError(f"data.{key}: {settings.source} is a data set of a Python program. Give it to `distill` again.")
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
        reason = refusal(error, settings.source) or f"{settings.source}: cannot be loaded: {_last_line(error)}"
        raise UserError(f"data.{key}: {reason}") from error


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
