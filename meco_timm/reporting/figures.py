"""Charts of the results table and of the predictions on the test split. Pure functions."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from meco_timm.evaluation import Predictions, Row
from meco_timm.reporting.drawing import (
    INK,
    Chart,
    axes,
    heat_map,
    legend,
    log_ticks,
    name_rows,
    network_style,
    shorten,
    signed_bars,
)

BINS = 10
MIN_BIN_IMAGES = 5  # bins of the calibration diagram with fewer images are left out
BARS = 12  # most confusions shown, and most classes on either side
CLASSES_SHOWN = 6  # of a soft label


def cost_chart(rows: list[Row], others: list[str]) -> Chart:
    """Top-1 against multiply-adds. `others`: names of teachers or runs, in the order of their styles."""
    figure, axis = axes(3.0 + 0.11 * len(rows))
    cost = [max(row.multiply_adds, 1) / 1e6 for row in rows]  # above 0, as a logarithmic axis needs it
    for row, x in zip(rows, cost, strict=True):
        style = network_style(row.name, others)
        spot = style | {"linestyle": "", "markersize": 1.3 * style["markersize"]}
        axis.plot(x, row.top1, label=shorten(row.name, 34), clip_on=False, **spot)
    axis.set_xscale("log")
    least, most = min(cost), max(cost)
    axis.set_xlim(least / 1.4, most * 1.4)
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, 0), min(high, 100.5))
    log_ticks(axis.xaxis, decade_ticks(least, most))
    axis.set(xlabel="multiply-adds per image (millions, log scale)", ylabel="top-1, test split (%)")
    legend(figure, [axis], 2 if max(len(row.name) for row in rows) < 22 else 1)
    listed = ", ".join(f"{row.name} {row.top1:.2f} % at {row.multiply_adds / 1e6:.1f} million" for row in rows)
    text = f"Top-1 accuracy and multiply-adds per image: {listed}."
    caption = "Higher is better, further left is cheaper. The true ensemble runs all of its members."
    return Chart("Accuracy against cost", figure, text, caption)


def decade_ticks(least: float, most: float) -> list[float]:
    """At most seven of 1, 2 and 5 times powers of ten in the range, or its ends if there are fewer than two."""
    powers = range(int(np.floor(np.log10(least))) - 1, int(np.ceil(np.log10(most))) + 1)
    for digits in ((1, 2, 5), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        ticks = [tick for tick in ticks if least / 1.4 <= tick <= most * 1.4]
        if len(ticks) <= 7:
            break
    return ticks if len(ticks) > 1 else sorted({float(f"{x:.3g}") for x in (least, most)})


class Confidence(NamedTuple):
    """A network's confidence (0 to 1) and correctness for N images, and its ECE in per cent."""

    confidence: np.ndarray
    right: np.ndarray
    ece: float


def network_confidence(predictions: Predictions, row: Row) -> Confidence:
    """The confidences of the network in `row` of the table."""
    confidence = predictions.confidence[predictions.networks.index(row.name)]
    return Confidence(confidence, predictions.right(row.name), row.ece)


def reliability_chart(networks: dict[str, Confidence]) -> Chart:
    """Accuracy against confidence, a curve per network."""
    figure, axis = axes(3.1 + 0.2 * len(networks))
    axis.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle=(0, (1, 2)), label="perfect")
    for name, network in networks.items():
        confidence, accuracy = calibration(network)
        label = f"{shorten(name, 24)}, ECE {network.ece:.2f} %"
        axis.plot(100 * confidence, 100 * accuracy, label=label, linewidth=1.6, **network_style(name, list(networks)))
    axis.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 103), ylim=(0, 103))
    legend(figure, [axis], 1)
    listed = ", ".join(f"{name} {network.ece:.2f} %" for name, network in networks.items())
    text = f"Accuracy against confidence; expected calibration error: {listed}."
    caption = (
        "Test images in ten bins of the network's confidence. On the dotted line accuracy equals confidence; below it "
        f"the network is overconfident. Bins with fewer than {MIN_BIN_IMAGES} images are left out."
    )
    return Chart("Calibration", figure, text, caption)


def calibration(network: Confidence) -> tuple[np.ndarray, np.ndarray]:
    """(mean confidence, accuracy) of each bin of confidence that has enough images."""
    place = np.minimum((network.confidence * BINS).astype(int), BINS - 1)
    bins = [place == i for i in range(BINS) if (place == i).sum() >= MIN_BIN_IMAGES]
    return np.array([network.confidence[b].mean() for b in bins]), np.array([network.right[b].mean() for b in bins])


def class_chart(predictions: Predictions, name: str = "student", other: str = "student alone") -> Chart | None:
    """Change in accuracy of each class, or of those that changed most; None if no class changed."""
    gain, images = class_gains(predictions, name, other)
    if not gain.any():
        return None
    order = np.argsort(-gain, kind="stable")
    order = order[images[order] > 0]
    left_out = max(len(order) - 2 * BARS, 0)
    drawn = np.concatenate([order[:BARS], order[-BARS:]]) if left_out else order
    labels = [f"{shorten(predictions.classes[i])} ({images[i]})" for i in drawn]
    note = f" {left_out:,} classes that changed less are left out." if left_out else ""
    gaining, losing = (gain[order] > 0).sum(), (gain[order] < 0).sum()
    figure, listed = _draw_changes(gain[drawn], labels, "change (percentage points)", "class (test images)")
    text = f"Accuracy per class, {name} minus {other}: {gaining} classes gain, {losing} lose.{note} {listed}."
    caption = f"Accuracy of the {name} minus that of the {other}, per class.{note}"
    return Chart("Classes", figure, text, caption)


def class_gains(predictions: Predictions, name: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    """(accuracy of `name` minus that of `other` in points, test images) per class, K each."""
    count = len(predictions.classes)
    gap = predictions.right(name).astype(float) - predictions.right(other)
    images = np.bincount(predictions.label, minlength=count)
    return 100 * np.bincount(predictions.label, gap, minlength=count) / np.maximum(images, 1), images


def confusion_chart(predictions: Predictions, name: str = "student", other: str = "student alone") -> Chart | None:
    """The confusions that changed most; None if none changed."""
    now, then = confusions(predictions, name), confusions(predictions, other)
    change = {pair: now[pair] - then[pair] for pair in now.keys() | then.keys() if now[pair] != then[pair]}
    if not change:
        return None
    pairs = sorted(change, key=lambda pair: (-abs(change[pair]), pair))[:BARS]
    pairs.sort(key=lambda pair: change[pair])
    labels = [" → ".join(shorten(predictions.classes[i], 13) for i in pair) for pair in pairs]
    values = np.array([float(change[pair]) for pair in pairs])
    figure, listed = _draw_changes(values, labels, "change (number of images)", "label → prediction (classes)", good=-1)
    text = f"Wrong predictions: {other} {then.total()}, {name} {now.total()}. Change per pair: {listed}."
    caption = (
        f"Label → wrong prediction: number of images of the {name} minus that of the {other}; left is better. "
        "The pairs that changed most."
    )
    return Chart("Changed confusions", figure, text, caption)


def confusions(predictions: Predictions, name: str) -> Counter[tuple[int, int]]:
    """(label, wrong prediction) → number of images."""
    wrong = ~predictions.right(name)
    return Counter(zip(predictions.label[wrong].tolist(), predictions.predicted_by(name)[wrong].tolist(), strict=True))


def _draw_changes(values: np.ndarray, labels: list[str], x: str, y: str, good: int = 1) -> tuple[Figure, str]:
    """Signed bars, and their values as text. x, y: names of the axes. `good`: the sign that is better."""
    figure, axis = axes(max(1.1 + 0.21 * len(values), 2.4))
    signed_bars(axis, values, good, height=0.7)
    name_rows(axis, labels)
    most = max(float(np.abs(values).max(initial=0)), 1)
    low, high = min(1.1 * values.min(initial=0), -0.15 * most), max(1.1 * values.max(initial=0), 0.15 * most)
    axis.set(xlabel=x, ylabel=y, xlim=(low, high))
    return figure, ", ".join(f"{label} {value:+.3g}" for label, value in zip(labels, values, strict=True))


def soft_label_chart(predictions: Predictions, i: int, teachers: list[str]) -> Chart:
    """Probabilities that each network gives the i-th example image, beside its one-hot label."""
    soft_labels = _soft_labels(predictions, i)
    figure, strips = axes(0.54 * len(soft_labels) + 0.75, len(soft_labels), sharex=True)
    figure.supylabel("probability (%)", fontsize=10)
    _draw_soft_labels(strips, predictions, i, teachers)
    listed = "; ".join(f"{name} {_list_likeliest(p, predictions.classes)}" for name, p in soft_labels.items())
    label = predictions.classes[predictions.label[predictions.examples[i]]]
    return Chart(f"Labelled {shorten(label, 40)}", figure, f"Probabilities of one image: {listed}.", "")


def soft_label_picture(predictions: Predictions, teachers: list[str], count: int = 3) -> Chart:
    """The soft labels of the first example images in one figure with the images, for model cards."""
    count, rows = min(count, len(predictions.examples)), len(predictions.networks) + 2
    figure = Figure(figsize=(3.3 * count, 0.5 * rows + 1.4), layout="constrained")
    figure.supylabel("probability (%)", fontsize=10)
    grid = figure.subplots(rows, count, squeeze=False, height_ratios=[2.6] + [1] * (rows - 1))
    for i, column in enumerate(grid.T):
        column[0].imshow(predictions.images[i].transpose(1, 2, 0), interpolation="nearest")
        column[0].set_axis_off()
        _draw_soft_labels(column[1:], predictions, i, teachers)
    labels = [predictions.classes[predictions.label[row]] for row in predictions.examples[:count]]
    text = f"Images labelled {', '.join(labels)}, and the probabilities that each network gives them."
    return Chart("Soft labels", figure, text, "")


def _soft_labels(predictions: Predictions, i: int) -> dict[str, np.ndarray]:
    """Name → probabilities K of the i-th example image: its one-hot label, then each network."""
    one_hot = np.eye(len(predictions.classes))[predictions.label[predictions.examples[i]]]
    return {"label (one-hot)": one_hot, **dict(zip(predictions.networks, predictions.probabilities[i], strict=True))}


def _draw_soft_labels(strips: np.ndarray, predictions: Predictions, i: int, teachers: list[str]) -> None:
    """Bars for each distribution of an image, over the classes that are likeliest in any of them."""
    soft_labels = _soft_labels(predictions, i)
    most = np.max(list(soft_labels.values()), axis=0)  # the label's class is always among them
    drawn = np.sort(np.argsort(-most, kind="stable")[:CLASSES_SHOWN])
    for axis, (name, p) in zip(strips, soft_labels.items(), strict=True):
        color = INK if name not in predictions.networks else network_style(name, teachers)["color"]
        axis.bar(range(len(drawn)), 100 * p[drawn], color=color, width=0.7)
        for x, value in enumerate(p[drawn]):
            if value >= 0.005:
                axis.text(x, 100 * value + 5, f"{100 * value:.0f}", ha="center", va="bottom", fontsize=8)
        axis.set(ylim=(0, 150), yticks=[0, 100], xticks=[])
        axis.set_ylabel(shorten(name, 20), rotation=0, ha="right", va="center", labelpad=4)
        axis.tick_params(labelsize=8)
        axis.grid(visible=False)
    names = [shorten(predictions.classes[k], 11) for k in drawn]
    rotation: dict[str, Any] = {"rotation": 25, "ha": "right"} if max(map(len, names)) > 6 else {}
    strips[-1].set_xticks(range(len(drawn)), names, **rotation)
    strips[-1].set_xlabel("class (name)")


def _list_likeliest(p: np.ndarray, classes: list[str]) -> str:
    best = [k for k in np.argsort(-p, kind="stable")[:3] if p[k] >= 0.01]
    return ", ".join(f"{shorten(classes[k], 40)} {100 * p[k]:.0f} %" for k in best)


def agreement_chart(predictions: Predictions, teacher: str) -> Chart:
    """CKA between the blocks of a teacher and of the student, and of the student alone."""
    tables = {who: predictions.agreement[f"{who}/{teacher}"] for who in ("student", "student alone")}
    rows, columns = tables["student"].shape
    figure, panels = axes(max(1.0 + 0.45 * rows, 2.6), 1, 2, sharey=True)
    means = []
    for axis, (who, table) in zip(panels, tables.items(), strict=True):
        heat_map(axis, table, digits=2, most=1)
        axis.set(title=who, xlabel="teacher's block (number)")
        axis.set_xticks(np.arange(columns) + 0.5, range(1, columns + 1))
        diagonal = table.diagonal()
        known = diagonal[~np.isnan(diagonal)]
        means.append(f"{who} {known.mean():.2f}" if len(known) else f"{who} unknown")
    panels[0].set_yticks(np.arange(rows) + 0.5, range(1, rows + 1))
    panels[0].set_ylabel("student's block (number)")
    text = f"Centred kernel alignment with {teacher}, mean over blocks of equal depth: {', '.join(means)}."
    caption = (
        "Similarity (CKA, 0 to 1) of each block with each block of the teacher on test images. Values above those of "
        "the student alone come from distillation."
    )
    return Chart(f"Blocks: {shorten(teacher, 30)}", figure, text, caption)
