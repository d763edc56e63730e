"""timm's documented training loop with a task, and our own loop over the same batches."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.data import Mixup, create_dataset, create_loader
from timm.optim import create_optimizer_v2
from torch import Tensor

from meco_timm.data import Batch
from meco_timm.distillation import Distiller
from meco_timm.networks import Stream
from meco_timm.recipe import Recipe
from meco_timm.task import EnsembleDistillation
from meco_timm.training import Job, Teaching, Training
from meco_timm.zoo import Zoo

SIZE, CLASSES, LR = 32, 3, 1e-3
CONFIG = {"input_size": (3, SIZE, SIZE), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
OPTIMIZER: dict[str, Any] = {"opt": "adamw", "lr": LR, "weight_decay": 0.05, "fused": True}
NormalBatch = tuple[Tensor, Tensor]  # as timm's loaders give them: normalised images, target
Losses = list[dict[str, float]]


def network(name: str, seed: int = 0, classes: int = CLASSES) -> Any:
    torch.manual_seed(seed)
    size = {"img_size": SIZE} if "vit" in name else {}
    return timm.create_model(name, num_classes=classes, **size)


def recipe(**sections: Any) -> Recipe:
    """Of our own loop: the optimizer of `OPTIMIZER`, and no end."""
    loop = {"steps": 1_000_000, "batch_size": 8, "lr": LR, "schedule": "none", "clip_grad": None}
    loop |= sections.pop("loop", {})
    sections["discriminators"] = {"lr": LR, **sections.get("discriminators", {})}
    raw = {"data": {"source": "-", "image_size": SIZE}, "teachers": ["test_vit", "test_resnet"], "student": "test_vit"}
    return Recipe.model_validate({**raw, "loop": loop, **sections})


def batches_of(folder: Path, count: int, mixup: Mixup | None = None) -> list[NormalBatch]:
    """Of timm's loader without prefetcher, on the CPU."""
    torch.manual_seed(0)
    loader = create_loader(
        create_dataset("", root=folder),
        CONFIG["input_size"],
        batch_size=8,
        is_training=True,
        no_aug=True,
        mean=CONFIG["mean"],
        std=CONFIG["std"],
        num_workers=0,
        use_prefetcher=False,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    found: list[NormalBatch] = []
    while len(found) < count:
        found += [mixup(*batch) if mixup else tuple(batch) for batch in loader]
    return found[:count]


def image_of(input: Tensor, config: dict[str, Any] = CONFIG) -> Tensor:
    """The un-normalised image, by hand."""
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return input * std + mean


def timm_loop(
    task: EnsembleDistillation,
    batches: Iterable[NormalBatch],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    accumulation: int = 1,
    amp: bool = False,
    after: Callable[[int], None] = lambda step: None,
) -> Losses:
    """As `train_one_epoch` of timm's train.py; the losses of every call."""
    optimizer = optimizer or create_optimizer_v2(task, **OPTIMIZER)
    found, updates = [], 0
    task.train()
    for i, (input, target) in enumerate(batches):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            result = task(input, target)
            loss = result["loss"] / accumulation
        loss.backward()
        found.append({name: value.item() for name, value in result.items() if name != "output"})
        if (i + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
            task.update_ema(step=updates)  # from 0, as our loop counts; timm's script counts from 1
            updates += 1
            after(updates)
    return found


def own_training(
    student: Stream, zoo: Zoo, settings: Recipe, accelerator: Accelerator, objective: Any = None
) -> Training:
    """Our loop before its first step, with the initial projections and discriminators of `objective`."""
    distiller = Distiller(student, settings.method, CLASSES, zoo.block_shapes)
    if objective is not None:
        distiller.load_state_dict(objective.state_dict())
    data: Any = type("Data", (), {"classes": range(CLASSES), "max_bad": 0})  # batches in memory stand in for it
    job = Job("student", Path(), settings.loop, data, data, settings.loop.steps or 0, settings.seed)
    return Training(distiller, job, accelerator, Teaching(zoo.targets))


def recorded(training: Training) -> Losses:
    """A list that gets the losses of every forward of a training."""
    found: Losses = []
    forward = training.state.objective.forward

    def recording(*inputs: Any) -> dict[str, Tensor]:
        losses = forward(*inputs)
        found.append({"loss" if name == "total" else name: value.item() for name, value in losses.items()})
        return losses

    training.state.objective.forward = recording
    return found


def own_loop(training: Training, batches: Iterable[tuple[Tensor, Tensor]]) -> Losses:
    """The losses of each part of each step; `batches`: un-normalised images and targets."""
    found = recorded(training)
    training.accelerator.gradient_accumulation_steps = training.job.loop.accumulation
    training.accelerator.step = 0
    rows = torch.arange(len(next(iter(batches))[0]))
    endless = iter([Batch(image, label, rows, rows * 0) for image, label in batches])
    while len(found) < len(list(batches)):
        training.take_step(endless)
    return found


def accelerator(amp: bool = False) -> Accelerator:
    """A new one; the caller resets the state after."""
    AcceleratorState._reset_state(True)
    return Accelerator(cpu=True, mixed_precision="bf16" if amp else "no")
