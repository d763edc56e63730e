"""The benchmarks of speed run: one step of each side, tiny. What they measure is no test's business."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import ROOT

from benchmarks import (
    data,
    endtoend,
    ensemble_size,
    memory,
    peers,
    prediction,
    ranking,
    rehearsals,
    sides,
    startup,
    step,
    stored,
)
from meco_timm import load_recipe
from meco_timm.common import Stopwatch, share_of_time

TINY: dict[str, Any] = {"student": "test_resnet", "teacher": "test_resnet", "size": 32, "batch": 4, "rows": 20}


@pytest.fixture
def args() -> argparse.Namespace:
    return argparse.Namespace(**TINY)


@pytest.mark.parametrize("side", step.SIDES)
def test_step(args, side):
    step.make_step(side, args)()


@pytest.mark.parametrize(("sampling", "teachers"), [("random", 0), ("random", 2), ("random_image", 2), ("average", 2)])
def test_ensemble_size(args, sampling, teachers):
    ensemble_size.make_step(sampling, teachers, args)()
    ensemble_size.teacher_only(args)()


def test_stored(args, tmp_path):
    images = torch.randint(0, 256, (1, 4, 3, 32, 32), dtype=torch.uint8)
    for side in ("labels", "logits", "full", "live"):
        stored.stored_step(side, args, tmp_path, images)()
    sides, bytes_per_view = stored.filling(args, tmp_path)
    for fill in sides.values():
        fill()
    shapes = step.stream(timm.create_model(args.teacher), step.recipe(args, {}), channels=64).block_shapes
    assert bytes_per_view == 2 * (step.CLASSES + sum(map(math.prod, shapes))) + 8


def test_the_prediction_for_imagenet_is_arithmetic(args):
    every, logits, largest = stored.imagenet(1000.0, args)
    assert every["bytes per view"] == 2 * (1000 + 4 * 256) + 8
    assert logits["GB per teacher"] == pytest.approx(2008 * 10 * 1.281167e6 / 1e9)
    assert largest["hours to fill"] == pytest.approx(10 * 1281.167 / 3600)


def test_data(tmp_path):
    assert len(list(data.draw(tmp_path, 8, 32).rglob("*.jpg"))) == 8


@pytest.mark.parametrize("kind", data.SMALL)
def test_small_images(tmp_path, kind):
    for side in data.small_sides(kind, tmp_path, 8).values():
        assert side().image.shape[2] in (32, 64)


def test_ranking(monkeypatch):
    monkeypatch.setattr(ranking, "PASSES", ["test_resnet", "test_vit"])
    args = argparse.Namespace(images=40, size=32, candidates=3, votes=50, classes=4)
    _, passes = ranking.passes(args)
    assert passes["pass_ratio"] > 0
    assert 0 < passes["decoding_share"] < 1
    _, selection = ranking.selection(args)
    assert selection["selection_seconds"] > 0


@pytest.mark.parametrize("kind", endtoend.PEERS)
def test_a_peer_learns_end_to_end(tmp_path, monkeypatch, kind):
    """The drawn images have their classes, and files of the teachers are read; ours is the command itself."""
    if kind == "torchdistill":
        pytest.importorskip("torchdistill")  # of the extra `bench`: the README's test command installs `dev` alone
    endtoend.write_split(tmp_path / "jpegs/train", list(endtoend.drawn(70)["train"]))
    endtoend.write_split(tmp_path / "jpegs/test", list(endtoend.drawn(20)["test"]))
    timm.models.save_for_hf(
        timm.create_model("test_resnet", num_classes=10), tmp_path / "teacher", safe_serialization=True
    )
    assert 0 <= endtoend.peer(kind, "jpegs", tmp_path, [tmp_path / "teacher"], steps=1) <= 100
    command = endtoend.ours("jpegs", tmp_path, [tmp_path / "teacher"], 1, "run")
    assert load_recipe(command[2]).teachers[0].model == f"local-dir:{tmp_path / 'teacher'}"


def test_endtoend_reads_the_share_of_steps_that_a_run_prints(tmp_path, monkeypatch):
    whole, part = Stopwatch(), Stopwatch()
    whole.seconds, part.seconds = 50.0, 41.0
    (tmp_path / "runs/jpegs-0-0").mkdir(parents=True)
    (tmp_path / "runs/jpegs-0-0/table.json").write_text('{"rows": [{"name": "student", "top1": 62.5}]}')
    monkeypatch.setattr(endtoend, "run", lambda words: (3.0, 4.0, share_of_time(whole, part, "training steps")))
    assert endtoend.one("ours", "jpegs", tmp_path, [], 1, 0) == (3.0, 4.0, 62.5, 0.82)


def test_startup(tmp_path):
    words = startup.command(tmp_path, "run")
    assert 0 < startup.first_line(words) < 20
    assert not (tmp_path / "run/table.json").exists()
    with pytest.raises(RuntimeError, match="printed nothing"):
        startup.first_line([sys.executable, "-c", ""])


def test_prediction(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = prediction.both(
        "quickstart", ["teachers=[train: test_resnet]", "loop.steps=4", "loop.validations=1", "zoo.loop.steps=2"]
    )
    assert found.measured > 0
    assert found.predicted > 4
    assert found.peak > found.predicted_mib / 2 > 100


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda path: path.stem)
def test_what_is_rehearsed_is_light(path):
    recipe = load_recipe(path, rehearsals.small(path))
    assert recipe.loop.batch_size == 2
    assert all((teacher.size or recipe.data.image_size) <= rehearsals.SIDE for teacher in recipe.teachers)


@pytest.mark.parametrize("way", list(memory.WAYS))
def test_memory(args, way):
    assert memory.peak(way, 2, args) >= 0


def test_peers(tmp_path, monkeypatch):
    """All sides see the same images, begin alike, and with one teacher go the same way."""
    pytest.importorskip("torchdistill")
    monkeypatch.chdir(Path(__file__).parents[2])
    args = argparse.Namespace(
        student="test_resnet", teachers=["test_resnet", "test_byobnet", "test_vit"], size=32, batch=8, steps=3,
        teacher_steps=1, lr=1e-3, zoo=tmp_path / "zoo", store=None,
    )  # fmt: skip
    batches = sides.batches_of(args, sides.data_of(args))
    made = {name: sides.make_side(name, args, batches) for name in sides.SIDES if "stored" not in name}
    _, losses = peers.trained(made, args)
    for name in ("torchdistill 1", "ours 1"):
        assert losses[name] == pytest.approx(losses["timm 1"], rel=1e-3)
    assert losses["torchdistill 3"] == pytest.approx(losses["timm 3"], rel=1e-3)
