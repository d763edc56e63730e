"""Teachers that do not know the classes are refused before any training, with the line to write."""

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSES, base_recipe, image_folder, refused, write
from helpers.checkpoints import local_dir
from timm.utils import natural_key

import train
from meco_timm import load_recipe
from meco_timm.cli import main
from meco_timm.networks.factory import make_network
from meco_timm.recipe.networks import Network
from meco_timm.recipe.reading import recipe_key

NUMBERED = ("class 1", "class 2", "class 10")  # as text: class 1, class 10, class 2


@pytest.fixture(scope="module")
def numbered(ended: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe on classes with numbers; its teacher tells them apart, with its classes in natural order, unnamed."""
    folder = tmp_path_factory.mktemp("numbered")
    source = image_folder(folder / "shapes", 24, 8)
    for split in ("train", "test"):
        for name, number in zip(CLASSES, NUMBERED, strict=True):
            (source / split / name).rename(source / split / number)
    (trained,) = (ended.parent / "zoo").glob("test_resnet-*")
    model, _ = make_network(Network(model=f"local-dir:{trained}"), {}, True, None, "teacher")
    model.pretrained_cfg = {key: value for key, value in model.pretrained_cfg.items() if key != "label_names"}
    local_dir(folder / "net", model, None, {"input_size": (3, 32, 32)})
    recipe = base_recipe(source, folder)
    recipe |= {"teachers": [f"local-dir:{folder}/net"], "losses": {}, "discriminators": {}}
    recipe["loop"]["steps"] = 1
    return recipe


def test_the_order_of_the_network_is_natural():
    assert sorted(NUMBERED, key=natural_key) == list(NUMBERED) != sorted(NUMBERED)


def test_another_order_is_refused_with_the_line_that_mends_it(numbered, tmp_path, capsys):
    recipe = numbered | {"run": str(tmp_path / "run"), "zoo": {"folder": str(tmp_path / "zoo")}}
    path = write(recipe, tmp_path)
    told = refused(capsys, path)
    assert re.search(
        r"teachers\.0: .*net: \d+\.\d % right on 54 labelled images \(chance: 33\.3 %\), but \d+\.\d %", told
    )
    assert "natural order, numbers by value (class 1, class 2, class 10)" in told
    assert not (tmp_path / "run").exists()
    (line,) = re.findall(r"^  (classes: .+)$", told, re.MULTILINE)
    assert line == "classes: [0, 2, 1]"
    mended = f"teachers=[{{model: {recipe['teachers'][0]}, {line}}}]"
    assert train.main([path, mended]) == 0
    plan = (tmp_path / "run/plan.txt").read_text()
    assert re.search(r"^teacher .*net: \d+\.\d % right on 54 ", plan, re.MULTILINE)
    assert "warning: teachers.0" not in plan


def test_the_plan_warns_of_it(numbered, tmp_path, capsys):
    path = write(numbered | {"run": str(tmp_path / "run")}, tmp_path)
    assert train.main([path, "--plan"]) == 0
    plan = " ".join(capsys.readouterr().out.split())
    assert "warning: teachers.0:" in plan
    assert "classes: [0, 2, 1]" in plan


def test_evaluate_says_what_it_assumes_and_what_fits(numbered, capsys):
    assert main(["evaluate", numbered["teachers"][0], "--data", numbered["data"]["source"]]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "has 3 classes without names; they are taken to be in the order of the data set: class 1, class 10" in told
    assert "% with its classes in natural order, numbers by value (class 1, class 2, class 10)" in told
    assert "--classes" in told


def test_chance_is_refused_unless_the_teacher_is_trusted(numbered, tmp_path, capsys):
    place = numbered["teachers"][0].removeprefix("local-dir:")
    model, _ = make_network(Network(model=f"local-dir:{place}"), {}, True, None, "teacher")
    model.fc.weight.data.zero_()  # the same answer for all images
    blind = local_dir(tmp_path / "blind", model, None, {"input_size": (3, 32, 32)})
    recipe = numbered | {"teachers": [blind], "run": str(tmp_path / "run"), "zoo": {"folder": str(tmp_path / "zoo")}}
    path = write(recipe, tmp_path)
    told = refused(capsys, path)
    assert "33.3 % right on 54 labelled images (chance: 33.3 %), so it does not know these classes" in told
    assert "teachers.0.trust=true" in told
    assert not (tmp_path / "run").exists()
    assert train.main([path, "teachers.0.trust=true"]) == 0
    assert "warning: teachers.0:" in (tmp_path / "run/plan.txt").read_text()
    assert train.main([path, "--fresh", "--limit-steps=1"]) == 0  # a rehearsal trusts all


def test_trust_decides_no_result(numbered, tmp_path):
    path = write(numbered, tmp_path)
    assert recipe_key(load_recipe(path)) == recipe_key(load_recipe(path, ["teachers.0.trust=true"]))
