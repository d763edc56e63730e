"""Statistics over seeds: means, standard deviations and intervals of paired differences."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

from meco_timm.evaluation.rows import Row

# 0.975 quantiles of Student's t with 1, 2, … degrees of freedom; the normal distribution's beyond.
T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip
HEADS = ["", "seeds", "student", "alone", "ensemble", "− alone", "− ensemble", "NLL", "ECE %"]
Runs = Mapping[int, Sequence[Row]]  # seed → the table of its run


class Interval(NamedTuple):
    """A mean, and half the width of its 95 % interval."""

    mean: float
    half: float

    def __str__(self) -> str:
        text = f"{self.mean:+.2f} ± {self.half:.2f}" if math.isfinite(self.half) else f"{self.mean:+.2f}"
        return text.replace("-", "−")

    @property
    def is_clear(self) -> bool:
        """Whether zero lies outside the interval."""
        return abs(self.mean) > self.half


def paired_interval(differences: Sequence[float]) -> Interval:
    """The interval of the mean of paired differences, one per seed, by Student's t; infinite for one seed."""
    n = len(differences)
    if n == 1:
        return Interval(differences[0], math.inf)
    quantile = T975[n - 2] if n - 2 < len(T975) else 1.96
    return Interval(mean(differences), quantile * stdev(differences) / math.sqrt(n))


def values_of(runs: Runs, name: str, field: str = "top1") -> dict[int, float]:
    """A field of the row of that name, by seed, of the runs that have the row."""
    return {seed: getattr(row, field) for seed, rows in runs.items() for row in rows if row.name == name}


def seeds_difference(runs: Runs, name: str, other: Runs | None = None) -> Interval | None:
    """Student minus the network `name` in top-1, paired by seed; of `other` runs, if given. None without pairs."""
    student, base = values_of(runs, "student"), values_of(other or runs, name)
    pairs = [value - base[seed] for seed, value in student.items() if seed in base]
    return paired_interval(pairs) if pairs else None


def seeds_table(repeats: Mapping[str, Runs]) -> tuple[list[str], list[list[str]]]:
    """Heads and one line per recipe: mean ± standard deviation over seeds, 95 % intervals of paired differences.

    With several recipes also the student minus the first recipe's student.
    """
    first = next(iter(repeats))
    heads = [*HEADS, *([f"− {first}"] if len(repeats) > 1 else [])]
    lines = []
    for name, runs in repeats.items():
        cells = [name, str(len(runs))]
        cells += [_spread(values_of(runs, row)) for row in ("student", "student alone", "true ensemble")]
        cells += [_text(seeds_difference(runs, row)) for row in ("student alone", "true ensemble")]
        nll, ece = (mean(values_of(runs, "student", field).values()) for field in ("nll", "ece"))
        cells += [f"{nll:.4f}", f"{ece:.2f}"]
        if len(repeats) > 1:
            cells.append("" if name == first else _text(seeds_difference(runs, "student", repeats[first])))
        lines.append(cells)
    return heads, lines


def _spread(values: Mapping[int, float]) -> str:
    if not values:
        return "–"
    found = list(values.values())
    return f"{mean(found):.2f} ± {stdev(found):.2f}" if len(found) > 1 else f"{found[0]:.2f}"


def _text(interval: Interval | None) -> str:
    return "–" if interval is None else str(interval)


def seeds_text(repeats: Mapping[str, Runs]) -> str:
    """In sentences, whether the student differs from itself alone and, of several recipes, from the first's."""
    lines = []
    first = next(iter(repeats))
    for name, runs in repeats.items():
        seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
        pairs = [(row, seeds_difference(runs, row)) for row in ("student alone", "true ensemble")]
        if name != first:
            pairs.append((f"student of {first}", seeds_difference(runs, "student", repeats[first])))
        gaps = [f"− {other} {found} points ({_judge(found)})" for other, found in pairs if found is not None]
        lines.append(f"{name}, {seeds}: student {', '.join(gaps)}")
    return "\n".join(lines)


def _judge(interval: Interval) -> str:
    if not math.isfinite(interval.half):
        return "one seed"
    return "significant" if interval.is_clear else "not significant"
