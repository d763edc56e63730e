"""The report of a run: one self-contained HTML page, made from the run folder only."""

from pathlib import Path
from typing import Any

from meco_timm.common import write_text
from meco_timm.evaluation import table_columns
from meco_timm.recipe import named_teachers, to_yaml
from meco_timm.reporting.class_table import class_table
from meco_timm.reporting.curves import adversary_chart, drawn_chart, similarity_chart, validation_chart
from meco_timm.reporting.drawing import Chart, chart_style
from meco_timm.reporting.figures import (
    agreement_chart,
    class_chart,
    confusion_chart,
    cost_chart,
    network_confidence,
    reliability_chart,
    soft_label_chart,
)
from meco_timm.reporting.pages import render_page, thumbnail
from meco_timm.reporting.results import Results, drawn_teachers, metrics_by_teacher, read_results, title, verdict
from meco_timm.reporting.teacher_charts import teacher_charts
from meco_timm.selection import read_measured

CLASSES = 50  # with an accuracy of their own in the report
Section = tuple[str, str, list[Chart]]  # heading, introduction, charts


def report(run: str | Path) -> Path:
    """Write `report.html` into the folder of a finished run, and return its path.

    Raises:
        UserError: there is no run, it has not finished, or its files are damaged.
    """
    results = read_results(run)
    write_text(results.folder.report, report_page(results))
    return results.folder.report


def report_page(results: Results) -> str:
    """The report as HTML."""
    plan = results.folder.path / "plan.txt"
    columns, *cells = zip(*table_columns(results.rows), strict=True)
    with chart_style():
        return render_page(
            "report.html",
            title=title(results),
            run=results.folder.path.resolve().name,
            verdict=verdict(results),
            columns=columns,
            cells=cells,
            per_class=class_table(results, CLASSES),
            recipe=results.recipe,
            predictions=results.predictions is not None,
            sections=_sections(results),
            soft_labels=_soft_labels(results),
            facts=_facts(results),
            plan=plan.read_text(encoding="utf-8") if plan.exists() else "",
            recipe_yaml=to_yaml(results.recipe),
        )


def _sections(results: Results) -> list[Section]:
    sections: list[Section] = [
        ("Accuracy, calibration, cost", "The student and the networks it is compared with.", _quality(results)),
        ("What each teacher adds", _of_teachers(results), teacher_charts(results)),
        ("Gains per class", "Compared with the same network trained alone on the labels.", _gains(results)),
        ("Training", "Accuracy and the terms of the loss over the steps.", learning_charts(results)),
        ("Agreement of blocks", "How similar the student's blocks are to the teachers'.", _agreement(results)),
    ]  # fmt: skip
    return [section for section in sections if section[2]]


def _of_teachers(results: Results) -> str:
    """Introduction of the teachers' section, with what the run warned of."""
    measured = read_measured(results.folder.path)
    notes = [f"{note[0].upper()}{note[1:]}." for note in measured["notes"]] if measured else []
    return " ".join(["What the teachers know overlaps, and each of them costs.", *notes])


def _quality(results: Results) -> list[Chart]:
    charts = [cost_chart(results.rows, results.teachers)]
    if results.predictions is not None:
        rows = [row for row in results.rows if row.name not in results.teachers]
        charts.append(reliability_chart({row.name: network_confidence(results.predictions, row) for row in rows}))
    return charts


def _gains(results: Results) -> list[Chart]:
    if results.predictions is None:
        return []
    return _present(class_chart(results.predictions), confusion_chart(results.predictions))


def learning_charts(results: Results) -> list[Chart]:
    """The charts over the steps for which the run has data."""
    metrics = results.metrics
    return _present(
        validation_chart({"student": metrics}),
        similarity_chart(metrics, results.recipe, metrics_by_teacher(results)),
        adversary_chart(metrics),
        _drawn(results),
    )


def _drawn(results: Results) -> Chart | None:
    drawn = drawn_teachers(results)
    return drawn_chart(drawn, list(named_teachers(results.recipe.teachers))) if len(drawn) else None


def _agreement(results: Results) -> list[Chart]:
    if results.predictions is None:
        return []
    pairs = [pair.partition("/") for pair in results.predictions.agreement]
    return [agreement_chart(results.predictions, teacher) for who, _, teacher in pairs if who == "student"]


def _soft_labels(results: Results) -> list[tuple[Chart, str, str]]:
    """(chart, thumbnail, text alternative of the thumbnail) for each shown image."""
    p = results.predictions
    if p is None:
        return []
    texts = [f"Test image {row}, labelled {p.classes[p.label[row]]}" for row in p.examples]
    charts = [soft_label_chart(p, i, results.teachers) for i in range(len(p.examples))]
    return list(zip(charts, map(thumbnail, p.images), texts, strict=True))


def _present(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _facts(results: Results) -> list[tuple[str, Any]]:
    """(name, value) of the settings and facts at the end of the report."""
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
