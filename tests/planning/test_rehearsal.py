"""Rehearsals: all parts of a recipe, in a few steps, with nothing of it kept and nothing real touched."""

from pathlib import Path

import datasets
import pytest
import timm
from conftest import CLASSES, ROOT, contents, refused, tree, write

import train
from meco_timm import distill, load_recipe, pipeline
from meco_timm.planning import rehearse
from meco_timm.recipe.recipe import Recipe


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is measured in other tests; nothing may ask for weights."""
    made = timm.create_model

    def watched(name: str, pretrained: bool = False, **options: object) -> object:
        assert not pretrained or name.startswith("local-dir:"), name
        return made(name, pretrained=pretrained, **options)

    monkeypatch.setattr(timm, "create_model", watched)


def test_all_parts_run_and_nothing_is_kept(recipe, shapes, tmp_path, capsys, monkeypatch):
    """Also beside a run that is there already, with the recipe's own zoo, store and repository untouched."""
    monkeypatch.setattr("meco_timm.hub.publishing.publish", lambda *_: pytest.fail("published"))
    recipe["publish"] = {"repo": "me/student"}
    recipe["store"] = {"folder": str(tmp_path / "store"), "views": 2}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("mine")
    path, cached = write(recipe, tmp_path), datasets.config.HF_DATASETS_CACHE
    before = contents(tmp_path)
    assert train.main([path, "--limit-steps", "3"]) == 0
    result, log = capsys.readouterr()
    for title in ("teacher test_resnet", "teacher test_vit", "student alone", "student"):
        assert f"\n{title}  step 3/3" in log, title
    assert result == (
        f"\nThis was a rehearsal: all parts ran, 3 step(s) per training, on some images of {shapes}. "
        "No result was compared or saved.\n"
    )
    assert "warning" not in log
    assert "teaches almost nothing" not in log
    assert "run.rehearsal/run" not in log  # no path to what is gone
    assert contents(tmp_path) == before
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.yaml", "run"}
    assert cached == datasets.config.HF_DATASETS_CACHE


def test_what_fails_leaves_nothing_and_says_why(recipe, tmp_path, capsys, monkeypatch):
    path = write(recipe, tmp_path)
    assert "loop.optimizer: timm has no 'adamm'" in refused(capsys, path, "loop.optimizer=adamm", "--limit-steps", "1")
    networks = "teachers=[test_vit.r160_in1k, resnet19.a1_in1k]"
    assert "teachers.1: timm has no model" in refused(capsys, path, networks, "--limit-steps", "1")
    assert tree(tmp_path) == {"recipe.yaml"}


@pytest.mark.parametrize(
    "words", [["--limit-steps", "0"], ["--limit-steps", "three"], ["--limit-steps", "3", "--plan"]]
)
def test_wrong_words_are_refused(recipe, tmp_path, capsys, words):
    refused(capsys, write(recipe, tmp_path), *words)
    assert tree(tmp_path) == {"recipe.yaml"}


def shortened(recipe: dict[str, object], folder: Path, *overrides: str, steps: int = 3) -> Recipe:
    return rehearse._shortened(load_recipe(write(recipe, folder), overrides), steps, folder / "short", 2)


def test_the_short_recipe_is_the_recipe_but_for_places_and_lengths(recipe, tmp_path):
    recipe["zoo"]["loop"] = {"epochs": 7, "lr": 0.5}
    recipe["loop"] |= {"mixup": 0.2, "patience": 3}
    recipe["trackers"] = ["tensorboard"]
    long, short = load_recipe(write(recipe, tmp_path)), shortened(recipe, tmp_path)
    for loop in (short.loop, *(t.loop for t in short.teachers)):
        assert (loop.steps, loop.epochs, loop.validations, loop.batch_size) == (3, None, 1, 8)
    assert (short.teachers[0].loop.lr, short.loop.lr, short.loop.mixup) == (0.5, 2e-3, 0.2)
    for section in ("losses", "alignment", "discriminators", "student"):
        assert getattr(short, section) == getattr(long, section)
    assert short.data.augmentation == long.data.augmentation
    assert (short.data.labelled, short.trackers) == (None, [])


def test_its_images_are_of_all_classes_and_as_many_as_batches_need(recipe, tmp_path):
    """Two processes of 8: 32 and 4 to validate with, of the 36 there are; with hidden labels, 16 have one."""
    recipe["data"]["labelled"] = 20
    data = pipeline.load_data(shortened(recipe, tmp_path).data, 0)
    assert data.classes == list(CLASSES)
    assert [len(part) for part in (data.train, data.labelled, data.validation, data.test)] == [32, 16, 4, 4]
    assert set(data.test.labels) == {0, 1, 2}


def test_named_weights_become_random_ones_of_the_same_network(recipe, tmp_path):
    recipe["teachers"] = ["resnet18.a1_in1k", {"train": "test_vit.r160_in1k"}]
    recipe["student"] = "test_efficientnet.r160_in1k"
    short = shortened(recipe, tmp_path)
    networks = [*short.teachers, short.student]
    assert all(network.model.startswith("local-dir:") for network in networks)
    assert [Path(network.model).name for network in networks] == [
        "resnet18.a1_in1k",
        "test_vit.r160_in1k",
        "test_efficientnet.r160_in1k",
    ]
    model = timm.create_model(short.teachers[0].model, pretrained=True)
    named = timm.get_pretrained_cfg("resnet18.a1_in1k")
    assert (model.num_classes, model.pretrained_cfg["mean"]) == (1000, list(named.mean))
    assert model.pretrained_cfg["license"] == named.license


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("fashion_mnist_ensemble", ["loop.batch_size=8"]),
        ("imagenet_mobile", ["loop.batch_size=2", "data.image_size=64", "teachers=[test_vit.r160_in1k]"]),
        ("own_images", ["loop.batch_size=4", "data.image_size=64", "teachers=[train: test_resnet.r160_in1k]"]),
        ("backbone", ["loop.batch_size=4", "data.image_size=64", "teachers=[test_vit.r160_in1k]"]),
    ],
)
def test_a_recipe_of_the_repository_is_rehearsed(tmp_path, shapes, caplog, name, overrides):
    """Those with large networks take minutes."""
    own = name in ("own_images", "backbone")
    if own:
        overrides = [*overrides, f"data.source={shapes}"]
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", [*overrides, "data.workers=0", f"run={tmp_path / 'run'}"])
    rows = distill(recipe, limit_steps=2)
    assert rows[-1].name == "student"
    images = "some images" if own else "synthetic images"
    assert f"This was a rehearsal: all parts ran, 2 step(s) per training, on {images}" in caplog.text
    assert not tree(tmp_path)
