"""12 · Charts over the steps of a run: what metrics.jsonl holds. Pure functions: lines of metrics in, charts out."""

from itertools import pairwise
from typing import Any

import numpy as np

from meco_timm.recipe import Recipe
from meco_timm.reporting.drawing import GRID, INK, Chart, axes, legend, no_marker, series, short, style

Metrics = list[dict[str, Any]]
STEP = "step"
UNITS = {
    "ce": "nats",
    "kl": "nats",
    "l1": "absolute difference",
    "l2": "squared difference",
    "dist": "1 − correlation",
}
DRAWN_WINDOWS = 20


def column(metrics: Metrics, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the lines that have a finite value of `key`."""
    pairs = [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values, dtype=float)


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a twelfth of the run around each value: the drawn teacher changes from step to step."""
    width = min(max(len(values) // 12, 1), len(values))
    weight = np.ones(width)
    return np.convolve(values, weight, "same") / np.convolve(np.ones(len(values)), weight, "same")


def _keys(metrics: Metrics, family: str) -> list[str]:
    """The terms of a family that the run has, blocks first, in order."""
    keys = {
        key for line in metrics for key, value in line.items() if key.startswith(f"{family}/") and value is not None
    }
    return sorted(keys, key=lambda key: (key.endswith("/logits"), key))


def _named(key: str) -> str:
    place = key.partition("/")[2]
    return place if place == "logits" else f"block {int(place) + 1}" if place.isdigit() else place


def _ends(metrics: Metrics, keys: list[str], digits: int = 3) -> str:
    """`block 1 from 1.2 to 0.4, …`, for those who do not see the curves."""
    told = []
    for key in keys:
        values = smooth(column(metrics, key)[1])
        told.append(f"{_named(key)} from {values[0]:.{digits}g} to {values[-1]:.{digits}g}")
    return ", ".join(told)


def _draw(axis: Any, metrics: Metrics, keys: list[str], scale: float = 1) -> None:
    for i, key in enumerate(keys):
        steps, values = column(metrics, key)
        look = {"color": INK, "linestyle": "-"} if key.endswith("/logits") else no_marker(series(i))
        axis.plot(steps, scale * smooth(values), label=_named(key), linewidth=1.8, **look)


def validation_chart(runs: dict[str, Metrics]) -> Chart | None:
    """Top-1 on the validation split against steps, a curve per run; None where no run looked."""
    curves = {name: column(metrics, "validation/top1") for name, metrics in runs.items()}
    curves = {name: curve for name, curve in curves.items() if len(curve[0]) > 1}
    if not curves:
        return None
    figure, axis = axes(3.2 + 0.2 * len(curves))
    for name, (steps, top1) in curves.items():
        axis.plot(steps, top1, label=short(name, 34), **style(name, list(curves)))
    axis.set(xlabel=f"{STEP} (optimizer steps)", ylabel="top-1, validation split (%)")
    legend(figure, [axis], 1)
    best = "; ".join(
        f"{name} from {top1[0]:.1f} to {top1[-1]:.1f}, best {top1.max():.1f}" for name, (_, top1) in curves.items()
    )
    text = f"Top-1 accuracy in per cent on the validation split over the run: {best}."
    caption = "Accuracy of the student on the validation split, which chooses the weights that are kept."
    return Chart("Learning", figure, text, caption)


def similarity_chart(metrics: Metrics, recipe: Recipe, teachers: dict[str, Metrics]) -> Chart | None:
    """Each similarity term against steps: logits above, blocks below, since their units differ.

    `teachers`: the lines of each, where one was drawn per step; that of logits is then drawn for each.
    """
    logits = [key for key in _keys(metrics, "similarity") if key.endswith("/logits")]
    blocks = [key for key in _keys(metrics, "similarity") if not key.endswith("/logits")]
    panels = [keys for keys in (logits, blocks) if keys]
    if not panels:
        return None
    s = recipe.losses
    scaled = " × temperature²" if s.similarity in ("ce", "kl", "dist") else ""
    units = {"logits": UNITS[s.similarity] + scaled, "blocks": UNITS[s.block_similarity]}
    figure, grid = axes(2.1 * len(panels) + 0.7, len(panels), sharex=True, squeeze=False)
    for axis, keys in zip(grid[:, 0], panels, strict=True):
        which = "logits" if keys is logits else "blocks"
        for i, (name, lines) in enumerate(teachers.items() if which == "logits" else ()):
            steps, values = column(lines, keys[0])
            if len(steps):
                axis.plot(steps, smooth(values), label=f"logits: {short(name)}", linewidth=1.8, **no_marker(series(i)))
        if not axis.lines:
            _draw(axis, metrics, keys)
        axis.set(title=f"{which}: {(s.similarity if which == 'logits' else s.block_similarity)}", ylabel=units[which])
    grid[-1, 0].set(xlabel=f"{STEP} (optimizer steps)")
    legend(figure, grid[:, 0])
    floor = (
        " Cross-entropy ends at the teachers' own entropy, not at 0."
        if "ce" in (s.similarity, s.block_similarity)
        else ""
    )
    text = f"Similarity loss over the run: {_ends(metrics, logits + blocks)}."
    caption = (
        "How far the student's outputs are from the teacher's, per term; lower is nearer. Smoothed over a twelfth of "
        f"the run, since another teacher may be drawn each step.{floor}"
    )
    return Chart("Similarity to the teachers", figure, text, caption)


def adversary_chart(metrics: Metrics) -> Chart | None:
    """Loss and accuracy of each discriminator against steps; None without an adversary."""
    losses, right = _keys(metrics, "adversary"), _keys(metrics, "discriminator_accuracy")
    if not losses:
        return None
    figure, (above, below) = axes(4.9, 2, sharex=True)
    _draw(above, metrics, losses)
    _draw(below, metrics, right, 100)
    above.set(title="loss of the game", ylabel="loss (nats)")
    below.set(
        title="discriminator's accuracy", ylabel="right answers (%)", ylim=(0, 103), xlabel=f"{STEP} (optimizer steps)"
    )
    below.axhline(50, color=INK, linewidth=1, linestyle=":")
    legend(figure, [below], 3)
    ends = ", ".join(f"{_named(key)} {100 * smooth(column(metrics, key)[1])[-1]:.0f} %" for key in right)
    text = f"Share of right answers of each discriminator at the end of the run: {ends}."
    caption = (
        "Teacher or student? At 50 % (dotted) a discriminator cannot tell, and the student has won; near 100 % it "
        "tells them apart at a glance."
    )
    return Chart("Adversary", figure, text, caption)


def drawn_chart(taught: np.ndarray, teachers: list[str]) -> Chart:
    """Share of the steps that each teacher taught, over the run. taught: the teacher's number of each step."""
    windows = min(DRAWN_WINDOWS, len(taught))
    edges = np.linspace(0, len(taught), windows + 1).astype(int)
    middle = (edges[:-1] + edges[1:]) / 2
    figure, axis = axes(3.0 + 0.17 * len(teachers))
    counts = np.bincount(taught, minlength=len(teachers))
    for i, name in enumerate(teachers):
        share = [100 * np.mean(taught[a:b] == i) for a, b in pairwise(edges)]
        axis.plot(middle, share, label=f"{name}: {counts[i]:,} steps", **series(i))
    axis.axhline(100 / len(teachers), color=GRID, linewidth=2, zorder=0)
    axis.set(xlabel=f"{STEP} (optimizer steps)", ylabel="share of the steps (%)", ylim=(0, None))
    legend(figure, [axis], 1)
    told = ", ".join(f"{name} {count:,}" for name, count in zip(teachers, counts, strict=True))
    text = f"Steps taught by each teacher, of {len(taught):,}: {told}."
    caption = f"One teacher is drawn per step; its share of each {windows}th part of the run."
    return Chart("Teacher drawn", figure, text, caption)
