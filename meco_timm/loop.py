"""9 · Training: any objective, many devices, safe to interrupt.

One loop trains a teacher, the student alone and the student. An objective is a module whose `student` is the stream
to keep and whose forward gives named losses; `teach`, if any, gives the teacher's outputs for a step.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm.optim
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from meco_timm.data import Batch, DataSource, Images
from meco_timm.errors import UserError, did_you_mean
from meco_timm.evaluation import validate
from meco_timm.files import load_state, save_state
from meco_timm.progress import Ticker
from meco_timm.randomness import derive, reseed
from meco_timm.recipe import Loop
from meco_timm.streams import Outputs, Stream

FUSED = ("adam", "adamw", "momentum", "nesterov", "sgd")  # torch has one kernel for their step: on a CPU 5 × as fast
Teach = Callable[[Tensor, int], Outputs]  # image, step → the teacher's outputs


class Best(NamedTuple):
    """The best validation so far; without a validation split, the last weights. `state` is on the CPU."""

    top1: float
    step: int
    state: dict[str, Tensor]


def total_steps(settings: Loop, images: int, processes: int) -> int:
    """Optimizer steps of a run; an epoch is one pass over `images`."""
    if settings.steps is not None:
        return settings.steps
    per_step = settings.batch_size * settings.accumulation * processes
    return max(1, math.ceil((settings.epochs or 0) * images / per_step))


class Training:
    """The state of one run and its steps. `run()` trains to the end and returns the student with its best weights."""

    def __init__(
        self,
        objective: nn.Module,
        settings: Loop,
        accelerator: Accelerator,
        *,
        data: DataSource,
        images: Images,
        steps: int,
        seed: int,
        folder: Path,
        title: str,
        teach: Teach | None = None,
        discriminator_lr: float = 0.0,
    ):
        self.settings, self.accelerator, self.teach = settings, accelerator, teach
        self.data, self.images, self.steps, self.seed = data, images, steps, seed
        self.folder, self.title = folder, title
        optimizer = make_optimizer(objective, settings, discriminator_lr)
        self.schedule = make_schedule(optimizer, settings, steps)
        self.objective, self.optimizer = accelerator.prepare(objective.to(accelerator.device), optimizer)
        self.student: Stream = accelerator.unwrap_model(self.objective).student
        self.ema = ModelEmaV3(self.student, decay=settings.ema) if settings.ema else None
        self.best: Best | None = None
        self.step = 0

    def run(self) -> Stream:
        """Train from the last checkpoint, if there is one, to the end."""
        self._resume()
        self.accelerator.gradient_accumulation_steps = self.settings.accumulation  # a teacher's may be another
        self.accelerator.step = 0
        lines = MetricLines(self.folder / "metrics.jsonl", self.step, self.accelerator.is_main_process)
        batches = self._batches()
        last_time, last_step = time.monotonic(), self.step
        with Ticker(self.title, self.steps, self.step, self.accelerator.is_main_process) as ticker:
            while self.step < self.steps:
                losses = self._one_step(batches)
                self.step += 1
                note = ""
                if self.step % self.settings.log_every == 0 or self.step == self.steps:
                    seconds, last_time = time.monotonic() - last_time, time.monotonic()
                    speed = (self.step - last_step) * self._images_per_step / seconds
                    last_step = self.step
                    note = lines.losses(self.step, losses, self.optimizer.param_groups[0]["lr"], speed)
                ticker.step(self.step, note)
                if self._time_to_validate():
                    lines.validation(self.step, self._validate())
                    self._checkpoint()
        return self._finish()

    def _one_step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        reseed(self.seed, "step", self.step, self.accelerator.process_index)  # dropout and its like
        if self.schedule:
            self.schedule.step_update(self.step)
        self.objective.train()
        for _ in range(self.settings.accumulation):
            batch = send_to_device(next(batches), self.accelerator.device, non_blocking=True)
            teacher = self.teach(batch.image, self.step) if self.teach else None
            with self.accelerator.accumulate(self.objective):
                losses = self.objective(batch.image, batch.label, teacher)
                self.accelerator.backward(losses["total"])
                if self.accelerator.sync_gradients and self.settings.clip_grad:
                    self.accelerator.clip_grad_norm_(self.student.parameters(), self.settings.clip_grad)
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.student, step=self.step)
        return losses

    @property
    def _images_per_step(self) -> int:
        return self.settings.batch_size * self.settings.accumulation * self.accelerator.num_processes

    def _batches(self) -> Iterator[Batch]:
        parts, a = self.settings.accumulation, self.accelerator
        seed, size = derive(self.seed, "batches"), self.settings.batch_size
        start, stop = self.step * parts, self.steps * parts
        return self.data.batches(self.images, size, seed, start, stop, a.process_index, a.num_processes)

    def _time_to_validate(self) -> bool:
        every = max(1, self.steps // self.settings.validations)
        return self.step % every == 0 or self.step == self.steps

    def _validate(self) -> dict[str, float]:
        stream = self.ema.module if self.ema else self.student
        scores = {"top1": 0.0}
        if len(self.data.validation):
            scores = validate(stream, self.data, self.accelerator, self.settings.batch_size)
        if self.best is None or scores["top1"] >= self.best.top1:  # of equals the later, which has trained longer
            state = {name: tensor.detach().cpu().clone() for name, tensor in stream.model.state_dict().items()}
            self.best = Best(scores["top1"], self.step, state)
        return scores

    def _finish(self) -> Stream:
        assert self.best is not None  # the last step validates
        self.student.model.load_state_dict(self.best.state)
        self.accelerator.free_memory(self.objective, self.optimizer)
        return self.student.eval()

    @property
    def _checkpoint_file(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _checkpoint(self) -> None:
        if not self.accelerator.is_main_process or self.best is None:
            return
        state = {
            "step": self.step,
            "objective": self.accelerator.unwrap_model(self.objective).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "best": tuple(self.best),
        }
        save_state(self._checkpoint_file, state)

    def _resume(self) -> None:
        if not self._checkpoint_file.exists():
            return
        state = load_state(self._checkpoint_file)
        self.accelerator.unwrap_model(self.objective).load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.best, self.step = Best(*state["best"]), state["step"]


class MetricLines:
    """metrics.jsonl: a line of losses every `log_every` steps, a line per validation; a resumed run repeats none."""

    def __init__(self, path: Path, start: int, main: bool):
        self.path, self.main = path, main
        if main:
            old = path.read_text().splitlines(keepends=True) if path.exists() else []
            path.write_text("".join(line for line in old if json.loads(line)["step"] <= start))

    def _write(self, record: dict[str, Any]) -> None:
        if self.main:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def losses(self, step: int, losses: dict[str, Tensor], lr: float, images_per_s: float) -> str:
        """Write the line and return the note for the progress bar. Reads the device: once per `log_every` steps."""
        values = {name: loss.item() for name, loss in losses.items()}
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise UserError(
                f"loop: at step {step} {broken[-1]} is not finite. Lower loop.lr or do without mixed precision. "
                "The last good checkpoint is kept; the same command continues from it."
            )
        self._write({"step": step, "lr": lr, "images_per_s": images_per_s, **values})
        return f"{images_per_s:.0f} images/s  " + _note(values)

    def validation(self, step: int, scores: dict[str, float]) -> None:
        self._write({"step": step, **{f"validation/{name}": value for name, value in scores.items()}})


def _note(values: dict[str, float]) -> str:
    """The terms in short: blocks and discriminators as their means."""
    groups: dict[str, list[float]] = {}
    short = {"similarity": "blocks", "adversary": "adversary", "discriminator_accuracy": "D right"}
    for name, value in values.items():
        family = name.split("/")[0]
        label = "logits" if name == "similarity/logits" else short.get(family, family)
        groups.setdefault(label, []).append(value)
    return "  ".join(f"{label} {sum(group) / len(group):.3f}" for label, group in groups.items())


def make_optimizer(objective: nn.Module, settings: Loop, discriminator_lr: float) -> torch.optim.Optimizer:
    """timm's optimizer over the student (no decay on norms and biases), projections and discriminators (own rate)."""
    known = timm.optim.list_optimizers()
    if settings.optimizer not in known:
        raise UserError(f"loop.optimizer: timm has no {settings.optimizer!r}.{did_you_mean(settings.optimizer, known)}")
    model = objective.student.model  # type: ignore[union-attr]
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    groups = param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=exempt)
    rates = {"projections": settings.lr, "discriminators": discriminator_lr}
    for name, rate in rates.items():
        extra = list(getattr(objective, name, nn.ModuleList()).parameters())
        if extra:
            groups.append({"params": extra, "lr": rate, "weight_decay": 0.0})
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay, "momentum": settings.momentum}
    if settings.optimizer in FUSED:
        common["fused"] = True
    try:
        return create_optimizer_v2(groups, settings.optimizer, **common)
    except (ValueError, TypeError, ImportError, RuntimeError, AssertionError) as error:
        raise UserError(f"loop.optimizer: {settings.optimizer} cannot be made: {error}") from error


def make_schedule(optimizer: torch.optim.Optimizer, settings: Loop, steps: int) -> Any:
    """timm's schedule in steps: a function of the step alone. None for `none`."""
    if settings.schedule == "none":
        return None
    schedule, _ = create_scheduler_v2(
        optimizer,
        settings.schedule,
        num_epochs=steps,
        warmup_epochs=int(settings.warmup * steps),
        warmup_lr=0.0,
        decay_epochs=steps / 3,
        decay_rate=1.0 if settings.schedule == "poly" else 0.1,  # timm takes it for poly's power: linear
        decay_milestones=[round(share * steps) for share in settings.milestones],
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return schedule
