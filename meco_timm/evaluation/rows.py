"""The rows of a run's table: their fields, how they are printed, and the errors of the student in one sentence.

Nothing here imports torch, so that the table of a finished run appears at once.
"""

from collections.abc import Callable
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Row(NamedTuple):
    """One network on one split. top1, top5, ece: per cent; nll: nats; multiply_adds: per image; images_per_s.

    latency_ms: of a batch of one image. megabytes: of an exported file. Both None where they are not measured.

    balanced: mean of per_class, the accuracy of each class by name in per cent, None of a class without an image.
    temperature, weight: of a teacher whose logits are divided by a temperature, or whose weight in the true ensemble
    differs from that of others.
    """

    name: str
    top1: float
    top5: float | None
    nll: float
    ece: float
    parameters: int
    multiply_adds: int
    images_per_s: float
    balanced: float
    per_class: dict[str, float | None]
    temperature: float | None = None
    weight: float | None = None
    latency_ms: float | None = None
    megabytes: float | None = None


def print_table(rows: list[Row], title: str) -> None:
    """Print the title and the rows on standard output."""
    print(title)
    Console(soft_wrap=True).print(styled_table(rows), highlight=False)


def styled_table(rows: list[Row], title: str = "") -> Text:
    """The rows as text, as wide as the terminal, or 110 characters without one; `str` of it has no styles."""
    return styled_columns(table_columns(rows), title)


def styled_columns(columns: list[list[str]], title: str) -> Text:
    """Columns, each with its head, as text like that of `styled_table`."""
    table = Table(title=title or None, title_justify="left", box=None, header_style="bold")
    heads, *lines = zip(*columns, strict=True)
    for head in heads:
        table.add_column(head, justify="right" if head else "left", overflow="fold")
    for cells in lines:
        table.add_row(*cells, style="bold" if cells[0] == "student" else None)
    console = Console(width=None if Console().is_terminal else 110)
    text = Text.assemble(*((part.text, part.style or "") for part in console.render(table)))
    text.rstrip()
    return text


def table_columns(rows: list[Row]) -> list[list[str]]:
    """Head and cells of each column of the table, names first. Columns without a value are left out."""
    formats: dict[str, Callable[[Row], str | None]] = {
        "": lambda r: r.name,
        "top-1 %": lambda r: f"{r.top1:.2f}",
        "balanced %": lambda r: f"{r.balanced:.2f}",
        "top-5 %": lambda r: None if r.top5 is None else f"{r.top5:.2f}",
        "NLL": lambda r: f"{r.nll:.4f}",
        "ECE %": lambda r: f"{r.ece:.2f}",
        "T": lambda r: None if r.temperature is None else f"{r.temperature:.3g}",
        "weight": lambda r: None if r.weight is None else f"{r.weight:.3g}",
        "params M": lambda r: f"{r.parameters / 1e6:.2f}",
        "MACs M": lambda r: f"{r.multiply_adds / 1e6:.1f}",
        "MB": lambda r: None if r.megabytes is None else f"{r.megabytes:.2f}",
        "images/s": lambda r: f"{r.images_per_s:,.0f}",
        "ms": lambda r: None if r.latency_ms is None else f"{r.latency_ms:.3g}",
    }
    columns = {head: [cell(row) for row in rows] for head, cell in formats.items()}
    return [[head, *(cell or "" for cell in cells)] for head, cells in columns.items() if any(cells)]


def compare_errors(rows: list[Row]) -> str:
    """Errors (100 − top-1) of the student over those of the other two, and its share of the ensemble's multiply-adds.

    "The student makes 0.86 × the errors of the same network alone and 1.03 × the errors of the true ensemble, at 1/8 of
    its cost."

    rows: the table of a run. Without an ensemble (no teacher has a head) the sentence ends before it.
    """
    named = {row.name: row for row in rows}
    student, ensemble = named["student"], named.get("true ensemble")

    def errors(other: Row, name: str) -> str:
        own, its = 100 - student.top1, 100 - other.top1
        return f"{own / its:.2f} × the errors of {name}" if its > 0 else f"{own:.2f} % errors where {name} makes none"

    alone = errors(named["student alone"], "the same network alone")
    if ensemble is None:
        return f"The student makes {alone}."
    share = ensemble.multiply_adds / max(student.multiply_adds, 1)
    cost = f"1/{share:.0f} of" if share >= 1.5 else f"{1 / share:.2g} times"
    return f"The student makes {alone} and {errors(ensemble, 'the true ensemble')}, at {cost} its cost."
