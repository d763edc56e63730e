"""The same distillation as users of timm and of torchdistill write it. Nothing here imports this project."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.task import LogitDistillationTask
from torch import Tensor, nn
from torch.utils.data import SequentialSampler, TensorDataset

TEMPERATURE = 4.0
OUTPUT = {"path": ".", "io": "output"}  # of the whole network, in torchdistill's words


class Peer(NamedTuple):
    """Another's step on normalised images and their labels, the student that it trains, and its optimizer."""

    step: Callable[[Tensor, Tensor], Tensor]
    student: nn.Module
    optimizer: torch.optim.Optimizer


class Renormalised(nn.Module):
    """A teacher for images that are normalised for the student."""

    def __init__(self, model: nn.Module, config: dict[str, Any]):
        super().__init__()
        self.model = model
        wrapped: Any = model
        self.pretrained_cfg, self.num_classes = config, wrapped.num_classes
        own = wrapped.pretrained_cfg
        mean, std, its_mean, its_std = (
            torch.tensor(cfg[key]).view(3, 1, 1) for cfg in (config, own) for key in ("mean", "std")
        )
        self.scale, self.shift = std / its_std, (mean - its_mean) / its_std

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x * self.scale + self.shift)


class Mean(nn.Module):
    """Three teachers as one, for peers that have one: logits whose softmax is the mean of theirs, as ours."""

    def __init__(self, models: list[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)
        first: Any = models[0]
        self.pretrained_cfg, self.num_classes = first.pretrained_cfg, first.num_classes

    def forward(self, x: Tensor) -> Tensor:
        p = torch.stack([(model(x) / TEMPERATURE).softmax(1) for model in self.models]).mean(0)
        return TEMPERATURE * p.log()


def timm_peer(student: nn.Module, teacher: nn.Module, lr: float) -> Peer:
    task = LogitDistillationTask(
        student, teacher, criterion=nn.CrossEntropyLoss(), task_loss_weight=0.0, distill_loss_weight=1.0,
        temperature=TEMPERATURE, device=torch.device("cpu"), verbose=False,
    )  # fmt: skip
    task.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0, fused=True)

    def step(image: Tensor, label: Tensor) -> Tensor:
        loss = task(image, label)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Peer(step, student, optimizer)


def torchdistill_peer(student: nn.Module, teacher: nn.Module, lr: float) -> Peer:
    from torchdistill.core.distillation import get_distillation_box

    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    whole = {"forward_hook": {"input": [], "output": []}, "forward_proc": "forward_batch_only"}
    loader = {"dataset_id": "train", "sampler": {"class_or_func": SequentialSampler}, "kwargs": {"batch_size": 1}}
    sides = {f"{side}_module_{key}": value for side in ("student", "teacher") for key, value in OUTPUT.items()}
    kd = {**sides, "temperature": TEMPERATURE, "alpha": 0.0}
    config = {
        "num_epochs": 1,
        "train_data_loader": loader,
        "teacher": {**whole, "requires_grad": False},
        "student": {**whole, "requires_grad": True},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": lr, "weight_decay": 0.0, "fused": True}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": TEMPERATURE**2}}},
        },
    }
    data = {"train": TensorDataset(torch.zeros(1))}
    box = get_distillation_box(teacher, student, data, config, torch.device("cpu"), None, False, 1.0)
    box.pre_epoch_process(epoch=0)
    box.teacher_model.eval()  # it leaves that to its users; else the teacher's batch norms would learn

    def step(image: Tensor, label: Tensor) -> Tensor:
        loss = box.forward_process(image, targets=label)
        box.post_forward_process(loss)
        return loss.detach()

    return Peer(step, student, box.optimizer)
