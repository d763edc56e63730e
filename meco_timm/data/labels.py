"""Columns of a split: images, labels and class names, found or named by the recipe, and checked.

A label is missing where the column has null, NaN, an empty text or −1. Classes are compared by name: a split or file
whose `ClassLabel` has the same names in another order means the same classes.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import hf_hub_download

from meco_timm.common import UserError, get_logger, is_object, join_names, read_class_names
from meco_timm.data.names import LABEL_COLUMNS, check_alike
from meco_timm.data.stored import StoredImages
from meco_timm.data.tables import Column, Table
from meco_timm.recipe import Data

logger = get_logger(__name__)

NO_LABEL = -1
MOST = 1_000_000  # classes; larger numbers are identifiers or measures


class Split(NamedTuple):
    """labels: int64, one per row; `NO_LABEL` where it is missing."""

    images: StoredImages
    labels: np.ndarray


class Classes(NamedTuple):
    """names: K of them; none where a source without labels is allowed and has none. column: where the labels stand.
    numbered: whether a whole number is the place of a class, as in a `ClassLabel`; else it is a name."""

    names: list[str]
    column: str
    numbered: bool


def read_labels(table: Table, settings: Data, known: Classes | None = None) -> tuple[Split, Classes]:
    """Read (the split, its classes).

    known: the classes of the training split, by which another is read; it need not show, or label, all of them.

    Raises:
        UserError: a column is missing, several fit, or the column holds no classes.
    """
    images = table.images(image_column(table, settings))
    column = known.column if known else _label_column(table, settings)
    if known and column not in table.features:
        return Split(images, np.full(len(images), NO_LABEL)), known
    columns = table.columns(column)
    numbered = columns[0].as_text and all(_is_number(one.values) for one in columns)
    if numbered and (known is None or known.numbered):
        columns = [one._replace(values=_without_empty(one.values).cast(pa.int64())) for one in columns]
    parts = [_codes(one, column) for one in columns]
    if known and not known.numbered:
        parts = [(codes, [str(i) for i in range(codes.max(initial=-1) + 1)] if n is None else n) for codes, n in parts]
    if all(names is None for _, names in parts):
        labels = np.concatenate([codes for codes, _ in parts])
        numbers = [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
        return Split(images, labels), known or Classes(_class_file(settings.source) or numbers, column, True)
    if any(names is None for _, names in parts):
        raise UserError(f"data.label_column: {column} has names of classes in some files and numbers in others.")
    named = [(codes, names or []) for codes, names in parts]
    classes = known or Classes(_join_classes(table, named, column), column, _is_class_label(table, column))
    place = {name: i for i, name in enumerate(classes.names)}
    return Split(images, np.concatenate([_renumber(codes, names, place, column) for codes, names in named])), classes


def read_any_labels(table: Table, settings: Data, known: Classes | None = None) -> tuple[Split, Classes]:
    """Read labels as `read_labels` does where they are there; else the images without labels."""
    try:
        return read_labels(table, settings, known)
    except UserError as error:
        images = table.images(image_column(table, settings))
        if len(table.features) > 1:  # a column may have been meant
            logger.info("data    %s is read without labels, which a backbone does not need: %s", settings.source, error)
        return Split(images, np.full(len(images), NO_LABEL)), known or Classes([], "", True)


def _is_class_label(table: Table, column: str) -> bool:
    return isinstance(table.features[column], datasets.ClassLabel)


def _is_number(words: pa.ChunkedArray) -> bool:
    return all(re.fullmatch(r"-?[0-9]+", word) for word in _without_empty(words).drop_null().to_pylist())


def _without_empty(words: pa.ChunkedArray) -> pa.ChunkedArray:
    """With null in place of texts without a visible character."""
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(words), ""), None, words)


def _codes(part: Column, column: str) -> tuple[np.ndarray, list[str] | None]:
    """(class numbers, int64, `NO_LABEL` where missing; the names that they stand for, None of plain numbers)."""
    kind, values, where = part.kind, part.values, f"data.label_column: {part.location}: {column}"
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        names = kind.names if isinstance(kind, datasets.ClassLabel) else None
        return _whole_numbers(values, where).fill_null(NO_LABEL).to_numpy(), names
    if pa.types.is_null(values.type):
        return np.full(len(values), NO_LABEL), []
    if pa.types.is_boolean(values.type) or pa.types.is_string_view(values.type):
        values = values.cast(pa.string())
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise UserError(f"{where} {_what(values)}. An image has one class.")
    values = _without_empty(values)
    words = pc.unique(values).drop_null()
    return pc.index_in(values, value_set=words).cast(pa.int64()).fill_null(NO_LABEL).to_numpy(), words.to_pylist()


def _whole_numbers(values: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    for value in pc.unique(values).drop_null().to_pylist():
        if value % 1 != 0 or abs(value) > MOST:
            raise UserError(f"{where} holds numbers such as {value:.15g}, which are no classes. Name another column.")
    return values.cast(pa.int64())


def _what(values: pa.ChunkedArray) -> str:
    """What a column holds that are no labels."""
    if not isinstance(values.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        return f"is of type {values.type}"
    first: list[Any] = next((value for value in values.to_pylist() if value), [])
    if set(first) <= {0, 1} and sum(first) == 1:
        return f"holds lists of {len(first)} numbers with one 1. Write the number of the class in their place"
    return f"holds lists, such as {str(first)[:60]}: several labels of an image"


def _join_classes(table: Table, parts: list[tuple[np.ndarray, list[str]]], column: str) -> list[str]:
    """The classes of all files: in the order of their `ClassLabel`, which must agree, or sorted."""
    first = parts[0][1]
    if not _is_class_label(table, column):
        names = sorted({name for _, part in parts for name in part})
        check_alike(names, f"column {column}")
        return names
    for (_, names), one in zip(parts, table.columns(column), strict=True):
        if set(names) != set(first):
            raise UserError(
                f"data.source: {one.location}: column {column} has other classes than the first file: "
                f"{join_names(sorted(set(names) ^ set(first)))} stand only in one of them."
            )
    return first


def _renumber(codes: np.ndarray, names: list[str], place: dict[str, int], column: str) -> np.ndarray:
    """The codes of a file, which stand for `names`, by the place of each name."""
    if (codes >= len(names)).any() or (codes < NO_LABEL).any():
        return codes  # `check_labels` names the row
    used = [names[i] for i in np.unique(codes[codes != NO_LABEL])]
    if unknown := [name for name in used if name not in place]:
        raise UserError(
            f"data.source: column {column} has the class(es) {join_names(unknown)}, which the training split does not "
            f"have. Its {len(place)} classes are {join_names(list(place))}."
        )
    return np.array([*(place.get(name, NO_LABEL) for name in names), NO_LABEL], dtype=np.int64)[codes]


def image_column(table: Table, settings: Data) -> str:
    """The name of the column of images.

    Raises:
        UserError: there is none, or several; or not the one that the recipe names.
    """
    images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    name = _one_column("image_column", settings.image_column, images, table)
    kind = table.features[name]
    if isinstance(kind, datasets.Value) and "binary" not in kind.dtype:
        raise UserError(f"data.image_column: {name} is of type {kind.dtype}; images are the bytes of their files.")
    return name


def _label_column(table: Table, settings: Data) -> str:
    fitting = [name for name in table.features if _is_class_label(table, name) or name in LABEL_COLUMNS]
    return _one_column("label_column", settings.label_column, [table.label] if table.label else fitting, table)


def _one_column(key: str, named: str | None, found: list[str], table: Table) -> str:
    columns = ", ".join(table.features)
    if named is not None:
        if named not in table.features:
            raise UserError(f"data.{key}: there is no column {named!r}; the data set has {columns}.")
        return named
    if len(found) != 1:
        what = "none was found" if not found else f"several fit ({', '.join(found)})"
        hint = " Images without labels are for data.unlabelled, beside labelled ones." if key == "label_column" else ""
        hint = f" Write for example data.{key}={found[0]}." if found else hint
        raise UserError(f"data.{key}: {what}; name one of the columns {columns}.{hint}")
    return found[0]


def _class_file(source: str) -> list[str] | None:
    """Class names of a file `classes.txt`, one a line, beside images whose labels are numbers."""
    if is_object(source):
        return None
    file = Path(source) / "classes.txt"
    if not Path(source).exists():
        try:
            file = Path(hf_hub_download(source, "classes.txt", repo_type="dataset"))
        except OSError:
            return None
    return read_class_names(file, "data.source") if file.is_file() else None


def check_labels(
    labels: np.ndarray, classes: list[str], split: str, every_class: bool = True, needed: bool = True
) -> None:
    """Check that there are images, in at least two classes if labels are `needed`, with labels in range.

    Raises:
        UserError: otherwise, or a class has no image where `every_class` must have one.
    """
    if len(labels) == 0:
        raise UserError(f"data.source: the {split} split has no images.")
    if needed and (labels == NO_LABEL).all():
        raise UserError(
            f"data.source: none of the {len(labels)} images of the {split} split has a label. Images without labels "
            "are for data.unlabelled, beside labelled ones."
        )
    wrong = np.flatnonzero((labels < NO_LABEL) | (labels >= len(classes)))
    if len(wrong):
        raise UserError(
            f"data.source: labels out of range: row {wrong[0]} of the {split} split has label {labels[wrong[0]]}, "
            f"but there are {len(classes)} classes (0 to {len(classes) - 1}); {len(wrong)} such row(s)."
        )
    if not needed:
        return
    if len(classes) < 2:
        raise UserError(f"data.source: only one class ({classes[0]}); at least 2 are needed.")
    counts = np.bincount(labels[labels != NO_LABEL], minlength=len(classes))
    if every_class and (counts == 0).any():
        empty = [classes[i] for i in np.flatnonzero(counts == 0)[:5]]
        hint = " Labels that are numbers count from 0, or give names in their place." if classes[0] == "0" else ""
        raise UserError(
            f"data.source: empty class(es): {', '.join(empty)}. The {split} split has no image of them.{hint}"
        )
