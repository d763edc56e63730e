"""What takes most of the time of a tiny run, made quick: charts are not drawn, speeds not measured."""

from typing import Any

from matplotlib.figure import Figure

_SAVE = Figure.savefig


def save_empty(figure: Figure, *args: Any, **options: Any) -> None:
    """In place of `Figure.savefig`: save the figure without what is drawn in it."""
    figure.clear()
    figure.set_layout_engine("none")
    _SAVE(figure, *args, **options)


def no_speed(*args: Any, **options: Any) -> float:
    """In place of `images_per_second`, which measures for a quarter of a second."""
    return 1.0
