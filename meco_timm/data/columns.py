"""Columns of a split: images, labels and class names, found or named by the recipe, and checked."""

from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets
import numpy as np
from huggingface_hub import hf_hub_download

from meco_timm.common import UserError, is_object, read_class_names
from meco_timm.data.shards import Shards
from meco_timm.data.tables import Table
from meco_timm.recipe import Data

Rows: TypeAlias = datasets.Dataset | Shards  # `rows[list of int]["image"]` gives undecoded images


class Split(NamedTuple):
    """labels: int64, one per row."""

    images: Rows
    labels: np.ndarray


def read_columns(
    split: datasets.Dataset | Table, settings: Data, known: list[str] | None = None
) -> tuple[Split, list[str]]:
    """The split with its image column as `image` (undecoded), and its class names.

    `known` are the classes of a column that does not name its own: a test split need not show all of them.
    """
    features = split.features
    image, label = image_column(features, settings), _label_column(features, settings)
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
    return Split(undecoded_images(split, image, settings), labels), names


def image_column(features: dict[str, Any], settings: Data) -> str:
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    return _one_column("image_column", settings.image_column, images, list(features))


def _label_column(features: dict[str, Any], settings: Data) -> str:
    classed = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    plain: list[str] = [name for name in ("label", "labels", "class", "cls", "target") if name in features]
    in_json = [name for name, kind in features.items() if name == "json" and isinstance(kind, dict) and "label" in kind]
    return _one_column("label_column", settings.label_column, classed or plain or in_json, list(features))


def _values(split: datasets.Dataset | Table, column: str) -> Any:
    if isinstance(split, Table):
        return split.values(column)
    numbers = "int" in getattr(split.features[column], "dtype", "")
    return split.with_format("numpy" if numbers else None)[column][:]


def undecoded_images(split: datasets.Dataset | Table, column: str, settings: Data) -> Rows:
    if isinstance(split, Table):
        return split.images(column, settings.buffer)
    split = split.select_columns([column])
    split = split if column == "image" else split.rename_column(column, "image")
    return split.cast_column("image", datasets.Image(decode=False))


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


def check_labels(labels: np.ndarray, classes: list[str], split: str, every_class: bool = True) -> None:
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
