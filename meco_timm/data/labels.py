"""Columns of a split: images, labels and class names, found or named by the recipe, and checked."""

from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from huggingface_hub import hf_hub_download

from meco_timm.common import UserError, is_object, read_class_names
from meco_timm.data.stored import StoredImages
from meco_timm.data.tables import Table
from meco_timm.recipe import Data

LABEL_COLUMNS = ("label", "labels", "class", "cls", "target")


class Split(NamedTuple):
    """labels: int64, one per row."""

    images: StoredImages
    labels: np.ndarray


def read_labels(table: Table, settings: Data, known: list[str] | None = None) -> tuple[Split, list[str]]:
    """Read (the split, its class names).

    known: the classes of a column that does not name its own: a test split need not show all of them.
    """
    image, label = image_column(table, settings), _label_column(table, settings)
    kind, values = table.features[label], table.values(label)
    if pa.types.is_integer(values.type):
        labels = values.cast(pa.int64()).fill_null(-1).to_numpy()
        named = kind.names if isinstance(kind, datasets.ClassLabel) else known or _class_file(settings.source)
        names = list(named or map(str, range(labels.max(initial=-1) + 1)))
    else:
        words = [str(word) for word in values.to_pylist()]
        names = sorted({*words, *(known or [])})
        place = {name: i for i, name in enumerate(names)}
        labels = np.array([place[word] for word in words], dtype=np.int64)
    return Split(table.images(image), labels), names


def image_column(table: Table, settings: Data) -> str:
    """The name of the column of images.

    Raises:
        UserError: there is none, or several; or not the one that the recipe names.
    """
    images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    return _one_column("image_column", settings.image_column, images, table)


def _label_column(table: Table, settings: Data) -> str:
    classed = [name for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    plain = [name for name in LABEL_COLUMNS if name in table.features]
    return _one_column("label_column", settings.label_column, classed or plain, table)


def _one_column(key: str, named: str | None, found: list[str], table: Table) -> str:
    columns = ", ".join(table.features)
    if named is not None:
        if named not in table.features:
            raise UserError(f"data.{key}: there is no column {named!r}; the data set has {columns}.")
        return named
    if len(found) != 1:
        what = "none was found" if not found else f"several fit ({', '.join(found)})"
        hint = " Images without labels are for data.unlabelled, beside labelled ones." if key == "label_column" else ""
        raise UserError(f"data.{key}: {what}; name one of the columns {columns}.{hint}")
    return found[0]


def _class_file(source: str) -> list[str] | None:
    """Class names of a file `classes.txt`, one a line, beside images whose labels are numbers."""
    if is_object(source):
        return None
    file = Path(source) / "classes.txt"
    if not Path(source).is_dir():
        try:
            file = Path(hf_hub_download(source, "classes.txt", repo_type="dataset"))
        except OSError:
            return None
    return read_class_names(file, "data.source") if file.is_file() else None


def check_labels(labels: np.ndarray, classes: list[str], split: str, every_class: bool = True) -> None:
    """Check that there are images, in at least two classes, with labels in range.

    Raises:
        UserError: otherwise, or a class has no image where `every_class` must have one.
    """
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
        hint = " Labels that are numbers count from 0, or give names in their place." if classes[0] == "0" else ""
        raise UserError(
            f"data.source: empty class(es): {', '.join(empty)}. The {split} split has no image of them.{hint}"
        )
