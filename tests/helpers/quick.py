"""What takes most of the time of a tiny run, made quick: charts are not drawn and few, speeds not measured."""

import io
from collections.abc import Callable
from functools import cache
from typing import Any

from matplotlib.figure import Figure

from meco_timm.evaluation import backbone, table
from meco_timm.reporting import drawing, figures, run_page

_SAVE = Figure.savefig


@cache
def _empty(kind: str) -> str | bytes:
    stream: Any = io.StringIO() if kind == "svg" else io.BytesIO()
    _SAVE(Figure(figsize=(1, 1)), stream, format=kind)
    return stream.getvalue()


def _save_empty(figure: Figure, stream: Any, format: str, **options: Any) -> None:
    """In place of `Figure.savefig`: write an empty figure."""
    stream.write(_empty(format))


def _first_soft_labels(predictions: Any, i: int, teachers: list[str]) -> drawing.Chart:
    """In place of `soft_label_chart`: draw that of the first image only."""
    return drawing.Chart("", Figure(), "", "") if i else figures.soft_label_chart(predictions, i, teachers)


def _no_speed(*args: Any, **options: Any) -> float:
    """In place of `images_per_second`, which measures for a quarter of a second."""
    return 1.0


def measure_no_speed(replace: Callable[[Any, str, Any], None]) -> None:
    """`replace(module, name, value)` what measures speeds."""
    for module in (table, backbone):
        replace(module, "images_per_second", _no_speed)


def draw_nothing(replace: Callable[[Any, str, Any], None]) -> None:
    """`replace(module, name, value)` what draws charts; the first of a report's images stands for all."""
    replace(Figure, "savefig", _save_empty)
    replace(run_page, "soft_label_chart", _first_soft_labels)
