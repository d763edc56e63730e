"""benchmarks/accuracy.py: a fair student alone; and its studies."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, base_recipe, write
from helpers.tables import table_of

from benchmarks.accuracy import best_alone, compared
from meco_timm.recipe import load_recipe
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


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_arm_of_every_study_is_a_recipe_that_parses(tmp_path: Path, path: Path):
    written = yaml.safe_load(path.read_text())
    recipe = ROOT / written["recipe"] if "common" in written else write(written["recipe"], tmp_path)
    common = written.get("common", [])
    assert written["base"] in written["arms"]
    recipes = [load_recipe(recipe, [*common, *arm]) for arm in written["arms"].values()]
    assert len({recipe.model_dump_json() for recipe in recipes}) == len(recipes), "two arms are one"
    assert re.search(r"^# command .+ " + re.escape(f"benchmarks/studies/{path.name}"), path.read_text(), re.MULTILINE)
