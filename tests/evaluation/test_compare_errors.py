"""The table in one sentence, whoever wins."""

import pytest

from meco_timm.evaluation import Row, compare_errors


def row(name: str, top1: float, multiply_adds: int = 100) -> Row:
    return Row(name, top1, None, 0.1, 1.0, 10, multiply_adds, 1.0, top1, {})


@pytest.mark.parametrize(
    ("student", "alone", "ensemble", "expected"),
    [
        (91.4, 90.0, 91.65, "0.86 × the errors of the same network alone and 1.03 × the errors of the true ensemble"),
        (80.0, 90.0, 95.0, "2.00 × the errors of the same network alone and 4.00 × the errors of the true ensemble"),
        (99.0, 100.0, 98.0, "1.00 % errors where the same network alone makes none and 0.50 × the errors of the true"),
    ],
)
def test_errors_over_alone_and_ensemble(student, alone, ensemble, expected):
    rows = [row("true ensemble", ensemble, 800), row("student alone", alone), row("student", student)]
    assert compare_errors(rows).startswith(f"The student makes {expected}")
    assert compare_errors(rows).endswith(", at 1/8 of its multiply-adds.")


def test_a_student_may_cost_more_than_its_ensemble():
    rows = [row("true ensemble", 90.0, 50), row("student alone", 80.0), row("student", 90.0)]
    assert compare_errors(rows).endswith("1.00 × the errors of the true ensemble, at 2 times its multiply-adds.")


def test_without_an_ensemble():
    rows = [row("student alone", 80.0), row("student", 90.0)]
    assert compare_errors(rows) == "The student makes 0.50 × the errors of the same network alone."
