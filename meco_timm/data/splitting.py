"""Which images are for training, validation and the test, and whose labels may be used: stratified and seeded."""

from typing import NamedTuple

import numpy as np

from meco_timm.common import UserError, derive, join_names
from meco_timm.data.labels import NO_LABEL, Split
from meco_timm.recipe import Data


def hold_out(split: Split, share: float, seed: int, classes: list[str]) -> tuple[Split, Split]:
    """(the rest, a share of the images for the test).

    Raises:
        UserError: the rest would have no image of a class.
    """
    images, labels = split
    rows = _with_label(labels)
    held_out = _stratified(labels, rows, round(share * len(rows)), derive(seed, "test"), leave_one=True)
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    _check_classes("test_fraction", share, labels, rest, classes)
    return Split(images.select(rest), labels[rest]), Split(images.select(held_out), labels[held_out])


class ChosenRows(NamedTuple):
    """Rows of a split, int64, sorted. train: that the student learns from. labelled: whose labels may be used."""

    train: np.ndarray
    labelled: np.ndarray
    validation: np.ndarray


def choose_rows(labels: np.ndarray, own: int, classes: list[str], settings: Data, seed: int) -> ChosenRows:
    """Choose the rows of each kind; those of the validation split are the rows from `own` on, or a share of all.

    Raises:
        UserError: a class would have no training image, or `data.images` or `data.labelled` does not fit.
    """
    every, known = np.arange(len(labels)), _with_label(labels)
    validation = every[own:]
    if not len(validation):
        size = round(settings.validation * len(known))
        validation = _stratified(labels, known, size, derive(seed, "validation"), leave_one=True)
    train, known = np.setdiff1d(every, validation), np.setdiff1d(np.flatnonzero(labels != NO_LABEL), validation)
    _check_classes("validation", settings.validation, labels, train, classes)
    if settings.images is not None:
        some = known if len(known) else train
        check_number("images", settings.images, len(classes), len(some))
        return ChosenRows(_stratified(labels, some, settings.images, derive(seed, "images")), known, validation)
    labelled = known
    if settings.labelled is not None:
        counts, per_class = np.bincount(labels[known], minlength=len(classes)), isinstance(settings.labelled, str)
        size = labels_kept(settings.labelled, counts)
        check_number("labelled", size, len(classes), len(known))
        labelled = _stratified(labels, known, size, derive(seed, "labelled"), balanced=per_class)
    return ChosenRows(train if settings.student_sees == "all" else labelled, labelled, validation)


def _with_label(labels: np.ndarray) -> np.ndarray:
    """The rows with a label; all rows where none has one."""
    known = np.flatnonzero(labels != NO_LABEL)
    return known if len(known) else np.arange(len(labels))


def _check_classes(key: str, share: float, labels: np.ndarray, rest: np.ndarray, classes: list[str]) -> None:
    """Raises: UserError: all images of a class are held out."""
    gone = [classes[label] for label in np.setdiff1d(labels, [*labels[rest], NO_LABEL])]
    if gone:
        raise UserError(
            f"data.{key}: with {share:g} of the images held out, none is left to train on of {len(gone)} class(es): "
            f"{join_names(gone)}. Add images of them, or write a smaller share."
        )


def labels_kept(labelled: int | str, counts: np.ndarray) -> int:
    """The number of labels that `data.labelled` keeps. counts: labelled images of each class."""
    return labelled if isinstance(labelled, int) else int(counts.clip(max=int(labelled.split()[0])).sum())


def check_number(key: str, number: int, classes: int, images: int) -> None:
    if not classes <= number <= images:
        raise UserError(
            f"data.{key}: {number} must lie between {classes} (one per class) and "
            f"{images} (the labelled training images without the validation split)."
        )


def _stratified(
    labels: np.ndarray, rows: np.ndarray, size: int, seed: int, leave_one: bool = False, balanced: bool = False
) -> np.ndarray:
    """`size` of `rows`, sorted, every class in its proportion and none missing if `size` allows; seeded.

    leave_one: the last image of a class is taken last, so that the rest has one of each class. balanced: as many of
    each class, as far as it has them, in place of its proportion.
    """
    if size == 0:
        return rows[:0]
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(rows)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels[rows] - NO_LABEL)
    rank_in_class = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # The k-th image of a class of n stands at share (k + ½)/n: the first `size` by share are evenly drawn from all.
    share = (rank_in_class + 0.5) / (1 if balanced else np.repeat(sizes, sizes))
    share[rank_in_class == 0] -= 1 if size >= np.count_nonzero(sizes) else 0
    if leave_one:
        share[rank_in_class == np.repeat(sizes, sizes) - 1] = 2
    return np.sort(by_class[np.argsort(share, kind="stable")[:size]])
