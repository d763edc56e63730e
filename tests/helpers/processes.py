"""One process of a launch that takes 20 steps and says what it saw; test_processes.py reads it.

With ACCELERATE_USE_FSDP in the environment, accelerate is told that this CPU is a GPU, for on CPUs it passes FSDP over.
"""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

import train
from helpers.zoos import zoo_of
from meco_timm.common.randomness import reseed
from meco_timm.data.loading import load_data
from meco_timm.distillation import Distiller
from meco_timm.networks.streams import student_stream
from meco_timm.recipe.recipe import Recipe
from meco_timm.training import Job, Teaching, Training
from meco_timm.training.accelerator import make_accelerator

STEPS = 20


def main(words: list[str]) -> int:
    """SOURCE OUT BATCH_SIZE ACCUMULATION: 20 steps; half-way what is saved is read back by a new training."""
    as_on_a_gpu()
    source, out, batch_size, accumulation = words
    take_steps(source, out, int(batch_size), int(accumulation))
    return 0


def as_on_a_gpu() -> None:
    if os.environ.get("ACCELERATE_USE_FSDP"):
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def take_steps(source: str, out: str, batch_size: int, accumulation: int) -> None:
    torch.set_num_threads(1)
    recipe = Recipe.model_validate(
        {
            "data": {"source": source, "image_size": 32, "workers": 0, "validation": 0},
            "teachers": ["test_resnet.r160_in1k", "test_vit.r160_in1k"],  # random weights below: any teacher will do
            "student": "test_vit2",  # layer norm: batch norm would see each process's part only
            "alignment": {"method": "projection", "length": 64},
            "zoo": {"sampling": "random"},
            "losses": {"labels": 0.5, "blocks": 0.3, "embedding": 0.3},
            "discriminators": {"adversary": "minimax", "on": "all"},
            "loop": {"steps": STEPS, "batch_size": batch_size, "accumulation": accumulation, "lr": 1e-3},
        }
    )  # fmt: skip
    data = load_data(recipe.data, 0)
    accelerator = make_accelerator(recipe.precision, recipe.loop.accumulation)

    def stream(i: int, network: Any) -> Any:
        network = network.model_copy(update={"model": network.model.split(".")[0]})
        return student_stream(network, recipe.alignment, len(data.classes), 32, seed=i)

    zoo = zoo_of({str(i): stream(i, teacher) for i, teacher in enumerate(recipe.teachers)}, recipe, accelerator)
    parts: list[dict[str, torch.Tensor]] = []

    def training() -> Training:
        student = stream(7, recipe.student)
        reseed(0)
        distiller = Distiller(student, recipe.method, len(data.classes), zoo.block_shapes, zoo.embedding_sizes)
        moments = {i: (torch.full((n,), 0.1), torch.full((n,), 2.0)) for i, n in enumerate(zoo.embedding_sizes) if n}
        distiller.embedding_projections.standardise_by(moments, isotropic=False)
        distiller.register_forward_hook(lambda module, args, found: parts.append(found) if "total" in found else None)
        job = Job("student", Path(out).parent, recipe.loop, data, data.train, STEPS, seed=3)
        new = Training(distiller, job, accelerator, Teaching(zoo.targets))
        assert new.state.shards.spread == any(isinstance(p, DTensor) for p in new.state.objective.parameters())
        return new

    run = training()
    accelerator.gradient_accumulation_steps = accumulation
    losses: list[dict[str, float]] = []
    while run.state.step < STEPS:
        if run.state.step == STEPS // 2 and accelerator.num_processes > 1:
            run.state.save({})
            accelerator.wait_for_everyone()
            accelerator.free_memory()
            run = training()
            run.state.resume({})
            assert run.state.step == STEPS // 2
        batches = run.batches()
        for _ in range(STEPS // 2):
            parts.clear()
            run.take_step(batches)
            mean = {name: torch.stack([part[name].detach() for part in parts]).mean() for name in sorted(parts[0])}
            losses.append({name: accelerator.reduce(value, "mean").item() for name, value in mean.items()})
    state, _ = run.state.shards.states(run.state.module, run.state.optimizer)
    student = run.state.evaluated().state_dict()
    if accelerator.is_main_process:
        result = {"losses": losses, "state": state, "student": student, "processes": accelerator.num_processes}
        torch.save(result | {"kind": accelerator.distributed_type.value}, out)


def train_as_on_a_gpu(words: list[str]) -> int:
    """`train.py` with these words."""
    as_on_a_gpu()
    return train.main(words)
