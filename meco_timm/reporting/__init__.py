"""Pages and charts of finished runs.

In: run folders. Out: report.html, compare.html, figures.
Never: runs a network.
"""

from meco_timm.reporting.compare_page import compare
from meco_timm.reporting.curves import similarity_chart
from meco_timm.reporting.drawing import Chart, rules
from meco_timm.reporting.figures import cost_chart, soft_label_picture
from meco_timm.reporting.pages import own_template, read_template, render_markdown
from meco_timm.reporting.results import Results, about_run, lines_by_teacher, read_metrics, read_results, title, verdict
from meco_timm.reporting.run_page import report

__all__ = [
    "Chart",
    "Results",
    "about_run",
    "compare",
    "cost_chart",
    "lines_by_teacher",
    "own_template",
    "read_metrics",
    "read_results",
    "read_template",
    "render_markdown",
    "report",
    "rules",
    "similarity_chart",
    "soft_label_picture",
    "title",
    "verdict",
]
