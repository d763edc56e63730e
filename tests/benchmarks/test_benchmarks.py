"""The benchmarks of speed run: one step of each side, tiny. What they measure is no test's business."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from benchmarks import data, ensemble_size, memory, peer_sides, peers, startup, step, stored

TINY: dict[str, Any] = {"student": "test_resnet", "teacher": "test_resnet", "size": 32, "batch": 4, "rows": 20}


@pytest.fixture
def args() -> argparse.Namespace:
    return argparse.Namespace(**TINY)


@pytest.mark.parametrize("side", step.SIDES)
def test_step(args, side):
    step.make_step(side, args)()


@pytest.mark.parametrize(("sampling", "teachers"), [("random", 0), ("random", 2), ("average", 2)])
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
    shapes = step.stream(timm.create_model(args.teacher), step.recipe(args, {}), as_teacher=True).block_shapes
    assert bytes_per_view == 2 * (step.CLASSES + sum(map(math.prod, shapes))) + 8


def test_data(tmp_path):
    assert len(list(data.draw(tmp_path, 8, 32).rglob("*.jpg"))) == 8


@pytest.mark.parametrize("kind", data.SMALL)
def test_small_images(tmp_path, kind):
    for side in data.small_sides(kind, tmp_path, 8).values():
        assert side().image.shape[2] in (32, 64)


def test_startup(tmp_path):
    words = startup.command(tmp_path, "run")
    assert 0 < startup.first_line(words) < 20
    assert not (tmp_path / "run/table.json").exists()
    with pytest.raises(RuntimeError, match="printed nothing"):
        startup.first_line([sys.executable, "-c", ""])


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
    batches = peer_sides.batches_of(args, peer_sides.data_of(args))
    made = {name: peer_sides.make_side(name, args, batches) for name in peer_sides.SIDES if "stored" not in name}
    _, losses = peers.trained(made, args)
    for name in ("torchdistill 1", "ours 1"):
        assert losses[name] == pytest.approx(losses["timm 1"], rel=1e-3)
    assert losses["torchdistill 3"] == pytest.approx(losses["timm 3"], rel=1e-3)
