"""Statistics over seeds: pairs, Student's t, and the table of several recipes."""

import math

import pytest
from helpers.tables import table_of

from meco_timm.evaluation import paired_interval, seeds_difference, seeds_table, seeds_text, values_of
from meco_timm.evaluation.repeats import T975

ONE = {0: table_of(80, 70), 1: table_of(84, 72), 2: table_of(82, 77)}
TWO = {0: table_of(86, 74), 2: table_of(87, 76), 5: table_of(10, 20)}


def test_an_interval_is_that_of_students_t():
    found = paired_interval([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.half == pytest.approx(4.303 * math.sqrt(7.0) / math.sqrt(3))  # s² = (4 + 1 + 9) / 2
    assert str(found) == "+3.00 ± 6.57"
    assert not found.is_clear
    assert str(paired_interval([-1.0])) == "−1.00"
    assert paired_interval([5.0, 5.1, 5.2]).is_clear


def test_the_table_of_t_is_that_of_statisticians():
    """The t leaves 2.5 % above it: checked by integrating its density."""
    for degrees, t in enumerate(T975, 1):
        scale = math.gamma((degrees + 1) / 2) / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2)
        xs = [t * (i + 0.5) / 5_000 for i in range(5_000)]
        inside = sum(scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2) for x in xs) * t / 5_000
        assert inside == pytest.approx(0.475, abs=1e-4), degrees


def test_differences_are_paired_by_seed():
    assert values_of(ONE, "student") == {0: 80, 1: 84, 2: 82}
    assert seeds_difference(ONE, "student alone") == paired_interval([10.0, 12.0, 5.0])
    assert seeds_difference(TWO, "student", ONE) == paired_interval([6.0, 5.0])  # of the seeds that both have
    assert seeds_difference({0: table_of(80, 70, None)}, "true ensemble") is None


def test_the_table_has_a_line_per_recipe():
    heads, (one, two) = seeds_table({"one": ONE, "two": TWO})
    first, second = dict(zip(heads, one, strict=True)), dict(zip(heads, two, strict=True))
    assert first["student"] == "82.00 ± 2.00"
    assert first["− alone"] == str(paired_interval([10.0, 12.0, 5.0]))
    assert first["− one"] == ""
    assert second["− one"] == "+5.50 ± 6.35"
    assert seeds_table({"one": {0: table_of(80, 70, None)}})[1] == [
        ["one", "1", "80.00", "70.00", "–", "+10.00", "–", "0.5000", "2.00"]
    ]


def test_the_text_says_what_is_significant():
    text = seeds_text({"one": {seed: table_of(80 + seed / 10, 70) for seed in range(3)}, "two": {0: table_of(85, 70)}})
    first, second = text.splitlines()
    assert first.startswith("one, 3 seeds: student − student alone +10.10 ± 0.25 points (significant), ")
    assert second.endswith("− student of one +5.00 points (one seed)")
