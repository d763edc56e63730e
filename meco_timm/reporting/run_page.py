"""The report of a run: one self-contained HTML page, made from the run folder only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meco_timm.common import write_text
from meco_timm.evaluation import table_columns
from meco_timm.reporting.backbone_page import backbone_page
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
from meco_timm.reporting.mistakes import confusion_matrix_charts, mistakes
from meco_timm.reporting.pages import render_page, thumbnail
from meco_timm.reporting.results import (
    Results,
    class_table,
    drawn_teachers,
    metrics_by_teacher,
    read_results,
    summary,
    title,
)
from meco_timm.reporting.teacher_charts import teacher_charts

CLASSES = 50  # with an accuracy of their own in the report


def report(run: str | Path) -> Path:
    """Write `report.html` into the folder of a finished run, and return its path.

    Raises:
        UserError: there is no run, it has not finished, or its files are damaged.
    """
    results = read_results(run)
    write_text(results.folder.report, backbone_page(results) if results.is_backbone else report_page(results))
    return results.folder.report


def report_page(results: Results) -> str:
    """The report as HTML."""
    columns, *cells = zip(*table_columns([*results.rows, *results.exports]), strict=True)
    with chart_style():
        return render_page(
            "report.html",
            **results.page_fields(),
            title=title(results),
            verdict=summary(results),
            columns=columns,
            cells=cells,
            per_class=class_table(results, CLASSES),
            data_notes=results.about.get("data_notes", []),
            predictions=results.predictions is not None,
            sections=report_sections(results),
            soft_labels=soft_labels(results),
            mistakes=mistakes(results.predictions) if results.predictions is not None else [],
        )


def report_sections(results: Results) -> list[tuple[str, str, list[Chart]]]:
    """(heading, introduction, charts) of each section that the run has data for."""
    p, metrics, drawn = results.predictions, results.metrics, drawn_teachers(results)
    quality: list[Chart | None] = [cost_chart(results.rows, results.teachers)]
    gains: list[Chart | None] = []
    agreement: list[Chart | None] = []
    if p is not None:
        rows = [row for row in results.rows if row.name not in results.teachers]
        quality.append(reliability_chart({row.name: network_confidence(p, row) for row in rows}))
        gains = [class_chart(p), confusion_chart(p), *confusion_matrix_charts(p)]
        agreement = [agreement_chart(p, name) for name in results.weights if f"student/{name}" in p.agreement]
    training = [
        validation_chart({"student": metrics, **_curves(results)}),
        similarity_chart(metrics, results.recipe["losses"], metrics_by_teacher(results)),
        adversary_chart(metrics),
        drawn_chart(drawn, list(results.weights)) if len(drawn) else None,
    ]
    notes = [f"{note[0].upper()}{note[1:]}." for note in results.about["notes"]]
    overlap = " ".join(["What the teachers know overlaps, and each of them costs.", *notes])
    sections: list[tuple[str, str, Sequence[Chart | None]]] = [
        ("Accuracy, calibration, cost", "The student and the networks it is compared with.", quality),
        ("What each teacher adds", overlap, teacher_charts(results)),
        ("Classes", "Compared with the same network trained alone on the labels.", gains),
        ("Training", "Accuracy and the terms of the loss over the steps.", training),
        ("Agreement of blocks", "How similar the student's blocks are to the teachers'.", agreement),
    ]
    known = [(heading, text, [chart for chart in charts if chart is not None]) for heading, text, charts in sections]
    return [section for section in known if section[2]]


def _curves(results: Results) -> dict[str, list[dict[str, Any]]]:
    """The validations of teachers and student alone, as lines of metrics; a run may not have recorded them."""
    curves = results.about.get("curves", {})
    return {name: [{"step": s, "validation/top1": top1} for s, top1 in curve] for name, curve in curves.items()}


def soft_labels(results: Results) -> list[tuple[Chart, str, str]]:
    """(chart, thumbnail, text alternative of the thumbnail) for each example image."""
    p = results.predictions
    if p is None:
        return []
    texts = [f"Test image {row}, labelled {p.classes[p.label[row]]}" for row in p.examples]
    charts = [soft_label_chart(p, i, results.teachers) for i in range(len(p.examples))]
    return list(zip(charts, map(thumbnail, p.images), texts, strict=True))
