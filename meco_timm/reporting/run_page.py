"""12 · The report: one page that needs nothing but itself. Drawn from a run folder, without a device or the data."""

from pathlib import Path
from typing import Any

from meco_timm.common import write_text
from meco_timm.evaluation import table_columns
from meco_timm.recipe import to_yaml
from meco_timm.reporting.curves import adversary_chart, drawn_chart, similarity_chart, validation_chart
from meco_timm.reporting.drawing import Chart, rules
from meco_timm.reporting.figures import (
    agreement_chart,
    answers,
    class_chart,
    confusion_chart,
    cost_chart,
    reliability_chart,
    soft_label_chart,
)
from meco_timm.reporting.pages import render_page, thumbnail
from meco_timm.reporting.results import Results, lines_by_teacher, read_results, teacher_of_steps, title, verdict
from meco_timm.zoo import named_teachers

Section = tuple[str, str, list[Chart]]  # heading, what is shown, charts


def report(run: str | Path) -> Path:
    """Write `report.html` into the folder of a finished run, and return where it is.

    Raises:
        UserError: there is no run, it has not ended, or its files are damaged.
    """
    results = read_results(run)
    write_text(results.folder.report, report_page(results))
    return results.folder.report


def report_page(results: Results) -> str:
    """The report as HTML."""
    plan = results.folder.path / "plan.txt"
    columns, *cells = zip(*table_columns(results.rows), strict=True)
    with rules():
        return render_page(
            "report.html",
            title=title(results),
            run=results.folder.path.resolve().name,
            verdict=verdict(results),
            columns=columns,
            cells=cells,
            recipe=results.recipe,
            predictions=results.predictions is not None,
            sections=_sections(results),
            soft_labels=_soft_labels(results),
            facts=_facts(results),
            plan=plan.read_text(encoding="utf-8") if plan.exists() else "",
            recipe_yaml=to_yaml(results.recipe),
        )


def _sections(results: Results) -> list[Section]:
    told = "Beyond the answers: whether the student computes what its teachers do."
    sections: list[Section] = [
        ("How good, how sure, at what cost", "The student beside all that it is compared with.", _quality(results)),
        ("Where it gained", "Against the same network trained alone on the labels.", _gains(results)),
        ("How it learned", "What the loss was made of, step by step.", learning_charts(results)),
        ("Where blocks agree", told, _inside(results)),
    ]  # fmt: skip
    return [section for section in sections if section[2]]


def _quality(results: Results) -> list[Chart]:
    charts = [cost_chart(results.rows, results.teachers)]
    if results.predictions is not None:
        rows = [row for row in results.rows if row.name not in results.teachers]
        charts.append(reliability_chart({row.name: answers(results.predictions, row) for row in rows}))
    return charts


def _gains(results: Results) -> list[Chart]:
    if results.predictions is None:
        return []
    return _present(class_chart(results.predictions), confusion_chart(results.predictions))


def learning_charts(results: Results) -> list[Chart]:
    """Charts over the steps of the run; those that it has something for."""
    metrics = results.metrics
    return _present(
        validation_chart({"student": metrics}),
        similarity_chart(metrics, results.recipe, lines_by_teacher(results)),
        adversary_chart(metrics),
        _drawn(results),
    )


def _drawn(results: Results) -> Chart | None:
    taught = teacher_of_steps(results)
    return drawn_chart(taught, list(named_teachers(results.recipe))) if len(taught) else None


def _inside(results: Results) -> list[Chart]:
    if results.predictions is None:
        return []
    pairs = [pair.partition("/") for pair in results.predictions.agreement]
    return [agreement_chart(results.predictions, teacher) for who, _, teacher in pairs if who == "student"]


def _soft_labels(results: Results) -> list[tuple[Chart, str, str]]:
    """(chart, thumbnail, what the thumbnail is) for each image that is shown."""
    p = results.predictions
    if p is None:
        return []
    told = [f"Test image {row}, labelled {p.classes[p.label[row]]}" for row in p.shown]
    charts = [soft_label_chart(p, i, results.teachers) for i in range(len(p.shown))]
    return list(zip(charts, map(thumbnail, p.images), told, strict=True))


def _present(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _facts(results: Results) -> list[tuple[str, Any]]:
    """What a reader wants to know of the run, in words."""
    recipe, about = results.recipe, results.about
    facts: list[tuple[str, Any]] = [
        ("data", recipe.data.source),
        (
            "teachers",
            ", ".join(teacher.model + (" (trained here)" if teacher.train else "") for teacher in recipe.teachers),
        ),
        ("student", recipe.student.model),
        ("seed", recipe.seed),
    ]
    if about:
        images = about["images"]
        batch = recipe.loop.batch_size * recipe.loop.accumulation * about["processes"]
        facts += [
            ("images", f"{images['train']:,} to train on, {images['labelled']:,} of them with labels; "
                       f"{images['validation']:,} validation, {images['test']:,} test"),
            ("steps", f"{about['steps']:,} of {batch} images"),
            ("device", f"{about['processes']} × {about['device']}, precision {about['precision']}"),
            ("versions", ", ".join(f"{name} {number}" for name, number in about["versions"].items())),
        ]  # fmt: skip
    return facts
