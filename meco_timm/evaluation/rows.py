"""The rows of a run's table: what they hold, how they are printed, and what they say in one sentence.

Nothing here imports torch, so that the table of a finished run appears at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Row(NamedTuple):
    """One network on one split. top1, top5, ece: per cent; nll: nats; multiply_adds: per image; images_per_s.

    per_class: accuracy of each class by name, per cent, None of a class without an image. balanced: their mean. Both
    are None of runs that ended before they were measured. temperature, weight: of a teacher whose logits are divided
    by a temperature, or whose weight in the true ensemble is not that of all.
    """

    name: str
    top1: float
    top5: float | None
    nll: float
    ece: float
    parameters: int
    multiply_adds: int
    images_per_s: float
    balanced: float | None = None
    per_class: dict[str, float | None] | None = None
    temperature: float | None = None
    weight: float | None = None


def print_table(rows: list[Row], title: str) -> None:
    """Print the rows on standard output."""
    Console(soft_wrap=True).print(styled_table(rows, title), highlight=False)


def styled_table(rows: list[Row], title: str) -> Text:
    """The rows as text, as wide as the terminal, or 110 characters without one; `str` of it has no styles."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    heads, *lines = zip(*table_columns(rows), strict=True)
    for head in heads:
        table.add_column(head, justify="right" if head else "left")
    for cells in lines:
        table.add_row(*cells, style="bold" if cells[0] == "student" else None)
    console = Console(width=None if Console().is_terminal else 110)
    text = Text.assemble(*((part.text, part.style or "") for part in console.render(table)))
    text.rstrip()
    return text


def table_columns(rows: list[Row]) -> list[list[str]]:
    """Head and cells of each column of the table; the first column has the names."""

    def column(head: str, cell: Callable[[Row], Any]) -> list[str]:
        return [head, *(cell(row) for row in rows)]

    combined = {"T": [row.temperature for row in rows], "weight": [row.weight for row in rows]}
    extra = [
        [head, *("" if value is None else f"{value:.3g}" for value in values)]
        for head, values in combined.items()
        if any(value is not None for value in values)
    ]
    top5 = [column("top-5 %", lambda r: f"{r.top5:.2f}")] if rows[0].top5 is not None else []
    measured = all(row.balanced is not None for row in rows)
    balanced = [column("balanced %", lambda r: f"{r.balanced:.2f}")] if measured else []
    return [
        column("", lambda r: r.name),
        column("top-1 %", lambda r: f"{r.top1:.2f}"),
        *balanced,
        *top5,
        column("NLL", lambda r: f"{r.nll:.4f}"),
        column("ECE %", lambda r: f"{r.ece:.2f}"),
        *extra,
        column("params M", lambda r: f"{r.parameters / 1e6:.2f}"),
        column("MACs M", lambda r: f"{r.multiply_adds / 1e6:.1f}"),
        column("images/s", lambda r: f"{r.images_per_s:,.0f}"),
    ]


def verdict(rows: list[Row]) -> str:
    """Errors (100 − top-1) of the student over those of the other two, and its share of the ensemble's multiply-adds.

    "The student makes 0.86 × the errors of the same network alone and 1.03 × the errors of the true ensemble, at 1/8 of
    its cost."

    rows: the table of a run. Without an ensemble (no teacher has a head) the sentence ends before it.
    """
    named = {row.name: row for row in rows}
    student, ensemble = named["student"], named.get("true ensemble")
    alone = _errors(student, named["student alone"], "the same network alone")
    if ensemble is None:
        return f"The student makes {alone}."
    share = ensemble.multiply_adds / max(student.multiply_adds, 1)
    cost = f"1/{share:.0f} of" if share >= 1.5 else f"{1 / share:.2g} times"
    return f"The student makes {alone} and {_errors(student, ensemble, 'the true ensemble')}, at {cost} its cost."


def _errors(student: Row, other: Row, whose: str) -> str:
    """`0.86 × the errors of …`; in per cent where the other makes none."""
    own, its = 100 - student.top1, 100 - other.top1
    if its > 0:
        return f"{own / its:.2f} × the errors of {whose}"
    return f"{own:.2f} % errors where {whose} makes none"
