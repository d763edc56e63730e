"""Lay out tables and lines as plain text in a given width: columns are never broken, lines break between words."""

import textwrap
from typing import NamedTuple

from rich.cells import cell_len

WIDTH = 118
INDENT = "        "  # of the second line of a paragraph


class Table(NamedTuple):
    """Rows of cells under heads. right: heads of the columns that are aligned to the right."""

    heads: list[str]
    rows: list[list[str]]
    right: frozenset[str] = frozenset()


def lay_out(parts: list[str | Table], width: int = WIDTH) -> str:
    """The parts as text. A table that is too wide is continued below, with its first column repeated."""
    blocks = [_table(part, width) if isinstance(part, Table) else _paragraph(part, width) for part in parts]
    return "\n".join(line.rstrip() for block in blocks for line in block) + "\n"


def _paragraph(text: str, width: int) -> list[str]:
    return [
        wrapped
        for line in text.split("\n")
        for wrapped in textwrap.wrap(
            line, width, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False
        )
        or [""]
    ]


def _table(table: Table, width: int) -> list[str]:
    """The table, in several of them one below the other where it does not fit; an empty line after each."""
    cells = [table.heads, *table.rows]
    columns = [_aligned([row[i] for row in cells], head in table.right) for i, head in enumerate(table.heads)]
    first, *others = columns
    lines, group = [], [first]
    for column in others:
        used = sum(cell_len(one[0]) + 2 for one in group)
        if len(group) > 1 and used + max(cell_len(cell.rstrip()) for cell in column) > width:
            lines += [*("  ".join(row) for row in zip(*group, strict=True)), ""]
            group = [first]
        group.append(column)
    return [*lines, *("  ".join(row) for row in zip(*group, strict=True)), ""]


def _aligned(column: list[str], right: bool) -> list[str]:
    size = max(map(cell_len, column))
    spaces = [" " * (size - cell_len(cell)) for cell in column]
    return [space + cell if right else cell + space for cell, space in zip(column, spaces, strict=True)]
