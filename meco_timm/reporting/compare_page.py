"""The page that compares several runs."""

from pathlib import Path
from typing import Any

import numpy as np

from meco_timm.common import UserError, write_text
from meco_timm.evaluation import Row
from meco_timm.recipe import WATCHING, Teacher
from meco_timm.reporting.curves import validation_chart
from meco_timm.reporting.drawing import Chart, chart_style
from meco_timm.reporting.figures import cost_chart, network_confidence, reliability_chart
from meco_timm.reporting.pages import render_page
from meco_timm.reporting.results import Results, difference, interval, millions, read_results
from meco_timm.reporting.teacher_charts import added_by_teachers, contribution_chart

COLUMNS = [
    "", "student", "teachers", "seed", "top-1 %", "above alone", "above ensemble", "NLL", "ECE %", "MACs M",
]  # fmt: skip
# Keys of a recipe that no result depends on: where files lie, how they are read, how often the run logs and saves.
INCIDENTAL = {
    "run", "trackers", "publish", "zoo.folder", "zoo.resident", "data.workers", "data.verify", "data.cache",
    "data.augment_on",
}  # fmt: skip
INCIDENTAL |= {f"{loop}.{key}" for loop in ("loop", "zoo.loop") for key in WATCHING}


def compare(runs: list[str | Path], output: str | Path = "compare.html") -> Path:
    """Write one page that compares several finished runs, and return its path.

    Raises:
        UserError: fewer than two runs are named, one has not finished, or `output` cannot be written.
    """
    if len({Path(run).resolve() for run in runs}) < 2:
        raise UserError("compare: name at least two runs, each by its run folder.")
    results = [read_results(run) for run in runs]
    if backbones := [str(one.folder.path) for one in results if one.is_backbone]:
        raise UserError(f"compare: {', '.join(backbones)}: only runs of classifiers can be compared on a page.")
    names = [one.folder.path.resolve().name for one in results]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    page = compare_page(dict(zip(names, results, strict=True)))
    try:
        write_text(Path(output), page)
    except OSError as error:
        raise UserError(f"compare: {output} cannot be written: {error.strerror}.") from None
    return Path(output)


def compare_page(runs: dict[str, Results]) -> str:
    """The page as HTML; `runs` by the name that the page gives them."""
    added = {name: added_by_teachers(results) for name, results in runs.items()}
    with chart_style():
        return render_page(
            "compare.html",
            title=f"{len(runs)} runs",
            verdict=_best_run(runs),
            columns=COLUMNS,
            cells=[_cells(name, results) for name, results in runs.items()],
            notes=[_data_note(list(runs.values()))],
            charts=_charts(runs),
            teachers=[contribution_chart(a)._replace(title=name) for name, a in added.items() if a],
            names=list(runs),
            changed=_changed_keys([results.recipe for results in runs.values()]),
        )


def _best_run(runs: dict[str, Results]) -> str:
    """The best run, and whether it is significantly better than the second."""
    if not _comparable_data(list(runs.values())):
        return "The runs were tested on different images, so their numbers cannot be compared."
    top1 = {name: results.row("student").top1 for name, results in runs.items()}
    best, second = sorted(runs, key=lambda name: -top1[name])[:2]
    gap = round(top1[best] - top1[second], 2)
    if not gap:
        return f"The students of {best} and {second} are best, with the same top-1: {top1[best]:.2f} %."
    text = f"The student of {best} is best: {top1[best]:.2f} % top-1, {gap:.2f} points above "
    a, b = runs[best].predictions, runs[second].predictions
    if a is None or b is None:
        return f"{text}{second}."
    return f"{text}{second} ({interval(a.right('student'), b.right('student'))})."


def _cells(name: str, results: Results) -> list[str]:
    row, recipe = results.row("student"), results.recipe
    return [
        name,
        recipe["student"]["model"],
        str(len(recipe["teachers"])),
        str(recipe["seed"]),
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
    gap = f"{results.row('student').top1 - other.top1:+.2f}".replace("-", "−")
    p = results.predictions
    return gap if p is None else f"{gap} ± {difference(p.right('student'), p.right(other.name))[1]:.1f}"


def _comparable_data(runs: list[Results]) -> bool:
    """Whether all runs have the same test images, as far as they say: source, number, classes and labels."""
    first, tested = runs[0], [results.predictions for results in runs if results.predictions is not None]
    same = all(
        results.recipe["data"]["source"] == first.recipe["data"]["source"]
        and results.about["images"]["test"] == first.about["images"]["test"]
        for results in runs
    )
    return same and all(p.classes == tested[0].classes and np.array_equal(p.label, tested[0].label) for p in tested[1:])


def _data_note(runs: list[Results]) -> str:
    sources = sorted({results.recipe["data"]["source"] for results in runs})
    if _comparable_data(runs):
        return f"All on the test split of {sources[0]}."
    return f"Data of the runs: {', '.join(sources)}."


def _charts(runs: dict[str, Results]) -> list[Chart]:
    rows = {name: results.row("student")._replace(name=name) for name, results in runs.items()}
    confidences = {
        name: network_confidence(results.predictions, results.row("student"))
        for name, results in runs.items()
        if results.predictions is not None
    }
    learning = validation_chart({name: results.metrics for name, results in runs.items()})
    reliability = reliability_chart(confidences) if confidences else None
    charts = [cost_chart(list(rows.values()), list(runs)), learning, reliability]
    return [chart for chart in charts if chart is not None]


def _changed_keys(recipes: list[dict[str, Any]]) -> list[list[str]]:
    """[dotted key, value in each run …] for every recipe key that a result depends on and in which runs differ."""
    flat = [_flatten(_comparable(recipe)) for recipe in recipes]
    values = {key: [str(one.get(key))[:200] for one in flat] for key in sorted(set().union(*flat) - INCIDENTAL)}
    return [[key, *texts] for key, texts in values.items() if len(set(texts)) > 1]


def _comparable(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with its teachers and its student's backbone as one text each, and no loop of teachers if none is
    trained."""
    shared, student = recipe["zoo"]["loop"], recipe["student"]
    if made := student.get("backbone"):
        own = {name: value for name, value in made["loop"].items() if value != recipe["loop"][name]}
        student = student | {"backbone": f"{_teachers_text(made['teachers'], made['loop'])}; {_words({'loop': own})}"}
    loop = shared if any(teacher["train"] for teacher in recipe["teachers"]) else {}
    store = recipe["store"] | {"folder": recipe["store"]["folder"] is not None}  # it matters that there is one
    texts = {"teachers": _teachers_text(recipe["teachers"], shared), "student": student}
    return recipe | texts | {"zoo": recipe["zoo"] | {"loop": loop}, "store": store}


def _teachers_text(teachers: list[dict[str, Any]], shared: dict[str, Any]) -> str:
    """The teachers with the settings that are not the defaults. shared: their loop, of which each may differ."""
    texts = []
    for teacher in teachers:
        own = {name: value for name, value in teacher["loop"].items() if value != shared[name]}
        settings = teacher | {"loop": own if teacher["train"] else {}, "model": None, "trust": None}
        settings = {n: value for n, value in settings.items() if value and value != Teacher.model_fields[n].default}
        words = _words(settings)
        texts.append(f"{teacher['model']} ({words})" if words else teacher["model"])
    return "; ".join(texts)


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(name if value is True else f"{name} {value}" for name, value in _flatten(settings).items())


def _flatten(keys: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    flat: dict[str, Any] = {}
    for name, value in keys.items():
        dotted = prefix + name
        flat |= _flatten(value, dotted + ".") if isinstance(value, dict) and dotted != "publish" else {dotted: value}
    return flat
