"""Charts of metrics.jsonl over the steps of a run. Pure functions: lines of metrics in, charts out."""

from itertools import pairwise
from typing import Any

import numpy as np

from meco_timm.common import short_name
from meco_timm.reporting.drawing import GRID, INK, Chart, axes, legend, line_style, network_style, series_style, shorten

Metrics = list[dict[str, Any]]
STEPS = "step (optimizer steps)"
UNITS = {
    "ce": "nats",
    "kl": "nats",
    "l1": "absolute difference",
    "l2": "squared difference",
    "dist": "1 − correlation",
}
WINDOWS = 20  # of the chart of drawn teachers


def column(metrics: Metrics, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the lines that have a value of `key`."""
    pairs = [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values, dtype=float)


def smooth(values: np.ndarray) -> np.ndarray:
    """Moving average over a twelfth of the run: losses depend on the drawn teacher, so they jump between steps."""
    width = min(max(len(values) // 12, 1), len(values))
    weight = np.ones(width)
    return np.convolve(values, weight, "same") / np.convolve(np.ones(len(values)), weight, "same")


def _keys(metrics: Metrics, family: str) -> list[str]:
    """The keys `family/…` that the metrics have, blocks first, in order."""
    prefix = f"{family}/"
    keys = {key for line in metrics for key, value in line.items() if key.startswith(prefix) and value is not None}
    return sorted(keys, key=lambda key: (key.endswith("/logits"), key))


def _label(key: str) -> str:
    place = key.partition("/")[2]
    return f"block {int(place) + 1}" if place.isdigit() else place


def _draw(axis: Any, metrics: Metrics, keys: list[str], scale: float = 1) -> None:
    for i, key in enumerate(keys):
        steps, values = column(metrics, key)
        style = line_style(i) | ({"color": INK, "linestyle": "-"} if key.endswith("/logits") else {})
        axis.plot(steps, scale * smooth(values), label=_label(key), **style)


def validation_chart(runs: dict[str, Metrics]) -> Chart | None:
    """Top-1 on the validation split against steps, a curve per run; None if no run validated twice."""
    curves = {name: column(metrics, "validation/top1") for name, metrics in runs.items()}
    curves = {name: curve for name, curve in curves.items() if len(curve[0]) > 1}
    if not curves:
        return None
    figure, axis = axes(3.2 + 0.2 * len(curves))
    for name, (steps, top1) in curves.items():
        axis.plot(steps, top1, label=shorten(name, 34), **network_style(name, list(curves)))
    axis.set(xlabel=STEPS, ylabel="top-1, validation split (%)")
    legend(figure, [axis], 1)
    best = "; ".join(
        f"{name} from {top1[0]:.1f} to {top1[-1]:.1f}, best {top1.max():.1f}" for name, (_, top1) in curves.items()
    )
    text = f"Top-1 accuracy in per cent on the validation split over the run: {best}."
    caption = "Accuracy on the validation split, which selects the saved weights."
    return Chart("Learning", figure, text, caption)


def similarity_chart(metrics: Metrics, losses: dict[str, Any], teachers: dict[str, Metrics]) -> Chart | None:
    """Each similarity term against steps: logits, embeddings and blocks in panels, since their units differ.

    losses: the recipe's section. teachers: the metrics of the steps of each teacher, if one was drawn per step; logits
    then have a curve for each.
    """
    keys = _keys(metrics, "similarity")
    logits, embedding = ([key for key in keys if key.endswith(f"/{output}")] for output in ("logits", "embedding"))
    blocks = [key for key in keys if key not in logits + embedding]
    panels = [terms for terms in (logits, embedding, blocks) if terms]
    if not panels:
        return None
    figure, grid = axes(2.1 * len(panels) + 0.7, len(panels), sharex=True, squeeze=False)
    for axis, terms in zip(grid[:, 0], panels, strict=True):
        if terms is not blocks:
            _draw_per_teacher(axis, teachers, terms[0])
        if not axis.lines:
            _draw(axis, metrics, terms)
        if terms is embedding:
            axis.set(title="embedding: 1 − cosine + smooth L1", ylabel="loss (difference)")
        else:
            axis.set(**(_logits_labels if terms is logits else _blocks_labels)(losses))
    grid[-1, 0].set(xlabel=STEPS)
    legend(figure, grid[:, 0])
    minimum = ""
    if losses["similarity"] == "ce" and logits:
        minimum = " Logits: cross-entropy less the teachers' entropy (KL), 0 where they agree."
    if losses["block_similarity"] == "ce" and blocks:
        minimum += " Blocks: the minimum of their cross-entropy is the teachers' entropy, not 0."
    curves = {_label(key): smooth(column(metrics, key)[1]) for key in logits + embedding + blocks}
    ends = ", ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, values in curves.items())
    caption = (
        "Distance between the outputs of student and teacher, per term; lower is closer. Smoothed over a twelfth of "
        f"the run, since another teacher may be drawn at each step.{minimum}"
    )
    return Chart("Similarity to the teachers", figure, f"Similarity loss over the run: {ends}.", caption)


def _draw_per_teacher(axis: Any, teachers: dict[str, Metrics], key: str) -> None:
    for i, (name, lines) in enumerate(teachers.items()):
        steps, values = column(lines, key)
        if len(steps):
            axis.plot(steps, smooth(values), label=f"{_label(key)}: {shorten(name)}", **line_style(i))


def _blocks_labels(losses: dict[str, Any]) -> dict[str, str]:
    """Title and y axis of the blocks' panel."""
    return {"title": f"blocks: {losses['block_similarity']}", "ylabel": UNITS.get(losses["block_similarity"], "loss")}


def _logits_labels(losses: dict[str, Any]) -> dict[str, str]:
    """Title and y axis of the logits' panel. The unit of a function of the caller's is not known."""
    similarity = losses["similarity"]
    scaled = " × temperature²" if similarity in ("ce", "kl", "dist") else ""
    name = "ce, shown as KL" if similarity == "ce" else short_name(similarity)
    return {"title": f"logits: {name}", "ylabel": UNITS.get(similarity, "loss") + scaled}


def adversary_chart(metrics: Metrics) -> Chart | None:
    """Loss and accuracy of each discriminator against steps; None without an adversary."""
    losses, right = _keys(metrics, "adversary"), _keys(metrics, "discriminator_accuracy")
    if not losses:
        return None
    figure, (above, below) = axes(4.9, 2, sharex=True)
    _draw(above, metrics, losses)
    _draw(below, metrics, right, 100)
    above.set(title="adversarial loss", ylabel="loss (nats)")
    below.set(title="discriminator's accuracy", ylabel="accuracy (%)", ylim=(0, 103), xlabel=STEPS)
    below.axhline(50, color=INK, linewidth=1, linestyle=":")
    legend(figure, [below], 3)
    ends = ", ".join(f"{_label(key)} {100 * smooth(column(metrics, key)[1])[-1]:.0f} %" for key in right)
    text = f"Accuracy of each discriminator at the end of the run: {ends}."
    caption = (
        "Each discriminator classifies outputs as teacher or student. At 50 % (dotted) it cannot distinguish them; "
        "near 100 % the outputs are easy to distinguish."
    )
    return Chart("Adversary", figure, text, caption)


def drawn_chart(drawn: np.ndarray, teachers: list[str]) -> Chart:
    """Share of the steps for which each teacher was drawn, over the run. `drawn`: index of the teacher of each step."""
    windows = min(WINDOWS, len(drawn))
    edges = np.linspace(0, len(drawn), windows + 1).astype(int)
    middle = (edges[:-1] + edges[1:]) / 2
    figure, axis = axes(3.0 + 0.17 * len(teachers))
    counts = np.bincount(drawn, minlength=len(teachers))
    for i, name in enumerate(teachers):
        share = [100 * np.mean(drawn[a:b] == i) for a, b in pairwise(edges)]
        axis.plot(middle, share, label=f"{name}: {counts[i]:,} steps", **series_style(i))
    axis.axhline(100 / len(teachers), color=GRID, linewidth=2, zorder=0)
    axis.set(xlabel=STEPS, ylabel="share of the steps (%)", ylim=(0, None))
    legend(figure, [axis], 1)
    listed = ", ".join(f"{name} {count:,}" for name, count in zip(teachers, counts, strict=True))
    text = f"Steps of each teacher, of {len(drawn):,}: {listed}."
    caption = f"One teacher is drawn per step. Share of each teacher in {windows} equal parts of the run."
    return Chart("Drawn teachers", figure, text, caption)
