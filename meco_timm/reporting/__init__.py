"""Reports, comparison pages and charts of finished runs.

In: run folders. Out: report.html, compare.html, charts.
Never: runs a network, or needs the data.
"""

from meco_timm.reporting.backbone_charts import features_picture, neighbours_picture
from meco_timm.reporting.backbone_page import PICTURES
from meco_timm.reporting.compare_page import compare
from meco_timm.reporting.curves import similarity_chart
from meco_timm.reporting.drawing import Chart, chart_style
from meco_timm.reporting.figures import cost_chart, soft_label_picture
from meco_timm.reporting.pages import builtin_template, read_template, render_markdown
from meco_timm.reporting.repeat_page import write_repeat_page
from meco_timm.reporting.results import (
    Results,
    class_table,
    metrics_by_teacher,
    read_keys,
    read_metrics,
    read_results,
    summary,
    title,
)
from meco_timm.reporting.run_page import report

__all__ = [
    "PICTURES",
    "Chart",
    "Results",
    "builtin_template",
    "chart_style",
    "class_table",
    "compare",
    "cost_chart",
    "features_picture",
    "metrics_by_teacher",
    "neighbours_picture",
    "read_keys",
    "read_metrics",
    "read_results",
    "read_template",
    "render_markdown",
    "report",
    "similarity_chart",
    "soft_label_picture",
    "summary",
    "title",
    "write_repeat_page",
]
