"""12 · Charts of what the networks can do: the table and the predictions on the test split. Pure functions."""

from collections import Counter
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from meco_timm.evaluation import Predictions, Row
from meco_timm.reporting.drawing import GREEN, INK, VERMILION, Chart, axes, legend, log_ticks, short, style

BINS = 10
FEWEST = 5  # images in a bin of the calibration diagram, for its accuracy to say something
BARS = 12  # confusions at most, and classes on either side
CLASSES_SHOWN = 6  # in a soft label


def cost_chart(rows: list[Row], others: list[str]) -> Chart:
    """Top-1 against multiply-adds. `others`: the names that are no role, in the order of their looks."""
    figure, axis = axes(3.0 + 0.11 * len(rows))
    for row in rows:
        look = style(row.name, others)
        spot = look | {"linestyle": "", "markersize": 1.3 * look["markersize"]}
        axis.plot(_millions(row), row.top1, label=short(row.name, 34), clip_on=False, **spot)
    axis.set_xscale("log")
    least, most = (f(map(_millions, rows)) for f in (min, max))
    axis.set_xlim(least / 1.4, most * 1.4)
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, 0), min(high, 100.5))
    log_ticks(axis.xaxis, decade_ticks(least, most))
    axis.set(xlabel="multiply-adds per image (millions, log scale)", ylabel="top-1, test split (%)")
    legend(figure, [axis], 2 if max(len(row.name) for row in rows) < 22 else 1)
    told = ", ".join(f"{row.name} {row.top1:.2f} % at {row.multiply_adds / 1e6:.1f} million" for row in rows)
    text = f"Top-1 accuracy and multiply-adds per image: {told}."
    caption = "Up is better, left is cheaper. A true ensemble pays for all of its members."
    return Chart("Accuracy against cost", figure, text, caption)


def _millions(row: Row) -> float:
    """Of multiply-adds, and never 0, which a logarithmic axis has no place for."""
    return max(row.multiply_adds, 1) / 1e6


def decade_ticks(least: float, most: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the two, no more than seven; the two themselves where there is none."""
    powers = range(int(np.floor(np.log10(least))) - 1, int(np.ceil(np.log10(most))) + 1)
    for digits in ((1, 2, 5), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        ticks = [tick for tick in ticks if least / 1.4 <= tick <= most * 1.4]
        if len(ticks) <= 7:
            break
    return ticks if len(ticks) > 1 else sorted({float(f"{x:.3g}") for x in (least, most)})


class Answers(NamedTuple):
    """Of N images, how sure a network is of its answer (0 to 1) and whether it is right; its ECE in per cent."""

    confidence: np.ndarray
    right: np.ndarray
    ece: float


def answers(predictions: Predictions, row: Row) -> Answers:
    """Those of a network of the table."""
    confidence = predictions.confidence[predictions.networks.index(row.name)]
    return Answers(confidence, predictions.right(row.name), row.ece)


def reliability_chart(networks: dict[str, Answers]) -> Chart:
    """Accuracy against confidence, a curve per network."""
    figure, axis = axes(3.1 + 0.2 * len(networks))
    axis.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle=(0, (1, 2)), label="perfect")
    for name, said in networks.items():
        confidence, accuracy = calibration(said)
        label = f"{short(name, 24)}, ECE {said.ece:.2f} %"
        axis.plot(100 * confidence, 100 * accuracy, label=label, linewidth=1.6, **style(name, list(networks)))
    axis.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 103), ylim=(0, 103))
    legend(figure, [axis], 1)
    told = ", ".join(f"{name} {said.ece:.2f} %" for name, said in networks.items())
    text = f"Accuracy against confidence; expected calibration error: {told}."
    caption = (
        "Images put together by the network's confidence, ten bins: on the dotted line it is as often right as it "
        f"says; below, it claims too much. Bins of fewer than {FEWEST} images are left out."
    )
    return Chart("Calibration", figure, text, caption)


def calibration(said: Answers) -> tuple[np.ndarray, np.ndarray]:
    """(mean confidence, accuracy) of each of ten bins of confidence with images enough."""
    place = np.minimum((said.confidence * BINS).astype(int), BINS - 1)
    bins = [place == i for i in range(BINS) if (place == i).sum() >= FEWEST]
    return np.array([said.confidence[b].mean() for b in bins]), np.array([said.right[b].mean() for b in bins])


def class_chart(predictions: Predictions, name: str = "student", other: str = "student alone") -> Chart | None:
    """Gain or loss in accuracy of each class; of many classes those that changed most; None where none did."""
    gain, images = class_gains(predictions, name, other)
    if not gain.any():
        return None
    order = np.argsort(-gain, kind="stable")
    order = order[images[order] > 0]
    left_out = max(len(order) - 2 * BARS, 0)
    shown = np.concatenate([order[:BARS], order[-BARS:]]) if left_out else order
    labels = [f"{short(predictions.classes[i])} ({images[i]})" for i in shown]
    note = f" {left_out:,} classes between the two ends are not drawn." if left_out else ""
    return _bars("Classes", gain[shown], labels, "change (percentage points)", "class (test images)",
                 f"Accuracy per class, {name} minus {other}: "
                 f"{(gain[order] > 0).sum()} classes gain, {(gain[order] < 0).sum()} lose.{note} ",
                 f"What the {name} has right more or less often than the {other}, class by class.{note}")  # fmt: skip


def class_gains(predictions: Predictions, name: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    """(points of accuracy of `name` above `other`, test images) per class, K each."""
    count = len(predictions.classes)
    gap = predictions.right(name).astype(float) - predictions.right(other)
    images = np.bincount(predictions.label, minlength=count)
    return 100 * np.bincount(predictions.label, gap, minlength=count) / np.maximum(images, 1), images


def confusion_chart(predictions: Predictions, name: str = "student", other: str = "student alone") -> Chart | None:
    """The confusions that moved most; None where none did."""
    now, then = confusions(predictions, name), confusions(predictions, other)
    change = {pair: now[pair] - then[pair] for pair in now.keys() | then.keys() if now[pair] != then[pair]}
    if not change:
        return None
    pairs = sorted(change, key=lambda pair: (-abs(change[pair]), pair))[:BARS]
    pairs.sort(key=lambda pair: change[pair])
    names = [" → ".join(short(predictions.classes[i], 13) for i in pair) for pair in pairs]
    return _bars("Confusion that moved", np.array([float(change[pair]) for pair in pairs]), names,
                 "change (number of images)", "label → answer (classes)",
                 f"Wrong answers, {name} minus {other}: {then.total()} before, {now.total()} now. ",
                 f"Label → answer, and how many images more or fewer the {name} confuses so than the {other}: "
                 "left is better. The pairs that moved most.", good=-1)  # fmt: skip


def confusions(predictions: Predictions, name: str) -> Counter[tuple[int, int]]:
    """(label, answer) → how many images the network gets wrong so."""
    wrong = ~predictions.right(name)
    answers = predictions.predicted[predictions.networks.index(name)]
    return Counter(zip(predictions.label[wrong].tolist(), answers[wrong].tolist(), strict=True))


def _bars(
    title: str, values: np.ndarray, labels: list[str], x: str, y: str, text: str, caption: str, good: int = 1
) -> Chart:
    """Bars to the left and right of 0; those for the worse hatched. `good`: the sign of the better."""
    figure, axis = axes(max(1.1 + 0.21 * len(values), 2.4))
    worse = np.sign(values) == -good
    bars = axis.barh(range(len(values)), values, color=[VERMILION if w else GREEN for w in worse], height=0.7)
    for bar, is_worse in zip(bars, worse, strict=True):
        bar.set_hatch("////" if is_worse else "")
    axis.set_yticks(range(len(values)), labels)
    axis.invert_yaxis()
    axis.axvline(0, color=INK, linewidth=1)
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.08)
    most = max(float(np.abs(values).max(initial=0)), 1)
    axis.set(
        xlabel=x,
        ylabel=y,
        xlim=(min(values.min(initial=0) * 1.1, -0.15 * most), max(values.max(initial=0) * 1.1, 0.15 * most)),
    )
    told = ", ".join(f"{label} {value:+.3g}" for label, value in zip(labels, values, strict=True))
    return Chart(title, figure, text + told + ".", caption)


def soft_label_chart(predictions: Predictions, i: int, teachers: list[str]) -> Chart:
    """What each network says of the i-th shown image, beside its one-hot label: a strip of bars each."""
    sources = soft_labels(predictions, i)
    figure, strips = axes(0.54 * len(sources) + 0.75, len(sources), sharex=True)
    figure.supylabel("probability (%)", fontsize=10)
    _strips(strips, predictions, i, teachers)
    told = "; ".join(f"{name} {_likeliest(share, predictions.classes)}" for name, share in sources.items())
    label = predictions.classes[predictions.label[predictions.shown[i]]]
    return Chart(f"Labelled {short(label, 40)}", figure, f"Probabilities of one image: {told}.", "")


def soft_label_picture(predictions: Predictions, teachers: list[str], count: int = 3) -> Chart:
    """The same of the first images in one picture, with the images: for pages that take nothing but pictures."""
    count, rows = min(count, len(predictions.shown)), len(predictions.networks) + 2
    figure = Figure(figsize=(3.3 * count, 0.5 * rows + 1.4), layout="constrained")
    figure.supylabel("probability (%)", fontsize=10)
    grid = figure.subplots(rows, count, squeeze=False, height_ratios=[2.6] + [1] * (rows - 1))
    for i, column in enumerate(grid.T):
        column[0].imshow(predictions.images[i].transpose(1, 2, 0), interpolation="nearest")
        column[0].set_axis_off()
        _strips(column[1:], predictions, i, teachers)
    labels = [predictions.classes[predictions.label[row]] for row in predictions.shown[:count]]
    text = f"Images labelled {', '.join(labels)}, and the probabilities that each network gives them."
    return Chart("Soft labels", figure, text, "")


def soft_labels(predictions: Predictions, i: int) -> dict[str, np.ndarray]:
    """name → distribution K over the classes of the i-th shown image: the one-hot label, then each network."""
    one_hot = np.eye(len(predictions.classes))[predictions.label[predictions.shown[i]]]
    return {"label (one-hot)": one_hot, **dict(zip(predictions.networks, predictions.shares[i], strict=True))}


def _strips(strips: np.ndarray, predictions: Predictions, i: int, teachers: list[str]) -> None:
    """A strip of bars for each distribution of an image, over the classes that any of them thinks likely."""
    sources = soft_labels(predictions, i)
    most = np.max(list(sources.values()), axis=0)  # the label's class is among them, with 1
    drawn = np.sort(np.argsort(-most, kind="stable")[:CLASSES_SHOWN])
    for axis, (name, share) in zip(strips, sources.items(), strict=True):
        color = INK if name not in predictions.networks else style(name, teachers)["color"]
        axis.bar(range(len(drawn)), 100 * share[drawn], color=color, width=0.7)
        for x, value in enumerate(share[drawn]):
            if value >= 0.005:
                axis.text(x, 100 * value + 5, f"{100 * value:.0f}", ha="center", va="bottom", fontsize=8)
        axis.set(ylim=(0, 150), yticks=[0, 100], xticks=[])
        axis.set_ylabel(short(name, 20), rotation=0, ha="right", va="center", labelpad=4)
        axis.tick_params(labelsize=8)
        axis.grid(visible=False)
    names = [short(predictions.classes[k], 11) for k in drawn]
    turned = {"rotation": 25, "ha": "right"} if max(map(len, names)) > 6 else {}
    strips[-1].set_xticks(range(len(drawn)), names, **turned)
    strips[-1].set_xlabel("class (name)")


def _likeliest(share: np.ndarray, classes: list[str]) -> str:
    best = [k for k in np.argsort(-share, kind="stable")[:3] if share[k] >= 0.01]
    return ", ".join(f"{short(classes[k], 40)} {100 * share[k]:.0f} %" for k in best)


def agreement_chart(predictions: Predictions, teacher: str) -> Chart:
    """CKA between blocks of a teacher and of the student, beside the student alone's."""
    tables = {who: predictions.agreement[f"{who}/{teacher}"] for who in ("student", "student alone")}
    rows, columns = tables["student"].shape
    figure, panels = axes(max(1.0 + 0.45 * rows, 2.6), 1, 2, sharey=True)
    for axis, (who, table) in zip(panels, tables.items(), strict=True):
        axis.pcolormesh(table, cmap="cividis", vmin=0, vmax=1, edgecolor="white", linewidth=0.5)
        for (i, j), value in np.ndenumerate(table):
            color = "white" if not value > 0.55 else "black"
            axis.text(
                j + 0.5,
                i + 0.5,
                "–" if np.isnan(value) else f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=9,
                color=color,
            )
        axis.set(title=who, xlabel="teacher's block (number)")
        axis.set_xticks(np.arange(columns) + 0.5, range(1, columns + 1))
        axis.grid(visible=False)
    panels[0].set_yticks(np.arange(rows) + 0.5, range(1, rows + 1))
    panels[0].set_ylabel("student's block (number)")
    known = {who: table.diagonal()[~np.isnan(table.diagonal())] for who, table in tables.items()}
    told = ", ".join(f"{who} {values.mean():.2f}" if len(values) else f"{who} unknown" for who, values in known.items())
    text = f"Centred kernel alignment with {teacher}, mean over blocks of equal depth: {told}."
    caption = (
        "Similarity (CKA, 0 to 1) of each block with each of the teacher's on test images, first block first. What the "
        "student has above the student alone it has from its teachers."
    )
    return Chart(f"Blocks: {short(teacher, 30)}", figure, text, caption)
