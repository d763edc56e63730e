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
    lines = []
    for group in column_groups(columns, width):
        lines += [*("  ".join(row) for row in zip(*group, strict=True)), ""]
    return lines


def column_groups(columns: list[list[str]], width: int) -> list[list[list[str]]]:
    """Columns of cells in groups that fit side by side, two spaces apart; each group begins with the first column."""
    first, *others = columns
    sizes = [max(cell_len(cell.strip()) for cell in column) for column in columns]
    groups, used = [[first]], sizes[0]
    for column, size in zip(others, sizes[1:], strict=True):
        if len(groups[-1]) > 1 and used + 2 + size > width:
            groups.append([first])
            used = sizes[0]
        groups[-1].append(column)
        used += 2 + size
    return groups


def _aligned(column: list[str], right: bool) -> list[str]:
    size = max(map(cell_len, column))
    spaces = [" " * (size - cell_len(cell)) for cell in column]
    return [space + cell if right else cell + space for cell, space in zip(column, spaces, strict=True)]
