"""The recipes of the repository: each can be planned without a connection, and names weights that exist."""

import re
import shlex
from pathlib import Path

import pytest
import timm
from conftest import ROOT

from meco_timm import load_recipe, plan
from meco_timm.recipe.schema import schema

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
TAG = re.compile(r"\b([a-z]\w+\.\w*(?:in(?:1k|21k|22k|12k)|lvd1689m|webli)\w*)")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses(path):
    assert load_recipe(path).teachers


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_begins_with_its_own_command_and_what_it_needs(path):
    text = path.read_text(encoding="utf-8")
    head = text[: text.index("\n\n")]
    assert head.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    command = shlex.split(re.search(r"^# command +(.+)$", head, re.MULTILINE)[1])  # type: ignore[index]
    recipe, *overrides = command[command.index("train.py") + 1 :]
    assert ROOT / recipe == path
    load_recipe(path, overrides)
    assert re.search(r"^# hardware +\S", head, re.MULTILINE)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_data_that_ship_with_the_repository_are_there(path):
    source = load_recipe(path).data.source
    if source.startswith("recipes/"):
        assert (ROOT / source).is_dir()


def test_the_schema_for_editors_is_the_recipes():
    """When this fails: python -m meco_timm.recipe.schema > recipes/recipe.schema.json"""
    assert (ROOT / "recipes/recipe.schema.json").read_text(encoding="utf-8") == schema()


def test_no_file_is_larger_than_it_should_be():
    """The data that ship with the repository stay well under 1 MiB."""
    assert sum(path.stat().st_size for path in (ROOT / "recipes").rglob("*") if path.is_file()) < 2**20


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_is_planned_offline_with_licence_and_size_of_each_network(path: Path, shapes: Path):
    own = path.stem.startswith(("own_images", "backbone"))
    source = [f"data.source={shapes}", "loop.batch_size=8"] if own else []
    recipe = load_recipe(path, source)
    text = plan(recipe, width=1000)
    table = text.split("\nnetwork ")[1].split("\n\n")[0].splitlines()[1:]
    rows = [line for line in table if line.split() and len(line.split()) > 5]
    assert len(rows) == 1 + len(recipe.teachers)
    for line, network in zip(rows, [recipe.student, *recipe.teachers], strict=True):
        size = recipe.data.image_size if network is recipe.student or network.train else line.split()[4]
        assert line.split()[4] == str(size)
        if network.names_weights:
            licence = timm.get_pretrained_cfg(network.model).license
            assert licence
            assert licence.split("-")[0] in line
    assert "nc-" not in text
    assert not re.search(r"^(warning|note: \w+ has as many)", text, re.MULTILINE)


def test_every_tag_that_a_recipe_names_is_timms():
    tags = {tag for path in RECIPES for tag in TAG.findall(path.read_text(encoding="utf-8"))}
    assert len(tags) > 15
    assert tags <= set(timm.list_pretrained())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_header_says_whether_it_was_run_and_what_it_aims_for(path: Path):
    head = path.read_text(encoding="utf-8").split("\ndata:")[0]
    assert re.search(r"^# (aims for|expected) ", head, re.MULTILINE)
    assert re.search(r"^# (run|expected) ", head, re.MULTILINE)
    assert all(not line or line.startswith(("#", "seed", "task")) for line in head.splitlines())


def test_the_papers_schedules_are_in_the_recipes():
    """CIFAR: a tenth at epochs 150 and 250 of 300; MEAL V2: at epoch 100 of 180, 512 images a step."""
    for name in ("cifar10", "cifar100", "svhn"):
        loop = load_recipe(ROOT / f"recipes/{name}_ensemble.yaml").loop
        assert [round(share * (loop.epochs or 0)) for share in loop.milestones] == [150, 250]
        assert (loop.lr, loop.batch_size, loop.weight_decay) == (0.1, 128, 5e-4)
    v2 = load_recipe(ROOT / "recipes/imagenet_meal_v2.yaml")
    assert [round(share * (v2.loop.epochs or 0)) for share in v2.loop.milestones] == [100]
    assert (8 * v2.loop.batch_size, v2.loop.lr, v2.loop.weight_decay, v2.discriminators.lr) == (512, 0.01, 0.0, 1e-4)
