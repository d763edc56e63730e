"""Text in the width of a terminal: columns and words stay whole."""

import pytest
from rich.console import Console

from meco_timm.common import Table, column_groups, lay_out
from meco_timm.evaluation import rows

HEADS = ["network", *(f"head {i}" for i in range(8))]
NAMES = ["test_efficientnet", "mobilenetv3_large_100.ra_in1k"]
CELLS = [[name, *(f"{i}.25" for i in range(8))] for name in NAMES]


@pytest.mark.parametrize("width", [50, 80, 200])
def test_a_table_that_is_too_wide_goes_on_below_with_its_first_column(width):
    text = lay_out([Table(HEADS, CELLS, frozenset(HEADS[1:])), "and a sentence " * 20], width)
    assert max(map(len, text.splitlines())) <= width
    parts = text.split("\nand a")[0].strip().split("\n\n")
    assert all(part.splitlines()[1].startswith(NAMES[0]) for part in parts)
    assert [word for part in parts for word in part.splitlines()[1].split()[1:]] == CELLS[0][1:]
    assert (len(parts) == 1) == (width == 200)


def test_a_column_that_never_fits_stays_whole():
    assert column_groups([["name"], ["x" * 50], ["y"]], 20) == [[["name"], ["x" * 50]], [["name"], ["y"]]]


def test_wide_letters_take_two_columns():
    first, second = lay_out([Table(["class", "train"], [["猫", "1"]])]).splitlines()[:2]
    assert second == "猫     1"
    assert first == "class  train"


def test_the_table_of_results_fits_80_columns(monkeypatch):
    monkeypatch.setattr(rows, "Console", lambda **_: Console(width=80, force_terminal=True))
    columns = [list(column) for column in zip(HEADS, *CELLS, strict=True)]
    lines = rows.styled_columns(columns, "Test split").plain.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(NAMES[1] in line for line in lines) == 2
    assert [line.split()[0] for line in lines if "0.25" in line] == NAMES
