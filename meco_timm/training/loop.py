"""The training loop of teachers, the student alone and the student; for many devices, and safe to interrupt.

An objective is a module with a Stream `student`, whose forward (image, label, teacher's outputs or None) gives named
losses, of which `total` is minimised.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from timm.utils import ModelEmaV3
from torch import Tensor

from meco_timm.common import Stopwatch, Ticker, UserError, derive, get_logger, reseed
from meco_timm.data import BadImages, Batch, Steps
from meco_timm.distillation import Objective
from meco_timm.networks import Stream
from meco_timm.training.checkpoint import Checkpoints, Interrupted, Watch, listen
from meco_timm.training.job import Job, Teaching, is_enough
from meco_timm.training.metrics import MetricLines
from meco_timm.training.mixing import Mixing
from meco_timm.training.optimizers import Guard, make_optimizer, make_schedule, set_memory
from meco_timm.training.sharding import Shards
from meco_timm.training.validation import Best, Validation

logger = get_logger(__name__)


class Training:
    """One training run: its state and its steps."""

    def __init__(self, objective: Objective, job: Job, accelerator: Accelerator, teaching: Teaching | None = None):
        settings = job.loop
        set_memory(objective, settings)
        self.job, self.settings, self.accelerator, self.teaching = job, settings, accelerator, teaching
        optimizer = make_optimizer(objective, settings)
        self.schedule = make_schedule(optimizer, settings, job.steps)
        self.shards = Shards(objective.to(accelerator.device), accelerator)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.student: Stream = self._module.student
        self.guard = Guard(accelerator, self._module, self.optimizer, settings.clip_grad)
        self.ema = ModelEmaV3(self.student, decay=settings.ema) if settings.ema else None
        self.mixing = Mixing(settings, len(job.data.classes), str(accelerator.device))
        self.checkpoints = Checkpoints(job.folder / "checkpoints")
        self.bad = BadImages(job.data.max_bad, accelerator.is_main_process)
        self.validation = Validation(job, accelerator)
        self.step, self.watch = 0, job.watch or Stopwatch()
        # (time, step) of the last line of metrics; seconds of waiting for data since then
        self._logged, self._waited = (time.monotonic(), 0), 0.0
        self.shares: dict[str, float] = {}  # of the gradient, by loss term; empty unless measured in this step
        self.skipped = torch.zeros(2, device=accelerator.device)  # steps without a finite gradient: all, in a row

    @property
    def _module(self) -> Any:
        """The objective without the wrappers of accelerate."""
        return self.accelerator.unwrap_model(self.objective, keep_torch_compile=False)

    def run(self) -> Stream:
        """Train from the last checkpoint, if any, to the end; returns the student with its best weights.

        Raises:
            Interrupted: the process was asked to stop; the state is saved, and the same command continues.
            UserError: an image cannot be read, the teachers are others than at the start, or the loss is not finite.
        """
        # An earlier training may have set another value.
        self.accelerator.gradient_accumulation_steps = self.settings.accumulation
        self.accelerator.step = 0
        main = self.accelerator.is_main_process
        with listen() as stop:
            self._resume()
            self._logged = (time.monotonic(), self.step)
            lines = MetricLines(self.job.folder / "metrics.jsonl", self.step, main, self._module)
            watch = Watch(self.accelerator, self.settings.checkpoint_minutes, self.step, stop)
            try:
                with Ticker(self.job.title, self.job.steps, self.step) as ticker, self.watch:
                    self._steps(lines, ticker, watch)
            except RuntimeError as error:
                if not stop.seen:
                    raise
                # The signal also ended loaders that were starting, or other processes, before this one could stop.
                message = f"{self.job.title}: stopped ({error}); the same command continues from the last checkpoint."
                raise Interrupted(message) from error
        return self._finish()

    def _steps(self, lines: MetricLines, ticker: Ticker, watch: Watch) -> None:
        batches, enough = self._batches(), False
        while self.step < self.job.steps and not enough and not self.validation.is_out_of_patience(self.step):
            losses = self._one_step(batches)
            self.step += 1
            enough = is_enough(self.job, self.step, losses, self.accelerator)
            ticker.step(self.step, self._log(lines, losses) if self._logs(self.step) else "")
            if self.shares:
                lines.shares(self.step, self.shares)
                self.shares = {}
            if enough or self.validation.is_due(self.step):
                with self.watch.paused():
                    lines.validation(self.step, self._validate())
            stop, due = watch.look(self.step)
            if stop or due or enough or self._saves():
                with self.watch.paused():
                    self._checkpoint()
                watch.saved()
            if stop:
                # Launchers kill the other processes when one ends, even while they save.
                self.accelerator.wait_for_everyone()
                raise Interrupted(f"{self.job.title}: stopped at step {self.step}; the same command continues.")

    def _log(self, lines: MetricLines, losses: dict[str, Tensor]) -> str:
        """Write a line of metrics and return the note for the progress bar. Reads the device, as validation does; no
        other part of a step waits for it."""
        (then, step), self._logged = self._logged, (time.monotonic(), self.step)
        seconds, waited, self._waited = max(self._logged[0] - then, 1e-9), self._waited, 0.0
        facts = {
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_s": (self.step - step) * self._images_per_step / seconds,
            "data_wait": min(waited / seconds, 1.0),
            "skipped_steps": int(self.skipped[0]),
            **self.bad.count(self.accelerator),
        }
        if self.accelerator.trackers:
            values = {name: loss.item() for name, loss in losses.items()}
            tracked = {f"{self.job.title}/{name}": value for name, value in (facts | values).items()}
            self.accelerator.log(tracked, step=self.step)
        return lines.losses(self.step, losses, facts, bad_in_row=int(self.skipped[1]))

    def _logs(self, step: int) -> bool:
        """Whether a line of metrics is due after `step` steps."""
        return step % self.settings.log_every == 0 or step == self.job.steps

    def _measures_shares(self) -> bool:
        """Whether to measure each term's share of the gradient after this step: four times a run, in steps that write
        metrics and so wait for the device anyway; not with FSDP2."""
        quarter, last = max(1, self.job.steps // 4), self.step // self.settings.log_every * self.settings.log_every
        due = (self.step + 1) // quarter > last // quarter
        return due and self._logs(self.step + 1) and not self.shards.spread

    def _saves(self) -> bool:
        """Whether a checkpoint is due by steps."""
        every = self.settings.checkpoint_steps
        return self.step == self.job.steps or (every is not None and self.step % every == 0)

    def _one_step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        if self.schedule:
            self.schedule.step_update(self.step)
        if not self.student.training:
            self.objective.train()
        for part in range(self.settings.accumulation):
            read = self._next(batches)
            batch = send_to_device(read, self.accelerator.device, non_blocking=True)
            # For mixing, dropout and the like; after reading the batch, which without workers changes the generators.
            reseed(self.job.seed, "step", self.step, part, self.accelerator.process_index)
            image, label = self.mixing(batch.image, batch.label)
            teacher = self.teaching.targets(read, image, self.step) if self.teaching else None
            with self.accelerator.accumulate(self.objective):
                with self.accelerator.autocast():  # accelerate does this itself, except with FSDP2
                    losses = self.objective(image, label, teacher)
                self.accelerator.backward(losses["total"])
                if self.accelerator.sync_gradients:
                    bad = self.guard()
                    self.skipped = torch.stack([self.skipped[0] + bad, (self.skipped[1] + 1) * bad])
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.student, step=self.step)
        if self._measures_shares() and teacher is not None:
            with self.accelerator.autocast():
                self.shares = self._module.gradient_shares(image, label, teacher)
        return losses

    def _next(self, batches: Iterator[Batch]) -> Batch:
        began = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - began
        return batch

    @property
    def _images_per_step(self) -> int:
        return self.settings.batch_size * self.settings.accumulation * self.accelerator.num_processes

    def _batches(self) -> Iterator[Batch]:
        parts, a = self.settings.accumulation, self.accelerator
        seed, size = derive(self.job.seed, "batches"), self.settings.batch_size
        start, stop = self.step * parts, self.job.steps * parts
        steps = Steps(size, seed, start, stop, a.process_index, a.num_processes)
        return self.job.data.batches(self.job.images, steps, self.bad)

    def _validate(self) -> dict[str, float]:
        return self.validation.run(self.ema.module if self.ema else self.shards.gather(self._module), self.step)

    def _finish(self) -> Stream:
        self.bad.tell(self.job.title)
        assert self.validation.best is not None  # the last step validates
        student = self.shards.stream
        student.model.load_state_dict(self.validation.best.state)
        self.accelerator.free_memory(self.objective, self.optimizer)
        return student.eval()

    def _checkpoint(self) -> None:
        a = self.accelerator
        self.bad.count(a)
        if self.skipped[1]:  # the gradient is not finite: keep the last good state
            return
        if not (a.is_main_process or self.shards.spread):
            return
        weights, optimizer = self.shards.states(self._module, self.optimizer)
        if not a.is_main_process:
            return
        state = {
            "step": self.step,
            "teachers": self.teaching.fingerprints if self.teaching else {},
            "objective": weights,
            "optimizer": optimizer,
            "scaler": a.scaler.state_dict() if a.scaler else None,
            "ema": self.ema.state_dict() if self.ema else None,
            "skipped": self.skipped,
            "bad_images": self.bad.faults,
            "best": tuple(self.validation.best) if self.validation.best else None,
        }
        self.checkpoints.save(self.step, state)

    def _resume(self) -> None:
        state = self.checkpoints.newest()
        steps = self.accelerator.gather(torch.tensor([state["step"] if state else 0], device=self.accelerator.device))
        if len(set(steps.tolist())) > 1:
            raise UserError(
                f"run: the processes find checkpoints of steps {steps.tolist()} in {self.job.folder}. It must be on a "
                "disk that all nodes share."
            )
        if state is None:
            return
        self._check_teachers(state["teachers"])
        self.shards.load(self._module, self.optimizer, state["objective"], state["optimizer"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.validation.best = Best(*state["best"]) if state["best"] else None
        self.step, self.skipped = state["step"], state["skipped"].to(self.accelerator.device)
        self.bad.faults = dict(state.get("bad_images", {}))
        if self.step > self.job.steps or (self.step == self.job.steps and self.validation.best is None):
            raise UserError(f"loop.steps: {self.job.title} is already at step {self.step}. Write a larger number.")
        logger.info("%s: continuing from step %d", self.job.title, self.step)

    def _check_teachers(self, then: dict[str, str]) -> None:
        """A run continues only with the teachers that it began with."""
        now = self.teaching.fingerprints if self.teaching else {}
        others = [name for name in now if now[name] != then.get(name)]
        if others:
            raise UserError(
                f"teachers: {', '.join(others)}: other weights than those this run began with ({self.job.folder}). "
                "Restore the old weights, or start a new run with --fresh."
            )
