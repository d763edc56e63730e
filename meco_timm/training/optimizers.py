"""timm's optimizers, schedules and memory settings for the parameters of an objective."""

from typing import Any

import timm.optim
import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from meco_timm.common import UserError, did_you_mean
from meco_timm.distillation import Objective
from meco_timm.recipe import Loop
from meco_timm.training.sharding import local, whole

FUSED = ("adam", "adamw", "momentum", "nesterov", "sgd")  # torch has one kernel for a step: 5 times as fast on a CPU


def make_optimizer(objective: Objective, settings: Loop) -> torch.optim.Optimizer:
    """timm's optimizer over the student (no decay on norms and biases) and what the objective trains beside it.

    Raises:
        UserError: timm has no such optimizer, or it does not take these settings.
    """
    names = timm.optim.list_optimizers()
    if settings.optimizer not in names:
        raise UserError(f"loop.optimizer: timm has no {settings.optimizer!r}.{did_you_mean(settings.optimizer, names)}")
    model = objective.student.model
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    groups = _groups(model, settings, exempt)
    groups += objective.parameter_groups(settings.lr)
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay, "momentum": settings.momentum}
    if settings.optimizer in FUSED:
        common["fused"] = True
    try:
        return create_optimizer_v2(groups, settings.optimizer, **common)
    except (ValueError, TypeError, ImportError, RuntimeError, AssertionError) as error:
        raise UserError(f"loop.optimizer: {settings.optimizer} cannot be made: {error}") from error


def _groups(model: Any, settings: Loop, exempt: set[str]) -> list[dict[str, Any]]:
    if settings.layer_decay is None:
        return param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=exempt)
    groups = param_groups_layer_decay(model, settings.weight_decay, exempt, layer_decay=settings.layer_decay)
    if settings.schedule == "none":  # only timm's schedules apply `lr_scale`
        return [group | {"lr": settings.lr * group["lr_scale"]} for group in groups]
    return groups


def make_schedule(optimizer: torch.optim.Optimizer, settings: Loop, steps: int) -> Any:
    """timm's schedule, in steps; the rate depends on the step alone. None if `loop.schedule` is `none`."""
    if settings.schedule == "none":
        return None
    schedule, _ = create_scheduler_v2(
        optimizer,
        settings.schedule,
        num_epochs=steps,
        warmup_epochs=int(settings.warmup * steps),
        warmup_lr=0.0,
        decay_epochs=steps / 3,
        decay_rate=1.0 if settings.schedule == "poly" else 0.1,  # timm uses it as the power of poly: linear
        decay_milestones=[round(share * steps) for share in settings.milestones],
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return schedule


def set_checkpointing(model: Any, settings: Loop) -> None:
    """Set gradient checkpointing of the network that is trained.

    Raises:
        UserError: timm has no gradient checkpointing for it.
    """
    if settings.gradient_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise UserError(f"loop.gradient_checkpointing: timm has none for {type(model).__name__}.") from error


class Guard:
    """Clips the student's gradient to norm `limit`; a step whose gradient is not finite changes no weights.

    The lists of parameters are made once: collecting them in each step is slow for small networks.
    """

    def __init__(self, accelerator: Accelerator, objective: Objective, optimizer: Any, limit: float | None):
        self.accelerator, self.optimizer, self.limit = accelerator, optimizer, limit
        self.parameters = list(objective.parameters())
        self.student = list(objective.student.parameters())
        own = {id(p) for p in self.student}
        self.others = [p for p in self.parameters if id(p) not in own]
        fused, spread = optimizer.defaults.get("fused"), any(isinstance(p, DTensor) for p in self.parameters)
        heeded = accelerator.device.type in ("cpu", "cuda")  # MPS ignores `found_inf` (pytorch pull request 186360)
        self.fused = bool(fused and heeded and not spread and accelerator.scaler is None)

    def __call__(self) -> Tensor:
        """Whether the gradient was not finite: a boolean tensor on the device, so that nothing waits for it."""
        norm = whole(self._clipped())
        others = [p.grad for p in self.others if p.grad is not None]
        bad = ~(norm + whole(get_total_norm(others))).isfinite() if others else ~norm.isfinite()
        if self.fused:
            self.optimizer.optimizer.found_inf = bad.float()  # torch's fused kernels then change nothing
        elif self.accelerator.scaler is None:  # fp16's scaler skips such steps itself
            for p in self.parameters:
                if p.grad is not None:
                    local(p.grad).masked_fill_(bad, 0.0)
        return bad

    def _clipped(self) -> Tensor:
        """Clip the student's gradient if `limit` is set; returns its norm before."""
        if self.limit is not None:
            return self.accelerator.clip_grad_norm_(self.student, self.limit)
        self.accelerator.unscale_gradients()
        return get_total_norm([p.grad for p in self.student if p.grad is not None])
