"""What the student gets wrong: confusion matrices, and the mistakes of which it is surest."""

from typing import Any

import numpy as np

from meco_timm.evaluation import Predictions
from meco_timm.reporting.drawing import Chart, axes, shorten
from meco_timm.reporting.pages import thumbnail

MOST = 40  # classes in a matrix
NAMED = 20  # classes with a name on an axis; of more, every second or third
WRITTEN = 12  # classes up to which the cells have numbers


def confusion_matrix(predictions: Predictions, name: str) -> np.ndarray:
    """Number of test images, K×K: of each label (row) in each predicted class (column)."""
    size = len(predictions.classes)
    pairs = predictions.label.astype(np.int64) * size + predictions.predicted_by(name)
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def confused_classes(matrices: list[np.ndarray], most: int = MOST) -> np.ndarray:
    """The classes that are drawn, in order: all, or those with most wrong images, as label or prediction."""
    size = len(matrices[0])
    if size <= most:
        return np.arange(size)
    wrong = sum(matrix * (1 - np.eye(size, dtype=int)) for matrix in matrices)
    return np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:most])


def confusion_matrix_charts(
    predictions: Predictions, name: str = "student", other: str = "student alone"
) -> list[Chart]:
    """The matrix of one network in per cent of each label's images, and its change from that of another in images."""
    own, base = confusion_matrix(predictions, name), confusion_matrix(predictions, other)
    drawn = confused_classes([own, base])
    left_out = len(own) - len(drawn)
    note = f" The {len(drawn)} classes with most mistakes; {left_out:,} are left out." if left_out else ""
    share = 100 * own / np.maximum(own.sum(1, keepdims=True), 1)
    change = own - base
    names = [shorten(predictions.classes[i], 14) for i in drawn]
    cells = np.ix_(drawn, drawn)
    most = max(int(np.abs(change[cells]).max(initial=0)), 1)
    wrong = len(predictions.label) - int(own.trace())
    before = len(predictions.label) - int(base.trace())
    return [
        _chart(
            share[cells], names, "Confusion matrix", f"Confusions of the {name}: {wrong} images in a wrong class.",
            f"Share of each label's test images in each predicted class (%), of the {name}.{note}",
            cmap="cividis", vmin=0, vmax=100,
        ),
        _chart(
            change[cells], names, f"Confusion matrix: {name} − {other}",
            f"Change of the confusions: {other} {before} images in a wrong class, {name} {wrong}.",
            f"Number of images of the {name} minus that of the {other}; better is above 0 on the diagonal and "
            f"below 0 beside it.{note}",
            cmap="PuOr", vmin=-most, vmax=most,
        ),
    ]  # fmt: skip


def _chart(table: np.ndarray, names: list[str], title: str, text: str, caption: str, **colours: Any) -> Chart:
    size = len(names)
    figure, axis = axes(3.9)
    image = axis.imshow(table, interpolation="nearest", aspect="equal", **colours)
    figure.colorbar(image, ax=axis)
    every = -(-size // NAMED)
    axis.set_xticks(range(0, size, every), names[::every], rotation=90 if max(map(len, names)) > 2 else 0, fontsize=8)
    axis.set_yticks(range(0, size, every), names[::every], fontsize=8)
    axis.set(xlabel="prediction (classes)", ylabel="label (classes)")
    axis.grid(visible=False)
    if size <= WRITTEN:
        middle = (colours["vmin"] + colours["vmax"]) / 2
        for (i, j), value in np.ndenumerate(table):
            if round(value):
                far = abs(value - middle) > 0.3 * (colours["vmax"] - colours["vmin"])
                dark = far if colours["cmap"] == "PuOr" else value < middle
                axis.text(
                    j, i, f"{value:.0f}".replace("-", "−"), ha="center", va="center", fontsize=8,
                    color="white" if dark else "black",
                )  # fmt: skip
    return Chart(title, figure, text, caption)


def mistakes(predictions: Predictions) -> list[dict[str, Any]]:
    """The wrong predictions of which the student is surest: thumbnail, label, (network, class, per cent) of each."""
    found = []
    for row, image in zip(predictions.mistakes, predictions.mistake_images, strict=True):
        said = [
            (name, predictions.classes[predictions.predicted[i, row]], f"{100 * predictions.confidence[i, row]:.0f} %")
            for i, name in enumerate(predictions.networks)
        ]
        label = predictions.classes[predictions.label[row]]
        found.append({
            "image": thumbnail(image), "text": f"Test image {row}, labelled {label}", "label": label,
            "said": [one for one in said if one[0] == "student"] + [one for one in said if one[0] != "student"],
        })  # fmt: skip
    return found
