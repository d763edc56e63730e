"""The sides of peers.py: one step of the same distillation as timm, torchdistill and this project take it."""

import argparse
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.task import LogitDistillationTask, TrainingTask
from torch import Tensor, nn
from torch.utils.data import SequentialSampler, TensorDataset

from benchmarks.step import stepping, training_of
from meco_timm.common import batch_seed
from meco_timm.data.loading import Batch, DataSource, load_data
from meco_timm.data.views import Steps
from meco_timm.pipeline import assemble_zoo
from meco_timm.recipe.recipe import Recipe
from meco_timm.zoo.precompute import use_store

TEMPERATURE = 4.0
VIEWS = 3
SIDES = (
    "timm 1", "torchdistill 1", "ours 1", "timm 3", "torchdistill 3", "ours 3", "ours 3 stored", "student only",
)  # fmt: skip
Pairs = Iterator[tuple[Tensor, Tensor]]  # images, normalised for the student, and their labels


class Side(NamedTuple):
    """A step that gives the loss, the student that it trains, over normalised images, and its optimizer."""

    step: Callable[[], Tensor]
    student: nn.Module
    optimizer: torch.optim.Optimizer


class Mean(nn.Module):
    """Three teachers as one, for peers that have one: logits whose softmax is the mean of theirs, as ours."""

    def __init__(self, models: list[Any]):
        super().__init__()
        self.models = nn.ModuleList(models)
        first: Any = models[0]
        self.pretrained_cfg, self.num_classes = first.pretrained_cfg, first.num_classes
        self.head_hidden_size = sum(model.head_hidden_size for model in models)

    def forward(self, x: Tensor) -> Tensor:
        p = torch.stack([(model(x) / TEMPERATURE).softmax(1) for model in self.models]).mean(0)
        return TEMPERATURE * p.log()

    def forward_features(self, x: Tensor) -> list[Tensor]:
        return [model.forward_features(x) for model in self._each]

    def forward_head(self, maps: list[Tensor], pre_logits: bool = True) -> Tensor:
        """Pooled features side by side: they have other lengths, so there is no mean of them."""
        pairs = zip(self._each, maps, strict=True)
        return torch.cat([model.forward_head(block, pre_logits=True) for model, block in pairs], 1)

    @property
    def _each(self) -> list[Any]:
        return list(self.models)


def timm_task(kind: Any, student: nn.Module, teacher: nn.Module, device: str = "cpu", **options: Any) -> TrainingTask:
    """timm's task without labels, as its users make it."""
    weights = {"task_loss_weight": 0.0, "distill_loss_weight": 1.0}
    common: dict[str, Any] = {"criterion": nn.CrossEntropyLoss(), "device": torch.device(device), "verbose": False}
    return kind(student, teacher, **common, **weights, **options).train()


def timm_side(student: nn.Module, teacher: nn.Module, pairs: Pairs, lr: float) -> Side:
    """timm's task in a loop by hand."""
    task = timm_task(LogitDistillationTask, student, teacher, temperature=TEMPERATURE)
    return by_hand(student, lambda: task(*next(pairs))["loss"], lr)


def student_only(student: nn.Module, pairs: Pairs, lr: float) -> Side:
    """The limit: forward, backward and optimizer of the student, on labels."""

    def loss() -> Tensor:
        image, label = next(pairs)
        return F.cross_entropy(student(image), label)

    return by_hand(student.train(), loss, lr)


def by_hand(student: nn.Module, loss_of_next: Callable[[], Tensor], lr: float) -> Side:
    """Backward pass and optimizer as users write them. student: all that is trained."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0, fused=True)

    def step() -> Tensor:
        loss = loss_of_next()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Side(step, student, optimizer)


def torchdistill_side(student: nn.Module, teacher: nn.Module, pairs: Pairs, lr: float, device: str = "cpu") -> Side:
    """torchdistill's box, configured as its examples are."""
    from torchdistill.core.distillation import get_distillation_box

    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    whole = {"forward_hook": {"input": [], "output": []}, "forward_proc": "forward_batch_only"}
    loader = {"dataset_id": "train", "sampler": {"class_or_func": SequentialSampler}, "kwargs": {"batch_size": 1}}
    output = {"path": ".", "io": "output"}  # of the whole network
    sides = {f"{side}_module_{key}": value for side in ("student", "teacher") for key, value in output.items()}
    kd = {"criterion": {"key": "KDLoss", "kwargs": {**sides, "temperature": TEMPERATURE, "alpha": 0.0}}}
    config = {
        "num_epochs": 1,
        "train_data_loader": loader,
        "teacher": {**whole, "requires_grad": False},
        "student": {**whole, "requires_grad": True},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": lr, "weight_decay": 0.0, "fused": True}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": kd | {"weight": TEMPERATURE**2}}}},
    }
    data = {"train": TensorDataset(torch.zeros(1))}
    box = get_distillation_box(teacher, student, data, config, torch.device(device), None, False, 1.0)
    box.pre_epoch_process(epoch=0)
    box.teacher_model.eval()  # it leaves that to its users; else the teacher's batch norms would learn

    def step() -> Tensor:
        image, label = next(pairs)
        loss = box.forward_process(image, targets=label)
        box.post_forward_process(loss)
        return loss.detach()

    return Side(step, student, box.optimizer)


def our_side(args: argparse.Namespace, batches: list[Batch], teachers: int, store: Path | None) -> Side:
    """Ours with one drawn teacher a step, or the mean of all from the store."""
    recipe, accelerator = recipe_of(args, teachers, store), Accelerator(cpu=True)
    data = data_of(args)
    zoo = assemble_zoo(recipe, data, accelerator)
    if store:
        use_store(zoo, recipe.store, recipe.data, data, batch_seed(recipe.seed), accelerator)
        assert not zoo.streams  # all is there
    training = training_of(wrap_student(args), zoo, recipe)
    step = stepping(training, batches)
    return Side(lambda: step()["total"].detach(), training.state.student.model, training.state.optimizer)  # type: ignore[index]


def recipe_of(args: argparse.Namespace, teachers: int, store: Path | None) -> Recipe:
    """Digits, logits only, KL."""
    plain = {
        "data": {
            "source": "recipes/data/digits", "image_size": args.size, "crop_pct": 1.0, "labelled": 300, "workers": 0,
            "augmentation": {"scale": [0.85, 1.0], "ratio": [0.9, 1.1], "hflip": 0},
        },
        "teachers": [{"train": name} for name in args.teachers[:teachers]],
        "student": args.student,
        "zoo": {
            "folder": str(args.zoo), "sampling": "average" if store else "random",
            "loop": {"steps": args.teacher_steps, "lr": 1e-3, "weight_decay": 0.05},
        },
        "alignment": {"blocks": 0},
        "discriminators": {"adversary": "none"},
        "losses": {"similarity": "kl", "temperature": TEMPERATURE},
        "loop": {"steps": args.steps, "batch_size": args.batch, "lr": args.lr, "schedule": "none", "clip_grad": None,
                 "weight_decay": 0.0},
        "store": {"folder": str(store) if store else None, "views": VIEWS},
    }  # fmt: skip
    return Recipe.model_validate(plain)


def wrap_student(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(args.student, num_classes=10)


def data_of(args: argparse.Namespace) -> DataSource:
    return load_data(recipe_of(args, 1, None).data, 0, VIEWS)


def batches_of(args: argparse.Namespace, data: DataSource) -> list[Batch]:
    seed = batch_seed(recipe_of(args, 1, None).seed)
    return list(data.batches(data.train, Steps(args.batch, seed, 0, args.steps)))


def make_side(name: str, args: argparse.Namespace, batches: list[Batch]) -> Side:
    """The side of this name over these batches; every student begins with the same weights."""
    kind, _, rest = name.partition(" ")
    if kind == "ours":
        return our_side(args, batches, int(rest[0]), args.store if rest.endswith("stored") else None)
    recipe, student = recipe_of(args, 3, None), wrap_student(args)
    stream = training_of(wrap_student(args), None, recipe).state.student  # only for its `prepare`
    pairs = ((stream.prepare(batch.image), batch.label.clamp(min=0)) for batch in batches)
    if kind == "student":
        return student_only(student, pairs, args.lr)
    loaded = assemble_zoo(recipe, data_of(args), Accelerator(cpu=True)).unfrozen()  # trained, not frozen by us
    models = [stream.model.requires_grad_(False) for stream in loaded.values()]
    make = timm_side if kind == "timm" else torchdistill_side
    return make(student, models[0] if rest == "1" else Mean(models), pairs, args.lr)
