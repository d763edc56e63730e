"""Where images and labels come from: class folders, parquet files, tars, a Hub id or `datasets`, opened and checked.

A folder of image files is read by folders.py. `datasets` finds the files of all other sources; parquet files and tars
are then read where they are (tables.py), other formats by `datasets`.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from meco_timm.common import UserError, did_you_mean, get_logger, is_object, join_names, located
from meco_timm.data.folders import Folder, read_any_folder
from meco_timm.data.hub_files import refusal
from meco_timm.data.labels import NO_LABEL, Classes, Split, check_labels, image_column, read_any_labels, read_labels
from meco_timm.data.names import split_name, splits_in
from meco_timm.data.stored import StoredImages
from meco_timm.data.tables import Table, dataset_table, folder_table, open_table
from meco_timm.recipe import Data

logger = get_logger(__name__)


class Source(NamedTuple):
    """All splits of a source by name, each to be opened; `folder`: what lies in a folder on this machine."""

    splits: dict[str, Callable[[], Table]]
    folder: Folder | None = None

    def named(self, split: str) -> str:
        """A split by its name, or, of a folder, by the name of its own folder."""
        if self.folder is None or not self.folder.splits or split in self.splits:
            return split
        own = {part.folder: name for name, part in self.folder.splits.items()}
        return own.get(split) or split_name(split) or split


class OpenedSplits(NamedTuple):
    """The splits that a run uses. validation: of a folder that has it beside a test split. test: None where the source
    has none."""

    classes: Classes
    train: Split
    validation: Split | None
    test: Split | None
    folder: Folder | None


def read_source(settings: Data, labels_needed: bool = True) -> OpenedSplits:
    """Read the images and labels of `data.source`.

    labels_needed: False for any images, with their labels where they have some.

    Raises:
        UserError: the source cannot be opened, or a split, a column or the labels are not what the recipe says.
    """
    source = _open(settings, labels_needed=labels_needed)
    names = _choose_splits(source, settings)
    read = read_labels if labels_needed else read_any_labels
    train, classes = read(source.splits[names["train"]](), settings)
    check_labels(train.labels, classes.names, settings.train_split, needed=labels_needed)
    held_out = {
        role: _read_held_out(source, names[role], settings, classes, labels_needed) if role in names else None
        for role in ("validation", "test")
    }
    return OpenedSplits(classes, train, **held_out, folder=source.folder)


def _read_held_out(source: Source, name: str, settings: Data, classes: Classes, labels_needed: bool = True) -> Split:
    """A validation or test split, in which every image must have a label, if labels are needed."""
    if not labels_needed:
        split, _ = read_any_labels(source.splits[name](), settings, classes)
        check_labels(split.labels, classes.names, name, needed=False)
        return split
    split, _ = read_labels(source.splits[name](), settings, classes)
    if missing := int((split.labels == NO_LABEL).sum()):
        raise UserError(
            f"data.source: {missing} of the {len(split.labels)} images of the {name} split have no label, so nothing "
            f"can be measured on them. Write data.test_split={_labelled_split(source, name, settings, classes)}."
        )
    check_labels(split.labels, classes.names, name, every_class=False)
    return split


def _labelled_split(source: Source, name: str, settings: Data, classes: Classes) -> str:
    """What to write in place of a split without labels."""
    train = source.named(settings.train_split)
    for other in source.splits.keys() - {name, train}:
        split, _ = read_labels(source.splits[other](), settings, classes)
        if len(split.labels) and (split.labels != NO_LABEL).all():
            return other
    return f"{train}, which holds out data.test_fraction={settings.test_fraction:g} of its images"


def read_split(settings: Data, split: str | None) -> tuple[str, list[str], Split]:
    """Read (name, class names, images) of one split: the one named, else `test`, else `validation`, else the first.

    Raises:
        UserError: as for `read_source`.
    """
    source = _open(settings)
    names = list(source.splits)
    name = source.named(split) if split else next((n for n in ("test", "validation") if n in names), names[0])
    _check_split("test_split", name, names, settings)
    _, classes = read_labels(source.splits[name](), settings)
    return name, classes.names, _read_held_out(source, name, settings, classes)


def read_unlabelled(settings: Data) -> tuple[StoredImages, Folder | None]:
    """Read the images of `data.unlabelled`: its training split, or its first.

    Raises:
        UserError: it cannot be opened, or holds no images.
    """
    settings = settings.model_copy(update={"source": settings.unlabelled, "label_column": None})
    source = _open(settings, "unlabelled")
    table = source.splits.get(source.named(settings.train_split), next(iter(source.splits.values())))()
    images = table.images(image_column(table, settings))
    if len(images) == 0:
        raise UserError(f"data.unlabelled: {settings.source} has no images.")
    return images, source.folder


def _open(settings: Data, key: str = "source", labels_needed: bool = True) -> Source:
    """All splits of a folder, a Hub id or an object."""
    if key == "source" and settings.object is not None:
        return Source({name: partial(dataset_table, rows, settings) for name, rows in settings.object.items()})
    if is_object(settings.source):
        raise UserError(f"data.{key}: {settings.source} is a data set of a Python program. Give it to `distill` again.")
    place = Path(settings.source)
    if not place.exists():
        _check_hub_id(settings.source, key)
        return Source(_find_files(settings, settings.source, key, None))
    found = read_any_folder(place, settings.label_column, key, labels_needed or key == "unlabelled")
    if place.is_file():
        kind = "parquet" if place.suffix == ".parquet" else "webdataset"
        return Source({"train": partial(open_table, kind, [str(place.resolve())], settings, {})}, found)
    if not found.splits:
        return Source(_find_files(settings, found.root, key, found), found)
    return Source({split: partial(folder_table, found, split, settings) for split in found.splits}, found)


def _check_hub_id(source: str, key: str) -> None:
    """Raises: UserError: a source that is not on this machine cannot be the id of a data set of the Hub either."""
    if "://" in source:
        hub = source.partition("/datasets/")[2].split("?")[0].split("/")
        named = f" This data set of the Hub is data.{key}={'/'.join(hub[:2])}." if len(hub) > 1 else ""
        raise UserError(
            f"data.{key}: {source}: files are not downloaded from addresses. Download and unpack it, and give the "
            f"folder, or write the id of a data set of the Hub, as owner/name.{named}"
        )
    parent = Path(source).parent
    if source.startswith((".", "/", "~")) or source.count("/") != 1 or parent.is_dir():
        near = [str(place) for place in parent.iterdir() if place.is_dir()] if parent.is_dir() else []
        raise UserError(f"data.{key}: there is no folder {located(source)}.{did_you_mean(source, near)}")


def _find_files(settings: Data, name: str, key: str, folder: Folder | None) -> dict[str, Callable[[], Table]]:
    """The splits of a Hub id, or of a folder of parquet files, Arrow files or tars, as `datasets` finds them."""
    datasets.disable_progress_bars()
    try:
        if folder and any(Path(name, file).exists() for file in ("state.json", "dataset_dict.json")):  # `save_to_disk`
            saved = datasets.load_from_disk(name)
            parts = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
            return {str(split): partial(dataset_table, part, settings) for split, part in parts.items()}
        builder = datasets.load_dataset_builder(name, settings.subset)
        kind = type(builder).__module__.rpartition(".")[2]
        if kind not in ("parquet", "webdataset"):
            rows = datasets.load_dataset(name, settings.subset)
            return {str(split): partial(dataset_table, part, settings) for split, part in rows.items()}
        files = builder.config.data_files or {}
        if folder:
            _check_files(files, folder, key)
        declared = builder.info.features or {}
        return {str(split): partial(open_table, kind, list(files[split]), settings, declared) for split in files}
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds; all of them mean that the source cannot be used
        reason = refusal(error, settings.source) or f"{settings.source}: cannot be loaded: {_last_line(error)}"
        raise UserError(f"data.{key}: {reason}") from error


def _check_files(files: Mapping[Any, list[str]], folder: Folder, key: str) -> None:
    """Refuse files whose names leave open in which split they are; warn of those that are in none.

    `datasets` looks for words in small letters anywhere in a path, and takes all files for training if none has one.
    """
    where: dict[str, str] = {}
    for split, paths in files.items():
        for path in (os.path.relpath(path, folder.root) for path in paths):
            if where.setdefault(path, str(split)) != split:
                raise UserError(f"data.{key}: {path} has names of two splits, {where[path]} and {split}. Rename it.")
    for path in where if set(where.values()) == {"train"} else ():
        if other := splits_in(path) - {"train"}:
            raise UserError(
                f"data.{key}: {path} is named as the {join_names(sorted(other))} split, but not in small letters, so "
                "all files would be training images. Rename the files: train*, validation*, test*."
            )
    if unused := [file.path for file in folder.shards if file.path not in where]:
        logger.warning("data.%s: not used, since no split is in the name: %s", key, join_names(unused))


def _last_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause).strip() else cause!r}"


def _choose_splits(source: Source, settings: Data) -> dict[str, str]:
    """The source's name of the splits `train`, and, if they are to be used, `validation` and `test`."""
    names = list(source.splits)
    train, wanted = source.named(settings.train_split), settings.test_split and source.named(settings.test_split)
    for key, name in (("train_split", train), ("test_split", wanted)):
        if name is not None:
            _check_split(key, name, names, settings)
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


def _check_split(key: str, name: str, names: list[str], settings: Data) -> None:
    if name not in names:
        raise UserError(f"data.{key}: {name!r} is not a split of {settings.source}, which has {', '.join(names)}.")
