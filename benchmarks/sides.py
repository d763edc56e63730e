"""The sides of peers.py: one step of the same distillation as timm, torchdistill and this project take it."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.others import TEMPERATURE, Mean, Peer, timm_peer, torchdistill_peer
from benchmarks.step import stepping, training_of
from meco_timm.data.loading import Batch, DataSource, load_data
from meco_timm.data.views import Steps
from meco_timm.networks.streams import Stream
from meco_timm.recipe.recipe import Recipe
from meco_timm.training import batch_seed
from meco_timm.zoo.precompute import use_store
from meco_timm.zoo.teachers import assemble_zoo

VIEWS = 3
SIDES = (
    "timm 1", "torchdistill 1", "ours 1", "ours 1 bf16", "timm 3", "torchdistill 3", "ours 3", "ours 3 bf16",
    "ours 3 stored", "student only",
)  # fmt: skip


class Side(NamedTuple):
    """A step that gives the loss, the student that it trains, over normalised images, and its optimizer."""

    step: Callable[[], Tensor]
    student: nn.Module
    optimizer: torch.optim.Optimizer


def fed(peer: Peer, batches: list[Batch], stream: Stream) -> Side:
    """The peer's steps over these batches."""
    images = iter(batches)

    def step() -> Tensor:
        batch = next(images)
        return peer.step(stream.prepare(batch.image), batch.label.clamp(min=0))

    return Side(step, peer.student, peer.optimizer)


def recipe_of(args: argparse.Namespace, teachers: int, store: Path | None, precision: str = "no") -> Recipe:
    told = {
        "data": {
            "source": "recipes/data/digits", "image_size": args.size, "crop_pct": 1.0, "labelled": 300, "workers": 0,
            "augmentation": {"scale": [0.85, 1.0], "ratio": [0.9, 1.1], "hflip": 0},
        },
        "teachers": [{"train": name} for name in args.teachers[:teachers]],
        "student": args.student,
        "zoo": {
            "folder": str(args.zoo), "precision": precision, "sampling": "average" if store else "random",
            "loop": {"steps": args.teacher_steps, "lr": 1e-3, "weight_decay": 0.05},
        },
        "alignment": {"blocks": 0},
        "discriminators": {"adversary": "none"},
        "losses": {"similarity": "kl", "temperature": TEMPERATURE},
        "loop": {"steps": args.steps, "batch_size": args.batch, "lr": args.lr, "schedule": "none", "clip_grad": None,
                 "weight_decay": 0.0},
        "store": {"folder": str(store) if store else None, "views": VIEWS},
    }  # fmt: skip
    return Recipe.model_validate(told)


def student_of(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(args.student, num_classes=10)


def our_side(args: argparse.Namespace, batches: list[Batch], teachers: int, word: str) -> Side:
    store = args.store if word == "stored" else None
    recipe, accelerator = recipe_of(args, teachers, store, "bf16" if word == "bf16" else "no"), Accelerator(cpu=True)
    data = data_of(args)
    zoo = assemble_zoo(recipe, data, accelerator)
    if store:
        use_store(zoo, recipe, data, batch_seed(recipe), accelerator)
        assert not zoo.streams  # all is there
    training = training_of(student_of(args), zoo, recipe)
    step = stepping(training, batches)
    return Side(lambda: step()["total"].detach(), training.student.model, training.optimizer)  # type: ignore[index]


def student_only(student: nn.Module, batches: list[Batch], stream: Stream, lr: float) -> Side:
    """The limit: forward, backward and optimizer of the student, on stand-in labels."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0, fused=True)
    images = iter(batches)

    def step() -> Tensor:
        batch = next(images)
        loss = F.cross_entropy(student(stream.prepare(batch.image)), batch.row % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Side(step, student.train(), optimizer)


def data_of(args: argparse.Namespace) -> DataSource:
    return load_data(recipe_of(args, 1, None).data, 0, VIEWS)


def make_side(name: str, args: argparse.Namespace, batches: list[Batch]) -> Side:
    kind, _, rest = name.partition(" ")
    if kind == "ours":
        return our_side(args, batches, int(rest[0]), rest[2:])
    recipe = recipe_of(args, 3, None)
    stream = training_of(student_of(args), None, recipe).student  # only for its `prepare`
    if kind == "student":
        return student_only(student_of(args), batches, stream, args.lr)
    loaded = assemble_zoo(recipe, data_of(args), Accelerator(cpu=True)).unfrozen()  # trained, not frozen by us
    models = [stream.model.requires_grad_(False) for stream in loaded.values()]
    teacher = models[0] if rest == "1" else Mean(models)
    make = timm_peer if kind == "timm" else torchdistill_peer
    return fed(make(student_of(args), teacher, args.lr), batches, stream)


def batches_of(args: argparse.Namespace, data: DataSource) -> list[Batch]:
    seed = batch_seed(recipe_of(args, 1, None))
    return list(data.batches(data.train, Steps(args.batch, seed, 0, args.steps)))
