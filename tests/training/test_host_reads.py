"""A step must not wait for a GPU between two lines of metrics: what would, is counted on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.zoos import zoo_of

from benchmarks.host_reads import DEVICE, HostReads, counted
from meco_timm.common import batch_seed
from meco_timm.data.loading import load_data
from meco_timm.distillation import Distiller
from meco_timm.networks.streams import student_stream
from meco_timm.recipe.recipe import Recipe
from meco_timm.training import Job, Teaching, Training
from meco_timm.training.accelerator import make_accelerator
from meco_timm.zoo.precompute import use_store

OPTIONS: dict[str, dict[str, Any]] = {
    "the shipped form": {},
    "ema, mixup, cutmix, erasing": {"loop": {"ema": 0.9, "mixup": 0.2, "cutmix": 0.5, "random_erasing": 0.3}},
    "the mean of all": {"zoo": {"sampling": "average"}, "alignment": {"teachers": "all"}},
    "labels, clipping, class weights": {"losses": {"labels": 0.5}, "loop": {"clip_grad": 1.0}},
    "an optimizer without a fused kernel": {"loop": {"optimizer": "lamb"}},
    "accumulation, channels_last": {"loop": {"accumulation": 2, "channels_last": True}},
    "a non-saturating adversary": {"discriminators": {"adversary": "non_saturating", "on": "all"}},
    "the paper's alignment": {"alignment": {"method": "flatten"}, "losses": {"blocks": 0.3}},
}


def reads(shapes: Path, folder: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those of three steps, after one that warms up."""
    plain: dict[str, Any] = {
        "data": {"source": str(shapes), "image_size": 32, "workers": 0},
        "teachers": ["test_resnet.r160_in1k", "test_vit.r160_in1k"],
        "student": "test_vit2",
        "loop": {"steps": 20, "batch_size": 8},
    }
    loop = {"loop": plain["loop"] | changes.get("loop", {})}
    recipe = Recipe.model_validate(plain | changes | loop)
    data = load_data(recipe.data, 0, recipe.store.views)
    accelerator = make_accelerator(recipe.precision, recipe.loop.accumulation)

    def stream(name: str, seed: int) -> Any:
        network = recipe.student.model_copy(update={"model": name})
        options: dict[str, Any] = {"as_teacher": bool(seed)}
        return student_stream(network, recipe.alignment, len(data.classes), 32, seed=seed, **options)

    zoo = zoo_of({"a": stream("test_resnet", 1), "b": stream("test_vit", 2)}, recipe, accelerator)
    use_store(zoo, recipe.store, recipe.data, data, batch_seed(recipe.seed), accelerator)
    distiller = Distiller(stream("test_vit2", 0), recipe.method, len(data.classes), zoo.block_shapes)
    job = Job("student", folder, recipe.loop, data, data.train, 20, 0)
    training = Training(distiller, job, accelerator, Teaching(zoo.targets))
    batches, state = training.batches(), training.state
    for _ in range(14 if recipe.store.folder else 1):  # the store fills while its views are seen first
        training.take_step(batches)
    monkeypatch.setattr(accelerator.state, "device", DEVICE)
    monkeypatch.setattr(zoo.store or zoo, "device", DEVICE, raising=False)
    optimizer = state.optimizer.optimizer
    on_gpu = [state.objective, state.skipped, *optimizer.state.values(), *zoo.streams.values()]
    on_gpu += [state.ema] if state.ema else []
    with counted(*on_gpu) as found:
        for _ in range(3):
            training.take_step(batches)
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_no_step_waits_for_the_device(shapes, tmp_path, monkeypatch, name):
    assert reads(shapes, tmp_path, OPTIONS[name], monkeypatch) == []


@pytest.mark.parametrize("store", [{}, {"topk": 2}])
def test_no_step_waits_for_the_device_with_a_full_store(shapes, tmp_path, monkeypatch, store):
    changes = {"store": {"folder": str(tmp_path / "store"), "views": 1, **store}}
    assert reads(shapes, tmp_path, changes, monkeypatch) == []


def test_reads_and_copies_that_wait_are_found():
    x, host = torch.arange(4.0), torch.arange(4)
    with counted(x) as found:
        _ = x.sum().item(), (x > 1).tolist(), x[x > 2], float(x[0] * 2), x.max().cpu(), bool(x.any())
        _ = host.to(x.device), torch.tensor([1.0], device=x.device), x.to("cpu")
        if x[0] > 3:
            pass
    words = [line.split(" at ")[0] for line in found]
    assert words == [
        "item", "tolist", "__getitem__", "__float__", "cpu", "__bool__",
        "to (a copy that waits)", "tensor (a copy that waits)", "to", "__bool__",
    ]  # fmt: skip
    assert all("test_host_reads.py" in line for line in found)


def test_work_on_the_device_and_copies_beside_it_are_no_reads():
    x, host = torch.arange(4.0), torch.arange(4)
    with HostReads() as mode:
        mode.mark(x)
        y = host.to(x.device, non_blocking=True) + x
        z = torch.where(y > 1, y, 0.0).masked_fill(x > 2, 1.0)[host]
        assert z.device == DEVICE
        _ = host.sum().item(), host.tolist()
    assert mode.found == []
