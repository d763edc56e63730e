"""Charts of what each teacher adds to the true ensemble, from a run's predictions on the test split. Pure functions."""

import numpy as np
import torch

from meco_timm.evaluation import Difference, Predictions, bootstrap_changes
from meco_timm.reporting.drawing import (
    GREEN,
    Chart,
    axes,
    heat_map,
    legend,
    name_rows,
    network_style,
    shorten,
    signed_bars,
)
from meco_timm.reporting.results import Results

SMALLEST = 1e-20  # probability of a label


def teacher_charts(results: Results) -> list[Chart]:
    """The charts that the run's files allow; none of a single teacher."""
    p, teachers = results.predictions, results.teachers
    if p is None or len(teachers) < 2:
        return []
    added = added_by_teachers(results)
    charts = [contribution_chart(added)] if added else []
    charts.append(disagreement_chart(p, teachers))
    charts += [size_chart(results, p)] if len(p.counts) else []
    return [*charts, student_agreement_chart(p, teachers)]


def added_by_teachers(results: Results) -> dict[str, Difference]:
    """The true ensemble with each teacher minus without it, on the test split; empty of one teacher."""
    p, teachers, weights = results.predictions, results.teachers, results.weights
    names = [name for name in teachers if p and f"without/{name}" in p.ensembles]
    if p is None or not names:
        return {}
    weighted = {name: weights[name] * p.of_label[p.networks.index(name)].astype(np.float64) for name in teachers}
    whole, total = sum(weighted.values()), sum(weights[name] for name in teachers)
    top1, nll = [], []
    for name in names:
        rest = (whole - weighted[name]) / (total - weights[name])
        nll.append(np.log(np.maximum(rest, SMALLEST)) - np.log(np.maximum(whole / total, SMALLEST)))
        top1.append(100.0 * (p.right("true ensemble").astype(float) - (p.ensembles[f"without/{name}"] == p.label)))
    changes = (bootstrap_changes(torch.from_numpy(np.stack(values))) for values in (top1, nll))
    return {name: Difference(*pair) for name, *pair in zip(names, *changes, strict=True)}


def contribution_chart(added: dict[str, Difference]) -> Chart:
    """Bars with intervals for top-1 and NLL; hatched where the teacher makes the ensemble worse."""
    figure, panels = axes(1.3 + 0.32 * len(added), 1, 2, sharey=True)
    for axis, measure, unit, good in zip(panels, ("top1", "nll"), ("top-1, points", "NLL, nats"), (1, -1), strict=True):
        mean, low, high = np.array([getattr(difference, measure) for difference in added.values()]).T
        signed_bars(axis, mean, good, xerr=[mean - low, high - mean], height=0.65)
        axis.set(xlabel=unit)
        axis.locator_params(axis="x", nbins=3)  # more labels would touch
    name_rows(panels[0], [shorten(name) for name in added])
    panels[0].set_ylabel("teacher (name)")
    listed = "; ".join(f"{name} {a.top1.text(2)} points, NLL {a.nll.text(4)}" for name, a in added.items())
    text = f"True ensemble with each teacher minus without it, with 95 % intervals: {listed}."
    caption = (
        "The true ensemble with a teacher minus without it, on the test images, with 95 % bootstrap intervals. A "
        "teacher helps where top-1 is above 0 and NLL below; hatched bars are on the wrong side."
    )
    return Chart("Contribution of each teacher", figure, text, caption)


def disagreement_chart(p: Predictions, teachers: list[str]) -> Chart:
    """Share of test images for which two teachers predict different classes."""
    predicted = np.stack([p.predicted_by(name) for name in teachers])
    table = 100 * (predicted[:, None] != predicted).mean(2)
    figure, axis = axes(max(1.4 + 0.42 * len(teachers), 2.6))
    heat_map(axis, table, digits=1, most=max(table.max(), 1.0), skip_diagonal=True)
    places = np.arange(len(teachers)) + 0.5
    axis.set_yticks(places, [f"{i} {shorten(name)}" for i, name in enumerate(teachers, 1)])
    axis.set_xticks(places, range(1, len(teachers) + 1))
    axis.set(xlabel="teacher (number)", ylabel="teacher (number and name)")
    axis.invert_yaxis()
    pairs = zip(*np.triu_indices(len(teachers), 1), strict=True)
    listed = "; ".join(f"{teachers[i]} and {teachers[j]} {table[i, j]:.1f} %" for i, j in pairs)
    caption = "Share of test images, in per cent, for which two teachers predict different classes. 0: they repeat."
    return Chart("Disagreement", figure, f"Images with different predictions: {listed}.", caption)


def size_chart(results: Results, p: Predictions) -> Chart:
    """Top-1 on the test split against multiply-adds of the best ensemble of each size, and of the student."""
    cost = np.array([results.row(name).multiply_adds for name in results.teachers]) / 1e6
    top1 = [100 * (p.ensembles[f"size/{k}"] == p.label).mean() for k in range(1, len(p.counts) + 1)]
    x = (p.counts > 0) @ cost
    figure, axis = axes(3.4)
    axis.plot(x, top1, color=GREEN, marker="o", markersize=7, linestyle="-", label="best ensemble of each size")
    sizes_at: dict[tuple[float, float], list[int]] = {}
    for size, point in enumerate(zip(x.tolist(), top1, strict=True), 1):
        sizes_at.setdefault(point, []).append(size)
    for point, sizes in sizes_at.items():
        label = f"{sizes[0]}–{sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
        axis.annotate(label, point, xytext=(5, 6), textcoords="offset points", fontsize=9)
    for name in ("true ensemble", "student"):
        row, style = results.row(name), network_style(name, []) | {"linestyle": ""}
        axis.plot(row.multiply_adds / 1e6, row.top1, label=name, **style)
    axis.margins(0.12)
    axis.set(xlabel="multiply-adds per image (millions)", ylabel="top-1, test split (%)")
    legend(figure, [axis], 1)
    listed = "; ".join(f"{k}: {y:.2f} % at {c:.1f} million" for k, (c, y) in enumerate(zip(x, top1, strict=True), 1))
    text = f"Top-1 and multiply-adds of the best ensemble of each size: {listed}."
    caption = (
        "Numbers at the points: members, some of them perhaps twice. Chosen by greedy selection on the validation "
        "split, measured on the test split."
    )
    return Chart("Ensemble size and cost", figure, text, caption)


def student_agreement_chart(p: Predictions, teachers: list[str]) -> Chart:
    """Share of test images for which the student, and the student alone, predict what each teacher does."""
    figure, axis = axes(1.6 + 0.32 * len(teachers))
    shares = {}
    for who in ("student alone", "student"):
        shares[who] = [100 * np.mean(p.predicted_by(who) == p.predicted_by(name)) for name in teachers]
        axis.plot(shares[who], range(len(teachers)), label=who, **network_style(who, []) | {"linestyle": ""})
    name_rows(axis, [shorten(name) for name in teachers])
    axis.set(xlabel="same prediction (% of test images)", ylabel="teacher (name)")
    axis.margins(0.12)
    legend(figure, [axis])
    rows = zip(teachers, shares["student"], shares["student alone"], strict=True)
    listed = "; ".join(f"{name}: student {a:.1f} %, student alone {b:.1f} %" for name, a, b in rows)
    caption = "How often the student predicts what a teacher does. Right of the student alone: learned from them."
    return Chart("Agreement of the student", figure, f"Same prediction as each teacher: {listed}.", caption)
