"""The share of a run's time that its training steps take."""

import pytest

from meco_timm.common import Stopwatch, share_of_time, stopwatch
from meco_timm.pipeline import distill
from meco_timm.recipe import Recipe


def test_it_counts_while_it_runs_and_is_not_paused(monkeypatch):
    times = iter([10.0, 12.0, 20.0, 21.0, 100.0, 100.5])
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: next(times))
    watch = Stopwatch()
    with watch, watch.paused():
        pass
    with watch:
        pass
    assert watch.seconds == pytest.approx(2 + 1 + 0.5)


@pytest.mark.parametrize(
    ("whole", "part", "text"),
    [
        (112.4, 56.2, "1 min 52 s, 50 % of it in x"),
        (9.96, 0.0, "10.0 s, 0 % of it in x"),
        (0, 0, "0.0 s, 0 % of it in x"),
    ],
)
def test_its_line(whole, part, text):
    watches = Stopwatch(), Stopwatch()
    watches[0].seconds, watches[1].seconds = whole, part
    assert share_of_time(*watches, "x") == text


def test_a_run_ends_with_it_and_a_finished_one_does_not(recipe, caplog):
    distill(Recipe.model_validate(recipe))
    (line,) = [record.message for record in caplog.records if "of it in training steps" in record.message]
    assert 0 < float(line.split(", ")[1].split()[0]) < 100
    caplog.clear()
    distill(Recipe.model_validate(recipe))
    assert "of it in training steps" not in caplog.text
