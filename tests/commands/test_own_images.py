"""A folder of one's own photographs, to a small network on the Hub, by recipes/own_images.yaml."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, refused
from helpers.checkpoints import local_dir, network
from helpers.hub import Hub, files
from helpers.photographs import CLASSES, take

import train
from meco_timm import load_recipe
from meco_timm.data.loading import load_data
from meco_timm.planning.cost import run_parts
from meco_timm.planning.plan import _check_and_plan

RECIPE = str(ROOT / "recipes/own_images.yaml")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return take(tmp_path_factory.mktemp("own") / "photos", 10, side=80)


@pytest.fixture
def words(photos: Path, tmp_path: Path) -> list[str]:
    """The recipe with the folder, and with networks that stand in for the pretrained ones, which cannot be had here."""
    teachers = [local_dir(tmp_path / name, network(name, 7)) for name in ("test_resnet", "test_vit")]
    student = local_dir(tmp_path / "test_efficientnet", network("test_efficientnet", 7))
    return [
        RECIPE,
        f"data.source={photos}",
        "data.image_size=48",
        "data.workers=0",
        f"teachers=[{', '.join(f'train: {teacher}' for teacher in teachers)}]",
        f"student={student}",
        f"run={tmp_path / 'run'}",
        f"zoo.folder={tmp_path / 'zoo'}",
    ]


def test_from_a_folder_to_the_hub(hub: Hub, words, tmp_path, capsys):
    publish = "publish={repo: me/student, license: mit}"
    assert train.main([*words, "loop.epochs=3", "zoo.loop.epochs=2", publish]) == 0
    said = capsys.readouterr().out
    assert "hf-hub:me/student" in said
    found = files(hub)
    assert {"model.safetensors", "config.json", "README.md"} <= found.keys()
    assert json.loads(found["config.json"])["label_names"] == list(CLASSES)
    rows = json.loads((tmp_path / "run/table.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [
        "test_resnet",
        "test_vit",
        "true ensemble",
        "student alone",
        "student",
    ]


def test_the_small_recipe_needs_no_download_and_fewer_operations(photos: Path, tmp_path, capsys):
    """HF_HUB_OFFLINE is set here. Its networks start from random weights, at 64 px."""
    places = [f"run={tmp_path / 'run'}", f"zoo.folder={tmp_path / 'zoo'}", "data.workers=0"]
    small, large = (
        load_recipe(ROOT / f"recipes/{name}.yaml", [f"data.source={photos}", "loop.batch_size=16"])
        for name in ("own_images_small", "own_images")
    )
    assert not any(network.names_weights for network in (small.student, *small.teachers))
    data = load_data(large.data, 0)
    works = [_check_and_plan(one, data, 1)[0] for one in (small, large)]
    operations = [sum(part.training + part.forward for part in run_parts(work).values()) for work in works]
    assert operations[0] < operations[1] / 100
    words = [str(ROOT / "recipes/own_images_small.yaml"), f"data.source={photos}", *places]
    assert train.main([*words, "loop.epochs=1", "zoo.loop.epochs=1", "loop.batch_size=16"]) == 0
    assert "The student makes " in capsys.readouterr().out


def data_of(*words: str) -> Any:
    recipe = load_recipe(RECIPE, words)
    return recipe, load_data(recipe.data, recipe.seed)


def test_few_images_are_enough_for_the_recipes_batch(tmp_path, capsys):
    """15 of each of two classes, as its header says; fewer are refused with what to write."""
    for count in (15, 8):
        folder = take(tmp_path / str(count), count, side=32)
        for image in (folder / "fence").iterdir():
            image.unlink()
        (folder / "fence").rmdir()
    recipe, data = data_of(f"data.source={tmp_path / '15'}")
    assert len(data.labelled) >= recipe.loop.batch_size
    assert len(data.validation) >= 2
    told = refused(capsys, RECIPE, f"data.source={tmp_path / '8'}", "--plan")
    assert "loop.batch_size: 16 × 1 process(es) is more than the 11 training images" in told
    assert "Write at most 11" in told


def test_without_a_folder_it_says_so(capsys):
    assert refused(capsys, RECIPE, "--plan").startswith("data.source: there is no folder my_images (relative to ")
