"""The recipes of the repository: each can be planned without a connection, and names weights that exist."""

import re
from pathlib import Path

import pytest
import timm
from conftest import ROOT

from meco_timm import load_recipe, plan

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
TAG = re.compile(r"\b([a-z]\w+\.\w+_in(?:1k|21k|22k|12k)\w*)")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_is_planned_offline_with_licence_and_size_of_each_network(path: Path, shapes: Path):
    source = [f"data.source={shapes}"] if path.stem == "own_images" else []
    recipe = load_recipe(path, source)
    text = plan(recipe)
    table = text.split("\nnetwork ")[1].split("\n\n")[0].splitlines()[1:]
    rows = [line for line in table if line.split() and len(line.split()) > 5]  # the others go on with a cell
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
    assert all(line.startswith("#") or not line or line.startswith("seed") for line in head.splitlines())


def test_the_papers_schedules_are_in_the_recipes():
    """CIFAR: a tenth at epochs 150 and 250 of 300; MEAL V2: at epoch 100 of 180, 512 images a step."""
    for name in ("cifar10", "cifar100", "svhn"):
        loop = load_recipe(ROOT / f"recipes/{name}_ensemble.yaml").loop
        assert [round(share * (loop.epochs or 0)) for share in loop.milestones] == [150, 250]
        assert (loop.lr, loop.batch_size, loop.weight_decay) == (0.1, 128, 5e-4)
    v2 = load_recipe(ROOT / "recipes/imagenet_meal_v2.yaml")
    assert [round(share * (v2.loop.epochs or 0)) for share in v2.loop.milestones] == [100]
    assert (8 * v2.loop.batch_size, v2.loop.lr, v2.loop.weight_decay, v2.discriminators.lr) == (512, 0.01, 0.0, 1e-4)
