"""Copies of an image, by checksum and size: held-out images that are also trained on, and images in two classes."""

import numpy as np

from meco_timm.common import UserError, join_names, printable
from meco_timm.data.labels import NO_LABEL
from meco_timm.data.loading import DataSource
from meco_timm.data.stored import StoredImages

NAMED = 3  # pairs in a message


def find_copies(data: DataSource, images: StoredImages, contents: list[tuple[int, int]], copies: str) -> list[str]:
    """Find copies, note them in `data.notes`, and take them out of the training images where `copies` is `drop`.

    images: those of the training split, then those of the test split. contents: (CRC-32, bytes) of each of them.

    Returns:
        Lines of the plan.

    Raises:
        UserError: without its copies a class would have no training image.
    """
    content = np.unique(np.array(contents), axis=0, return_inverse=True)[1].reshape(-1)  # equal numbers: copies
    start, own = len(data.train.split), data.labelled.labels
    labels = np.concatenate([own, np.full(start - len(own), NO_LABEL), data.test.labels])
    trained = np.union1d(data.train.rows, data.labelled.rows)
    held_out = {"validation": data.validation.rows, "test": start + data.test.rows}
    both = {name: rows[np.isin(content[rows], content[trained])] for name, rows in held_out.items()}
    two = _in_two_classes(content, labels, np.concatenate([data.labelled.rows, *held_out.values()]))
    lines = []
    for name, rows in both.items():
        if len(rows):
            what = f"{len(rows)} of {len(held_out[name])} {name} images are also training images"
            data.notes.append(f"{what}, so figures on them say too much")
            lines.append(f"warning: {data.notes[-1]}: {_pairs(images, content, rows, trained)}")
    if len(two):
        twins = two[content[two] == content[two[0]]]
        pair = " and ".join(f"{images.name(row)} ({printable(data.classes[labels[row]])})" for row in twins[:2])
        data.notes.append(f"{len(two)} images are in two classes")
        lines.append(f"warning: {data.notes[-1]}, such as {pair}")
    if not lines:
        return []
    if copies != "drop":
        return [*lines, "data.copies=drop takes such images out of the training"]
    copied = np.isin(content[trained], content[np.concatenate([*both.values(), two])])
    data.notes[:] = [_drop(data, trained[copied])]
    return [*lines, *data.notes]


def _in_two_classes(content: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those of the rows whose content has another label elsewhere."""
    rows = rows[labels[rows] != NO_LABEL]
    pairs = np.unique(np.stack([content[rows], labels[rows]], 1), axis=0)[:, 0]
    values, counts = np.unique(pairs, return_counts=True)
    return rows[np.isin(content[rows], values[counts > 1])]


def _pairs(images: StoredImages, content: np.ndarray, rows: np.ndarray, trained: np.ndarray) -> str:
    """The first of these rows, each with a training image that is the same."""
    twins = [trained[content[trained] == content[row]][0] for row in rows[:NAMED]]
    pairs = [f"{images.name(row)} = {images.name(twin)}" for row, twin in zip(rows[:NAMED], twins, strict=True)]
    return ", ".join(pairs) + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")


def _drop(data: DataSource, rows: np.ndarray) -> str:
    """Take these rows out of the training images; returns the line of the plan."""
    for part in (data.train, data.labelled, data.alone):
        part.rows = np.setdiff1d(part.rows, rows)
    if empty := [name for name, count in zip(data.classes, data.label_counts(data.labelled), strict=True) if not count]:
        raise UserError(f"data.copies: without copies no training image is left of {join_names(empty)}.")
    return f"{len(rows)} training image(s) are left out (data.copies: drop)"
