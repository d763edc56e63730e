"""The page that compares several runs."""

from pathlib import Path
from typing import Any

import numpy as np

from meco_timm.common import UserError, write_text
from meco_timm.evaluation import Row
from meco_timm.recipe import Recipe, changed_keys, recipe_key
from meco_timm.reporting.curves import validation_chart
from meco_timm.reporting.drawing import Chart, chart_style
from meco_timm.reporting.figures import cost_chart, network_confidence, reliability_chart
from meco_timm.reporting.pages import render_page
from meco_timm.reporting.results import Results, difference, interval, millions, read_results
from meco_timm.reporting.teacher_charts import added_by_teachers, contribution_chart

Runs = dict[str, Results]


def compare(runs: list[str | Path], output: str | Path = "compare.html") -> Path:
    """Write one page that compares several finished runs, and return its path.

    Raises:
        UserError: fewer than two runs are named, one has not finished, or `output` cannot be written.
    """
    if len({Path(run).resolve() for run in runs}) < 2:
        raise UserError("compare: name at least two runs, each by its run folder.")
    found = [read_results(run) for run in runs]
    names = [results.folder.path.resolve().name for results in found]
    unique = len(set(names)) == len(names)
    page = compare_page(dict(zip(names if unique else [str(run) for run in runs], found, strict=True)))
    try:
        write_text(Path(output), page)
    except OSError as error:
        raise UserError(f"compare: {output} cannot be written: {error.strerror}.") from None
    return Path(output)


def compare_page(runs: Runs) -> str:
    """The page as HTML; `runs` by the name that the page gives them."""
    with chart_style():
        return render_page(
            "compare.html",
            title=f"{len(runs)} runs",
            verdict=_verdict(runs),
            columns=[
                "",
                "student",
                "teachers",
                "seed",
                "top-1 %",
                "above alone",
                "above ensemble",
                "NLL",
                "ECE %",
                "MACs M",
            ],
            cells=[_cells(name, results) for name, results in runs.items()],
            notes=_notes(runs),
            charts=_charts(runs),
            teachers=_teachers(runs),
            names=list(runs),
            changed=_changed(runs),
        )


def _student(results: Results) -> Row:
    return results.row("student")


def _verdict(runs: Runs) -> str:
    """The best run, and whether it is significantly better than the second."""
    best, second = sorted(runs, key=lambda name: -_student(runs[name]).top1)[:2]
    top1, next_best = _student(runs[best]).top1, _student(runs[second]).top1
    text = f"The student of {best} is best: {top1:.2f} % top-1, {top1 - next_best:.2f} points above {second}"
    a, b = runs[best].predictions, runs[second].predictions
    if a is None or b is None or not np.array_equal(a.label, b.label):
        return text + "."
    return f"{text} ({interval(a.right('student'), b.right('student'))})."


def _cells(name: str, results: Results) -> list[str]:
    row, recipe = _student(results), results.recipe
    return [
        name,
        recipe.student.model,
        str(len(recipe.teachers)),
        str(recipe.seed),
        f"{row.top1:.2f}",
        _above(results, results.row("student alone")),
        _above(results, results.ensemble),
        f"{row.nll:.4f}",
        f"{row.ece:.2f}",
        millions(row.multiply_adds),
    ]


def _above(results: Results, other: Row | None) -> str:
    """`+2.34 ± 1.2`: the student's top-1 above that of another network of the run, in points."""
    if other is None:
        return "–"
    gap = f"{_student(results).top1 - other.top1:+.2f}".replace("-", "−")
    if results.predictions is None:
        return gap
    return f"{gap} ± {difference(results.predictions.right('student'), results.predictions.right(other.name))[1]:.1f}"


def _notes(runs: Runs) -> list[str]:
    sources = sorted({results.recipe.data.source for results in runs.values()})
    tests = {results.about.get("images", {}).get("test") for results in runs.values()}
    if len(sources) == 1 and len(tests) == 1:
        return [f"All on the test split of {sources[0]}."]
    return [f"The runs use different data ({', '.join(sources)}), so their numbers cannot be compared."]


def _charts(runs: Runs) -> list[Chart]:
    rows = [_student(results)._replace(name=name) for name, results in runs.items()]
    confidences = {
        name: network_confidence(results.predictions, _student(results))
        for name, results in runs.items()
        if results.predictions is not None
    }
    learning = validation_chart({name: results.metrics for name, results in runs.items()})
    charts = [cost_chart(rows, list(runs)), learning, reliability_chart(confidences) if confidences else None]
    return [chart for chart in charts if chart is not None]


def _teachers(runs: Runs) -> list[Chart]:
    """What each teacher adds, a chart for each run that stored it."""
    found = {name: added_by_teachers(results) for name, results in runs.items()}
    return [contribution_chart(added)._replace(title=name) for name, added in found.items() if added]


def _changed(runs: Runs) -> list[list[str]]:
    """[key, value in each run …] for every recipe key in which runs differ."""
    keys = [_key(results.recipe) for results in runs.values()]
    changed = sorted({key for other in keys[1:] for key in changed_keys(keys[0], other)})
    return [[key, *(_value(recipe, key) for recipe in keys)] for key in changed]


def _key(recipe: Recipe) -> dict[str, Any]:
    """The keys that decide a result, with each teacher as a text and the loop that trained teachers share."""
    key, shared = recipe_key(recipe), recipe.zoo.loop.model_dump(mode="json")
    for teacher in key["teachers"]:
        teacher["loop"] = {name: value for name, value in teacher.get("loop", {}).items() if value != shared[name]}
    loop = {name: shared[name] for name in key["loop"]} if any(t["train"] for t in key["teachers"]) else {}
    return key | {"teachers": "; ".join(map(_teacher_text, key["teachers"])), "zoo": key["zoo"] | {"loop": loop}}


def _teacher_text(teacher: dict[str, Any]) -> str:
    settings = {name: value for name, value in teacher.items() if value and name != "model"}
    return f"{teacher['model']} {settings}" if settings else teacher["model"]


def _value(recipe: Any, dotted: str) -> str:
    for key in dotted.split("."):
        recipe = recipe.get(key) if isinstance(recipe, dict) else None
    return str(recipe)[:200]
