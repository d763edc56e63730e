"""`meco-timm students`: architectures within a budget, in a stated order."""

import pytest

from meco_timm import UserError
from meco_timm.cli import main
from meco_timm.planning import students
from meco_timm.planning.students import Budget, find_students, parse_budget, read_accuracies

TINY = ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"]


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("5ms", Budget(5, "ms")), ("0.5 MS", Budget(0.5, "ms")), ("4M", Budget(4e6, "M")),
        ("300MMACs", Budget(3e8, "MMACS")), ("1.5gmacs", Budget(1.5e9, "GMACS")),
    ],
)  # fmt: skip
def test_budgets(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["5", "ms", "-1M", "0M", "4 parameters", ""])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UserError, match="none of 5ms, 4M"):
        parse_budget(text)


def test_every_candidate_fits_and_the_largest_comes_first():
    every = find_students(parse_budget("100M"), 32, TINY)
    assert {c.name for c in every} == set(TINY)
    assert [c.multiply_adds for c in every] == sorted((c.multiply_adds for c in every), reverse=True)
    assert all(c.latency_ms > 0 for c in every)
    cost = every[1].multiply_adds
    assert find_students(Budget(cost, "MMACS"), 32, TINY)[0].name == every[1].name
    most = min(c.parameters for c in every)
    assert [c.parameters for c in find_students(Budget(most, "M"), 32, TINY)] == [most]
    assert len(find_students(parse_budget("100M"), 32, TINY, top=2)) == 2


def test_a_budget_of_time_is_measured(monkeypatch):
    times = {"test_resnet": 3.0, "test_vit": 1.0, "test_efficientnet": 2.0, "test_convnext": 9.0}
    monkeypatch.setattr(students, "_latency", lambda name, size: times[name])
    assert {c.name for c in find_students(parse_budget("2ms"), 32, TINY)} == {"test_vit", "test_efficientnet"}
    with pytest.raises(UserError, match="none of 4 architectures fits"):
        find_students(parse_budget("0.9ms"), 32, TINY)


def test_accuracies_of_timms_table_come_first(tmp_path, capsys):
    """Of several weights of an architecture the best."""
    table = tmp_path / "results-imagenet.csv"
    table.write_text("model,top1,top5\ntest_vit.a,60.5,80\ntest_vit.b,62.5,80\ntest_resnet.r160_in1k,61.0,80\n")
    assert read_accuracies(str(table)) == {"test_vit": 62.5, "test_resnet": 61.0}
    words = ["--budget", "100M", "--image-size", "32", "--results", str(table), "--pattern", "test_[rv]*"]
    assert main(["students", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.index("test_vit ") < printed.index("test_resnet ")
    assert "student: test_vit\n" in printed
    table.write_text("name\ntest_vit\n")
    assert main(["students", *words]) == 2
    assert "is not timm's table" in capsys.readouterr().err


def test_patterns_match_something():
    import timm

    assert all(timm.list_models(pattern) for pattern in students.PATTERNS)
    with pytest.raises(UserError, match="no architecture of timm matches nosuch"):
        find_students(parse_budget("4M"), 32, ["nosuch"])
