"""A folder of image files: which images it holds, in which splits, and the class of each.

One walk (walk.py) and the rules in docs/data.md. What they leave open is refused with a name or counted in the plan.
Nothing is ever written there.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from meco_timm.common import UserError, get_logger, join_names, printable
from meco_timm.data.metadata import read_metadata
from meco_timm.data.names import NAMED, check_alike, split_name
from meco_timm.data.walk import Contents, File, walk

logger = get_logger(__name__)

ARCHIVES = {".zip", ".rar", ".7z", ".gz", ".xz", ".bz2"}
BESIDE = "beside the class folders"
BESIDE_SPLITS = "beside the folders of the splits"


class ImageFiles(NamedTuple):
    """The images of one split, sorted by path; words: the class of each, None of an image without a label; None where
    there are no labels."""

    folder: str
    files: list[File]
    words: Sequence[str | None] | None


@dataclass
class Folder:
    """What was found. splits: by the names train, validation, test. skipped: image files passed over, by reason.
    others: how many files are no images, by ending. labels: where the labels come from. label_column: its name.
    unused: metadata files that give no labels, with their columns. shards: parquet files, Arrow files and tars; a
    folder has either splits or these."""

    root: str
    splits: dict[str, ImageFiles]
    skipped: dict[str, list[str]]
    others: Counter[str] = field(default_factory=Counter)
    labels: str = "class folders"
    label_column: str = "label"
    unused: list[str] = field(default_factory=list)
    shards: list[File] = field(default_factory=list)


def read_any_folder(folder: Path, label_column: str | None, key: str, labels_needed: bool) -> Folder:
    """Read a folder as `read_folder` does; where no labels are needed, any tree of images, with labels if it has some.

    Raises:
        UserError: as `read_folder`, or there is no image.
    """
    if labels_needed or folder.is_file():
        return read_folder(folder, label_column, key)
    try:
        found = read_folder(folder, label_column, key)
        if BESIDE not in found.skipped and BESIDE_SPLITS not in found.skipped:
            return found
        reason = "images lie beside the folders"
    except UserError as error:
        reason = str(error).removeprefix(f"data.{key}: ").split(". ")[0]
    found = read_folder(folder, None, key, labelled=False)
    logger.info("data    %s is read without labels, which a backbone does not need: %s", printable(found.root), reason)
    return found


def read_folder(folder: Path, label_column: str | None = None, key: str = "source", labelled: bool = True) -> Folder:
    """Find the images in `folder` by the rules in docs/data.md; of parquet files, Arrow files and tars the names.

    label_column: of metadata.csv. key: `source` or `unlabelled`. labelled: False for a source without labels, which
    need not be divided into classes or splits.

    Raises:
        UserError: the folder breaks a rule, or holds no images.
    """
    found = walk(folder)
    if found.shards and not found.images:
        return Folder(found.root, {}, {}, shards=found.shards)
    where = f"data.{key}: {printable(os.path.realpath(folder))}"
    _check_kind(found, where)
    _check_names(found, where)
    any_tree = key == "source" and not labelled
    splits = {"train": ""} if any_tree and not _has_only_splits(found) else _split_folders(found, where)
    files = {split: _below(found, place) for split, place in splits.items()}
    if key == "unlabelled" or any_tree:
        parts = {split: ImageFiles(splits[split], part, None) for split, part in files.items()}
        return Folder(found.root, parts, found.skipped, found.others)
    _check_twice(found, splits)
    labels, unused = read_metadata(found.root, splits.values(), label_column)
    if labels:
        parts = {split: ImageFiles(splits[split], part, labels.of(part)) for split, part in files.items()}
        labels.check(f for part in files.values() for f in part)
        _check_agreement(found, parts, labels.named, label_column)
        check_alike(_words(parts), found.root)
        return Folder(found.root, parts, found.skipped, found.others, labels.named, labels.column)
    parts = {split: _by_folder(found, splits[split], part, unused) for split, part in files.items()}
    check_alike(_words(parts), found.root)
    return Folder(found.root, parts, found.skipped, found.others, unused=unused)


def top_folders(found: Contents, place: str = "") -> list[str]:
    """Names of the folders directly below `place`."""
    start = f"{place}/" if place else ""
    return [path[len(start) :] for path in found.folders if path.startswith(start) and "/" not in path[len(start) :]]


def _check_kind(found: Contents, where: str) -> None:
    if found.shards:
        raise UserError(
            f"{where} holds image files ({printable(found.images[0].path)}) and also "
            f"{printable(found.shards[0].path)}. It is not clear which are meant: move one kind to another folder."
        )
    if not found.images:
        raise UserError(
            f"{where} holds no image file, no parquet file and no tar"
            f"{_others(found)}. Images are files with an ending that Pillow opens, such as .jpg or .png."
        )


def _others(found: Contents) -> str:
    archives = " Unpack the archive." if found.others.keys() & ARCHIVES else ""
    parts = [f"{count} {ending}" for ending, count in sorted(found.others.items())[:NAMED]]
    parts += [f"{len(paths)} image(s) {reason}" for reason, paths in found.skipped.items()]
    return f", but {printable(', '.join(parts))}.{archives}".removesuffix(".") if parts else ""


def _check_names(found: Contents, where: str) -> None:
    if found.dangling:
        raise UserError(
            f"{where}: link(s) that lead nowhere, so it is not known which images they stand for: "
            f"{join_names(found.dangling)}. Mend them or take them away."
        )
    for path in (*found.folders, *(file.path for file in found.images)):
        if not path.isascii() and any("\ud800" <= c <= "\udfff" for c in path):
            raise UserError(f"{where}: the name '{printable(path)}' is not valid UTF-8. Rename it.")


def _has_only_splits(found: Contents) -> bool:
    """Whether all images lie in folders that are named as different splits, one of them as the training split."""
    tops = [split_name(top) for top in top_folders(found)]
    once = None not in tops and len(set(tops)) == len(tops)
    return "train" in tops and once and all("/" in file.path for file in found.images)


def _split_folders(found: Contents, where: str) -> dict[str, str]:
    """Folder of each split; the whole folder as `train` if there are no folders of splits."""
    tops = top_folders(found)
    splits = {top: split for top in tops if (split := split_name(top))}
    if not splits:
        return {"train": ""}
    if rest := [top for top in tops if top not in splits]:
        raise UserError(
            f"{where}: {join_names(list(splits))} has the name of a split, but the folder(s) "
            f"{join_names(rest)} beside it do not. If it is a class, rename it; if it is a split, move the others away."
        )
    for split in ("train", "validation", "test"):
        if len(same := [top for top in tops if splits[top] == split]) > 1:
            raise UserError(f"{where}: the folders {join_names(same)} are all named as the {split} split. Keep one.")
    _pass_over_loose(found, "", BESIDE_SPLITS)
    return {split: top for split in ("train", "validation", "test") for top in tops if splits[top] == split}


def _below(found: Contents, place: str) -> list[File]:
    return [file for file in found.images if not place or file.path.startswith(f"{place}/")]


def _pass_over_loose(found: Contents, place: str, reason: str) -> None:
    """Take out the images that lie directly in `place`."""
    loose = {file.path for file in _below(found, place) if file.path.rpartition("/")[0] == place}
    for path in sorted(loose):
        found.skip(reason, path)
    if loose:
        found.images = [file for file in found.images if file.path not in loose]


def _words(parts: dict[str, ImageFiles]) -> list[str]:
    return sorted({word for part in parts.values() for word in part.words or [] if word is not None})


def _class_of(path: str, place: str) -> str:
    return path[len(place) + 1 if place else 0 :].partition("/")[0]


def _check_twice(found: Contents, splits: dict[str, str]) -> None:
    """A folder that is met again must not stand in two classes or splits."""

    def where(path: str) -> tuple[str, str]:
        place = next((place for place in splits.values() if place and f"{path}/".startswith(f"{place}/")), "")
        return place, _class_of(path, place)

    for again, first in found.twice:
        if first and where(again) != where(first) and not again.startswith(f"{first}/"):
            raise UserError(
                f"data.source: {found.root}: {printable(again)} is the same folder as {printable(first)}, so its "
                "images would stand in two classes or splits. Remove one of the links."
            )


def _by_folder(found: Contents, place: str, files: list[File], unused: list[str]) -> ImageFiles:
    """The images of one split, with the first folder level as their class."""
    classes, where = top_folders(found, place), printable(f"{found.root}/{place}".rstrip("/"))
    loose = [file for file in files if file.path.rpartition("/")[0] == place]
    if not classes:
        raise UserError(
            f"data.source: {where} holds {len(loose)} image(s) and 0 class folder(s), so they have no labels."
            f"{_how_to_label(found, place, unused)}"
        )
    _pass_over_loose(found, place, BESIDE)
    files = [file for file in files if file.path.rpartition("/")[0] != place] if loose else files
    words = [_class_of(file.path, place) for file in files]
    if empty := sorted(set(classes) - set(words)):
        raise UserError(
            f"data.source: the class folder {where}/{printable(empty[0])} is empty: it holds no image"
            f"{f' (so do {join_names(empty[1:])})' if empty[1:] else ''}. Fill it or take it away."
        )
    if len(classes) < 2 and (not place or split_name(place) == "train"):  # another split need not show all
        raise UserError(
            f"data.source: {where} holds 1 class folder(s) ({printable(classes[0])}); at least 2 are needed."
            f"{_deeper(found, place)}"
        )
    return ImageFiles(place, files, words)


def _how_to_label(found: Contents, place: str, unused: list[str]) -> str:
    """What to do about images without labels."""
    named = f" No label column was found in {join_names(unused)}; name it in data.label_column." if unused else ""
    train = next((top for top in top_folders(found) if split_name(top) == "train"), place)
    if train != place:
        return (
            f"{named} To leave them out, write data.source={printable(f'{found.root}/{train}')}; for the student to "
            f"learn from them without labels, also data.unlabelled={printable(f'{found.root}/{place}')}."
        )
    return (
        f"{named} Sort them into class folders, or list them in metadata.csv (columns file_name, label). Images "
        "without labels are for data.unlabelled."
    )


def _deeper(found: Contents, place: str) -> str:
    """A hint where the class folders lie deeper."""
    folders = {file.path.rpartition("/")[0] for file in _below(found, place)}
    common = os.path.commonpath(folders)
    if common in folders or common == place:
        return ""
    return (
        f" Did you mean {printable(f'{found.root}/{common}')}?"
        if not place
        else f" Move those in {printable(common)} up."
    )


def _check_agreement(found: Contents, parts: dict[str, ImageFiles], named: str, label_column: str | None) -> None:
    """Labels of a file and class folders beside it must mean the same, unless the recipe names the column."""
    if label_column is not None:
        return
    for place, files, words in parts.values():
        if len(top_folders(found, place)) < 2 or any(file.path.rpartition("/")[0] == place for file in files):
            continue
        folders = [_class_of(file.path, place) for file in files]
        pairs = sorted({(folder, word) for folder, word in zip(folders, words or [], strict=True) if word is not None})
        if any(len(set(column)) < len(pairs) for column in zip(*pairs, strict=True)):
            raise UserError(
                f"data.source: {found.root}: {named} and the class folders give other labels ("
                f"{', '.join(f'{printable(a)}: {printable(b)}' for a, b in pairs[:NAMED])}). Name the column to use "
                "with data.label_column, or take the file away to use the folders."
            )
