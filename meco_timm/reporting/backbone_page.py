"""The report of a backbone: one self-contained HTML page, made from the run folder only."""

from collections.abc import Sequence

from meco_timm.evaluation import load_pictures, table_columns
from meco_timm.reporting.backbone_charts import (
    features_chart,
    features_picture,
    neighbours_picture,
    teacher_agreement_chart,
)
from meco_timm.reporting.curves import adversary_chart, drawn_chart, similarity_chart
from meco_timm.reporting.drawing import Chart, chart_style
from meco_timm.reporting.pages import render_page
from meco_timm.reporting.results import Results, drawn_teachers, metrics_by_teacher, summary, title

PICTURES = "pictures.safetensors"  # in the run folder


def backbone_page(results: Results) -> str:
    """The report as HTML."""
    columns, *cells = zip(*table_columns(results.rows), strict=True)
    with chart_style():
        return render_page(
            "backbone.html",
            **results.page_fields(),
            title=title(results),
            verdict=summary(results),
            columns=columns,
            cells=cells,
            sections=_sections(results),
        )


def _sections(results: Results) -> list[tuple[str, str, list[Chart]]]:
    pictures, drawn = load_pictures(results.folder.path / PICTURES), drawn_teachers(results)
    names = [row.name for row in results.rows if row.name in pictures.networks] if pictures else []
    losses = results.recipe["losses"]
    sections: list[tuple[str, str, Sequence[Chart | None]]] = [
        ("Features", "Without fine-tuning.", [features_chart(results.rows), teacher_agreement_chart(results.rows)]),
        ("What the networks see", "Patch features as colours.", [features_picture(pictures)] if pictures else []),
        ("Nearest images", "By the cosine of embeddings, among held-out images.",
         [neighbours_picture(pictures, name) for name in names] if pictures else []),
        ("Training", "The terms of the loss over the steps.",
         [similarity_chart(results.metrics, losses, metrics_by_teacher(results)), adversary_chart(results.metrics),
          drawn_chart(drawn, list(results.weights)) if len(drawn) else None]),
    ]  # fmt: skip
    known = [(heading, text, [chart for chart in charts if chart is not None]) for heading, text, charts in sections]
    return [section for section in known if section[2]]
