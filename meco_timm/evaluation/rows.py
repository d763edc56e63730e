"""The rows of a run's table: their fields, how they are printed, and the errors of the student in one sentence.

Nothing here imports torch, so that the table of a finished run appears at once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from meco_timm.common import column_groups


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


class BackboneRow(NamedTuple):
    """One network's pooled features. knn, probe: accuracy in per cent, None without labels.

    Of a teacher: cka_before, cka: similarity of its embeddings with the student's before and after training; cosine:
    mean cosine of its embedding with the student's through the learned projection.
    """

    name: str
    knn: float | None
    probe: float | None
    parameters: int
    multiply_adds: int
    images_per_s: float
    cka_before: float | None = None
    cka: float | None = None
    cosine: float | None = None


AnyRow = Row | BackboneRow


def read_rows(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """The rows of a table.json, of a classifier or of a backbone."""
    return [BackboneRow(**row) if "knn" in row else Row(**row) for row in rows]


def print_table(rows: Sequence[AnyRow], title: str) -> None:
    """Print the title and the rows on standard output."""
    print(title)
    Console(soft_wrap=True).print(styled_table(rows), highlight=False)


def styled_table(rows: Sequence[AnyRow], title: str = "") -> Text:
    """The rows as text, as wide as the terminal, or 110 characters without one; `str` of it has no styles."""
    return styled_columns(table_columns(rows), title)


def styled_columns(columns: list[list[str]], title: str) -> Text:
    """Columns, each with its head, as text like that of `styled_table`; below each other where they are too wide."""
    console = Console(width=None if Console().is_terminal else 110)
    parts = [(f"{title}\n", "italic")] if title else []
    for group in column_groups(columns, console.width - 2):
        table = Table(box=None, header_style="bold")
        heads, *lines = zip(*group, strict=True)
        for head in heads:
            table.add_column(head, justify="right" if head else "left", overflow="fold")
        for cells in lines:
            table.add_row(*cells, style="bold" if cells[0] == "student" else None)
        parts += [(part.text, part.style or "") for part in console.render(table)]  # type: ignore[misc]
        parts.append(("\n", ""))
    text = Text.assemble(*parts)
    text.rstrip()
    return text


def table_columns(rows: Sequence[AnyRow]) -> list[list[str]]:
    """Head and cells of each column of the table, names first. Columns without a value are left out."""
    formats = _backbone_formats() if rows and isinstance(rows[0], BackboneRow) else _classifier_formats()
    columns = {head: [cell(row) for row in rows] for head, cell in formats.items()}
    return [[head, *(cell or "" for cell in cells)] for head, cells in columns.items() if any(cells)]


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _backbone_formats() -> dict[str, Callable[[Any], str | None]]:
    """Head of each column of a backbone's table, and the text of its cells."""
    return {
        "": lambda r: r.name,
        "k-NN %": lambda r: _number(r.knn, 2),
        "probe %": lambda r: _number(r.probe, 2),
        "CKA before": lambda r: _number(r.cka_before, 3),
        "CKA": lambda r: _number(r.cka, 3),
        "cosine": lambda r: _number(r.cosine, 3),
        "params M": lambda r: f"{r.parameters / 1e6:.2f}",
        "MACs M": lambda r: f"{r.multiply_adds / 1e6:.1f}",
        "images/s": lambda r: f"{r.images_per_s:,.0f}",
    }


def _classifier_formats() -> dict[str, Callable[[Any], str | None]]:
    """Head of each column of a classifier's table, and the text of its cells."""
    return {
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


def compare_features(rows: Sequence[Any]) -> str:
    """What the training gave the backbone: k-NN accuracy against before and the best teacher; without labels the CKA.

    "The backbone's k-NN accuracy is 72.50 %, 24.70 points more than before the training and 3.30 points less than that
    of its best teacher, NAME, at 1/29 of its multiply-adds."
    """
    named = {row.name: row for row in rows}
    student, before = named["student"], named["student before"]
    teachers = [row for row in rows if row.name not in ("student", "student before")]
    if student.knn is None or before.knn is None:
        listed = [f"{t.name} {t.cka_before:.2f} → {t.cka:.2f}" for t in teachers if t.cka_before and t.cka]
        if not listed:
            return "No image has a label, and too few are held out to compare embeddings."
        return f"Agreement of the backbone's embeddings with each teacher's (CKA), before → after: {', '.join(listed)}."

    def gap(other: float) -> str:
        value = round((student.knn or 0.0) - other, 2)
        return f"{abs(value):.2f} points {'more' if value > 0 else 'less'} than" if value else "as much as"

    text = f"The backbone's k-NN accuracy is {student.knn:.2f} %, {gap(before.knn)} before the training"
    if not teachers:
        return f"{text}."
    best = max(teachers, key=lambda row: row.knn or 0.0)
    share = best.multiply_adds / max(student.multiply_adds, 1)
    cost = f"1/{share:.0f} of" if share >= 1.5 else f"{1 / share:.2g} times"
    return f"{text} and {gap(best.knn or 0.0)} that of its best teacher, {best.name}, at {cost} its multiply-adds."


def compare_errors(rows: list[Row]) -> str:
    """Errors (100 − top-1) of the student over those of the other two, and its share of the ensemble's multiply-adds.

    "The student makes 0.86 × the errors of the same network alone and 1.03 × the errors of the true ensemble, at 1/8 of
    its multiply-adds."

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
    return f"The student makes {alone} and {errors(ensemble, 'the true ensemble')}, at {cost} its multiply-adds."
