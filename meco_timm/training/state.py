"""The state of a training run: all that its steps change, and its checkpoints."""

from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor

from meco_timm.common import UserError, get_logger
from meco_timm.data import BadImages
from meco_timm.distillation import Objective
from meco_timm.networks import Stream
from meco_timm.training.accelerator import Speed, choose_speed
from meco_timm.training.checkpoint import Checkpoints
from meco_timm.training.job import Job
from meco_timm.training.optimizers import make_optimizer, make_schedule, set_checkpointing
from meco_timm.training.sharding import Shards, match_layouts

logger = get_logger(__name__)


class Best(NamedTuple):
    """The best validation so far; without a validation split, the last weights. `state` is on the CPU."""

    score: float
    step: int
    state: dict[str, Tensor]


class TrainingState:
    """The objective, whose `student` is trained, its optimizer and schedule, and counts of what has happened.

    skipped: steps without a finite gradient: all, and in a row. ema: the moving average of the student, if there is
    one. module: the objective without the wrappers of accelerate.
    """

    def __init__(self, objective: Objective, job: Job, accelerator: Accelerator):
        self.job, self.accelerator = job, accelerator
        model, precision = objective.student.model, accelerator.mixed_precision
        set_checkpointing(model, job.loop)
        self.speed = choose_speed(job.loop, job.steps, model, accelerator.device.type, precision)
        if self.speed.channels_last:
            model.to(memory_format=torch.channels_last)
        optimizer = make_optimizer(objective, job.loop)
        self.schedule = make_schedule(optimizer, job.loop, job.steps)
        self.shards = Shards(objective.to(accelerator.device), accelerator)
        if accelerator.num_processes > 1 and not accelerator.is_fsdp2:
            match_layouts(objective)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.module: Any = accelerator.unwrap_model(self.objective, keep_torch_compile=False)
        self.student: Stream = self.module.student
        self.ema = ModelEmaV3(self.student, decay=job.loop.ema) if job.loop.ema else None
        self.bad_images = BadImages(job.data.max_bad, accelerator.is_main_process)
        self.skipped = torch.zeros(2, device=accelerator.device)
        self.step = 0
        self.best: Best | None = None
        self.checkpoints = Checkpoints(job.folder / "checkpoints")

    def evaluated(self) -> Stream:
        """The stream whose weights are evaluated and kept; all processes must call it."""
        return self.ema.module if self.ema else self.shards.gather(self.module)

    def keep_if_best(self, stream: Stream, score: float) -> None:
        """Keep a copy of the stream's weights if no validation was better; of equal ones the later, which has trained
        longer."""
        if self.best is None or score >= self.best.score:
            state = {name: tensor.detach().cpu().clone() for name, tensor in stream.model.state_dict().items()}
            self.best = Best(score, self.step, state)

    def finish(self) -> Stream:
        """Free the optimizer, and return the student with its best weights."""
        self.bad_images.tell(self.job.title)
        assert self.best is not None  # the last step validates
        student = self.shards.stream
        student.model.load_state_dict(self.best.state)
        self.accelerator.free_memory(self.objective, self.optimizer)
        return student.eval()

    def save(self, teachers: dict[str, str]) -> None:
        """Write a checkpoint; all processes must call it. teachers: digest of each teacher's weights."""
        a = self.accelerator
        self.bad_images.count(a)
        if self.skipped[1]:  # the gradient is not finite: keep the last good state
            return
        if not (a.is_main_process or self.shards.spread):
            return
        weights, optimizer = self.shards.states(self.module, self.optimizer)
        if not a.is_main_process:
            return
        state = {
            "step": self.step,
            "teachers": teachers,
            "objective": weights,
            "optimizer": optimizer,
            "scaler": a.scaler.state_dict() if a.scaler else None,
            "ema": self.ema.state_dict() if self.ema else None,
            "skipped": self.skipped,
            "bad_images": self.bad_images.faults,
            "best": tuple(self.best) if self.best else None,
            "speed": tuple(self.speed),
        }
        self.checkpoints.save(self.step, state)

    def resume(self, teachers: dict[str, str]) -> None:
        """Continue from the newest checkpoint, if there is one; all processes must call it.

        Raises:
            UserError: the processes find different checkpoints, the teachers' weights are others than in the
                checkpoint, or the training is already longer than it is to be.
        """
        state, job = self.checkpoints.newest(), self.job
        steps = self.accelerator.gather(torch.tensor([state["step"] if state else 0], device=self.accelerator.device))
        if len(set(steps.tolist())) > 1:
            raise UserError(
                f"run: the processes find checkpoints of steps {steps.tolist()} in {job.folder}. It must be on a "
                "disk that all nodes share."
            )
        if state is None:
            return
        if others := [name for name in teachers if teachers[name] != state["teachers"].get(name)]:
            raise UserError(
                f"teachers: {', '.join(others)}: other weights than those this run began with ({job.folder}). "
                "Restore the old weights, or start a new run with --fresh."
            )
        self._go_on(Speed(*state["speed"]))
        self._load(state)
        if self.step > job.steps or (self.step == job.steps and self.best is None):
            raise UserError(f"loop.steps: {job.title} is already at step {self.step}. Write a larger number.")
        logger.info("%s: continuing from step %d", job.title, self.step)

    def _go_on(self, before: Speed) -> None:
        """Compute as `before`, when the checkpoint was written.

        Raises:
            UserError: the precision is another.
        """
        now, loop, title = self.speed, self.job.loop, self.job.title
        if before.precision != now.precision:
            raise UserError(
                f"precision: {title} began in {before.precision} and would go on in {now.precision}. Launch it as "
                f"before (accelerate launch --mixed_precision {before.precision}), or start a new run with --fresh."
            )
        if before.device != now.device:
            logger.warning("%s: began on %s and goes on on %s, with other rounding", title, before.device, now.device)
            return
        if before.channels_last != now.channels_last:
            layout = torch.channels_last if before.channels_last else torch.contiguous_format
            self.student.model.to(memory_format=layout)
        self.speed = before if loop.compile == "auto" else before._replace(compiled=now.compiled)

    def _load(self, state: dict[str, Any]) -> None:
        self.shards.load(self.module, self.optimizer, state["objective"], state["optimizer"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.best = Best(*state["best"]) if state["best"] else None
        self.step, self.skipped = state["step"], state["skipped"].to(self.accelerator.device)
        self.bad_images.faults = dict(state["bad_images"])
