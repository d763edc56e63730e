"""The arithmetic of benchmarks/accuracy.py: pairs by seed, intervals, a fair student alone; and its studies."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from benchmarks.accuracy import T95, Study, anchors, best_alone, compared, difference
from meco_timm.recipe.reading import load_recipe

STUDIES = sorted((ROOT / "benchmarks/studies").glob("*.yaml"))


def run(arm: str, seed: int, student: float, alone: float, ensemble: float = 90.0, steps: int = 100) -> dict[str, Any]:
    """A result as `run_arm` writes it."""
    row = {"nll": 0.5, "ece": 2.0, "parameters": 1_000_000}
    top1 = {"student": student, "student alone": alone, "true ensemble": ensemble}
    rows = {name: {**row, "name": name, "top1": value} for name, value in top1.items()}
    recipe = {"student": {"model": "x"}, "loop": {"steps": steps}}
    return {"arm": arm, "seed": seed, "rows": rows, "validation": student + 1, "recipe": recipe}


RESULTS = [
    run("base", 0, 80.0, 70.0),
    run("base", 1, 84.0, 72.0),
    run("base", 2, 82.0, 77.0),
    run("long", 0, 86.0, 74.0, steps=200),
    run("long", 1, 85.0, 75.0, steps=200),
    run("long", 2, 87.0, 76.0, steps=200),
]


def test_a_difference_has_the_t_interval_of_its_mean():
    found = difference([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.half == pytest.approx(4.303 * math.sqrt(7.0) / math.sqrt(3))  # s² = (4 + 1 + 9) / 2
    assert str(found) == "+3.00 ± 6.57"
    assert str(difference([-1.0])) == "-1.00"


def test_the_table_of_t_is_that_of_statisticians():
    """The t of n − 1 degrees leaves 2.5 % above it: checked by integrating its density."""
    for n, t in T95.items():
        degrees = n - 1
        scale = math.gamma((degrees + 1) / 2) / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2)
        xs = [t * (i + 0.5) / 20_000 for i in range(20_000)]
        inside = sum(scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2) for x in xs) * t / 20_000
        assert inside == pytest.approx(0.475, abs=1e-4), n


def test_arms_are_paired_by_seed():
    base, long = compared(RESULTS, "base")
    assert base["top-1"] == pytest.approx(82.0)
    assert base["validation"] == pytest.approx(83.0)
    assert base["− student alone"] == str(difference([10.0, 12.0, 5.0]))
    assert base["− true ensemble"] == str(difference([-10.0, -6.0, -8.0]))
    assert base["− base"] is None
    assert long["− base"] == str(difference([6.0, 1.0, 5.0]))
    assert base["error / alone"] == pytest.approx((20 / 30 + 16 / 28 + 18 / 23) / 3)


def test_every_arm_meets_the_student_alone_at_its_best_budget():
    assert best_alone(RESULTS, "base") == {0: 74.0, 1: 75.0, 2: 76.0}
    assert compared(RESULTS, "base")[0]["− best alone"] == str(difference([6.0, 9.0, 6.0]))


def test_another_networks_student_alone_is_no_yardstick():
    other = run("other", 0, 99.0, 98.0) | {"recipe": {"student": {"model": "y"}, "loop": {"steps": 100}}}
    assert best_alone([*RESULTS, other], "base")[0] == 74.0
    assert best_alone([*RESULTS, other], "other") == {0: 98.0}


def test_a_run_shared_by_two_arms_is_one_in_the_anchors():
    again = [r | {"arm": "again"} for r in RESULTS[:3]]
    alone = next(row for row in anchors(RESULTS[:3] + again) if row["network"] == "student alone")
    assert alone["runs"] == 3
    assert alone["top1"] == pytest.approx(73.0)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_arm_of_every_study_is_a_recipe_that_parses(path: Path):
    study = Study(**yaml.safe_load(path.read_text()))
    assert study.base in study.arms
    recipes = [load_recipe(ROOT / study.recipe, [*study.common, *arm]) for arm in study.arms.values()]
    assert len({recipe.model_dump_json() for recipe in recipes}) == len(recipes), "two arms are one"
    assert re.search(r"^# command .+ " + re.escape(f"benchmarks/studies/{path.name}"), path.read_text(), re.MULTILINE)
