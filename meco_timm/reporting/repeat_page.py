"""The page of recipes that were repeated over seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from meco_timm.common import UserError, write_text
from meco_timm.evaluation import Row, Runs, paired_interval, seeds_table, seeds_text, values_of
from meco_timm.reporting.drawing import INK, Chart, axes, chart_style, shorten
from meco_timm.reporting.pages import render_page

SHOWN = ("student", "student alone", "true ensemble")


def write_repeat_page(repeats: Mapping[str, Runs], folders: Mapping[tuple[str, int], Path], output: Path) -> Path:
    """Write the page of these runs, by recipe and seed, and return its path. folders: of each run.

    Raises:
        UserError: `output` cannot be written.
    """
    heads, lines = seeds_table(repeats)
    with chart_style():
        page = render_page(
            "repeat.html",
            title=f"{', '.join(repeats)}: repeated over seeds",
            verdict=seeds_text(repeats).splitlines(),
            columns=heads,
            cells=lines,
            charts=[seeds_chart(repeats)],
            run_columns=["recipe", "seed", *SHOWN, "NLL", "ECE %", "folder"],
            runs=[
                _run_cells(name, seed, rows, folders[name, seed])
                for name, runs in repeats.items()
                for seed, rows in sorted(runs.items())
            ],
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, page)
    except OSError as error:
        raise UserError(f"repeat: {output} cannot be written: {error.strerror}.") from None
    return output


def _run_cells(name: str, seed: int, rows: Sequence[Row], folder: Path) -> list[str]:
    top1 = {row.name: f"{row.top1:.2f}" for row in rows}
    student = next(row for row in rows if row.name == "student")
    cells = [top1.get(shown, "–") for shown in SHOWN]
    return [name, str(seed), *cells, f"{student.nll:.4f}", f"{student.ece:.2f}", str(folder)]


def seeds_chart(repeats: Mapping[str, Runs]) -> Chart:
    """The student minus itself alone and minus the ensemble: a point per seed, and the interval of the mean."""
    figure, axis = axes(1.4 + 0.55 * len(repeats))
    texts, labels = [], []
    for place, (name, runs) in enumerate(repeats.items()):
        student = values_of(runs, "student")
        for other, colour, shift in (("student alone", "#0072B2", -0.13), ("true ensemble", "#D55E00", 0.13)):
            base = values_of(runs, other)
            gaps = [value - base[seed] for seed, value in student.items() if seed in base]
            if not gaps:
                continue
            found = paired_interval(gaps)
            label = f"− {other}"
            axis.plot(gaps, [place + shift] * len(gaps), "o", color=colour, alpha=0.4, markersize=4)
            axis.errorbar(
                [found.mean], [place + shift], xerr=[found.half if math.isfinite(found.half) else 0], fmt="D",
                color=colour, markersize=5, label=None if label in labels else label,
            )  # fmt: skip
            labels.append(label)
            texts.append(f"{name} {label} {found}")
    axis.axvline(0, color=INK, linewidth=1)
    axis.set_yticks(range(len(repeats)), [shorten(name, 24) for name in repeats])
    axis.set(xlabel="student's top-1 minus the other's, points", ylim=(len(repeats) - 0.5, -0.5))
    figure.legend(loc="outside lower center", ncols=2)
    caption = "Dots: one seed each. Diamonds: the mean with its 95 % interval (Student's t, paired by seed)."
    return Chart("The student against itself alone and the ensemble", figure, "; ".join(texts), caption)
