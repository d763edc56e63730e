"""benchmarks/accuracy.py: a fair student alone; and its studies."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, base_recipe, write
from helpers.tables import table_of

from benchmarks.accuracy import Point, best_alone, compared, draw_cost, points
from meco_timm.recipe import load_recipe, to_yaml
from meco_timm.runs import PlainRun

STUDIES = sorted((ROOT / "benchmarks/studies").glob("*.yaml"))
ARMS = {
    "base": {0: table_of(80, 70), 1: table_of(84, 72), 2: table_of(82, 77)},
    "long": {0: table_of(86, 74), 1: table_of(85, 75), 2: table_of(87, 76)},
    "other network": {0: table_of(99, 98), 1: table_of(99, 98), 2: table_of(99, 98)},
}


@pytest.fixture
def runs(tmp_path):
    path = write(base_recipe("nowhere", tmp_path), tmp_path)
    changes = {"base": [], "long": ["loop.steps=9"], "other network": ["student=test_resnet"]}
    return [PlainRun(arm, s, path, c, load_recipe(path, c)) for arm, c in changes.items() for s in range(3)]


def test_every_arm_meets_its_student_alone_at_its_best_budget(runs):
    assert best_alone(runs, ARMS, "base") == {0: 74.0, 1: 75.0, 2: 76.0}
    assert best_alone(runs, ARMS, "other network") == {0: 98.0, 1: 98.0, 2: 98.0}
    row = compared(runs, ARMS, dict.fromkeys(ARMS, 90.0))[0]
    assert row["arm"] == "base"
    assert row["− best alone"].startswith("+7.00 ± ")
    assert row["− alone"].startswith("+9.00 ± ")
    assert row["validation"] == 90.0


def test_a_picture_shows_each_form_at_each_size_and_number_of_steps(runs, tmp_path, monkeypatch):
    """A student that starts from a run's student has taken that run's steps too."""
    first = next(run for run in runs if run.name == "long")
    (tmp_path / "first/student").mkdir(parents=True)
    (tmp_path / "first/recipe.yaml").write_text(to_yaml(first.recipe))
    words = [f"student=local-dir:{tmp_path}/first/student", "loop.steps=4"]
    later = PlainRun("later", 0, first.path, words, load_recipe(first.path, words))
    found = points([first, later], {"long": ARMS["long"], "later": {0: table_of(86, 74)}})
    assert [(point.form, point.steps, len(point.top1)) for point in found] == [
        ("labels", 9, 3),
        ("MEAL's form", 9, 3),
        ("backbone, then labels", 13, 1),
        ("backbone, then MEAL's form", 13, 1),
    ]
    monkeypatch.undo()  # so that charts are drawn
    draw_cost([*found, Point("labels", "large", 9, {0: 80.0, 1: 82.0})], 90.0, tmp_path / "cost.svg")
    drawn = (tmp_path / "cost.svg").read_text()
    assert all(text in drawn for text in ("backbone, then labels", "true ensemble", "large", ">13<"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_arm_of_every_study_is_a_recipe_that_parses(tmp_path: Path, path: Path):
    written = yaml.safe_load(path.read_text())
    recipe = ROOT / written["recipe"] if "common" in written else write(written["recipe"], tmp_path)
    common = written.get("common", [])
    assert written["base"] in written["arms"]
    recipes = [load_recipe(recipe, [*common, *arm]) for arm in written["arms"].values()]
    assert len({recipe.model_dump_json() for recipe in recipes}) == len(recipes), "two arms are one"
    assert re.search(r"^# command .+ " + re.escape(f"benchmarks/studies/{path.name}"), path.read_text(), re.MULTILINE)
