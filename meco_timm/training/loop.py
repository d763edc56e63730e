"""The training loop of teachers, the student alone and the student; for many devices, and safe to interrupt.

An objective is a module with a Stream `student`, whose forward (image, label, teacher's outputs or None) gives named
losses, of which `total` is minimised.
"""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from meco_timm.common import Interrupted, ProgressBar, Stopwatch, UserError, derive, get_logger, listen
from meco_timm.data import Batch, Steps
from meco_timm.distillation import Objective
from meco_timm.evaluation import validate
from meco_timm.networks import Stream
from meco_timm.training.accelerator import why_not_compiled
from meco_timm.training.checkpoint import Watch
from meco_timm.training.job import Job, Teaching
from meco_timm.training.metrics import MetricLines
from meco_timm.training.sharding import same_buffers
from meco_timm.training.state import TrainingState
from meco_timm.training.step import TrainingStep

logger = get_logger(__name__)


class Training:
    """One training run: its state, and a function that takes its next step."""

    def __init__(self, objective: Objective, job: Job, accelerator: Accelerator, teaching: Teaching | None = None):
        self.job, self.accelerator = job, accelerator
        self.teaching, self.teachers = teaching, teaching.fingerprints if teaching else {}
        self.state = TrainingState(objective, job, accelerator)
        self.take_step = TrainingStep(self.state, job, accelerator, teaching)
        self.watch = job.watch or Stopwatch()

    def run(self) -> Stream:
        """Train from the last checkpoint, if any, to the end; returns the student with its best weights.

        Raises:
            Interrupted: the process was asked to stop; the state is saved, and the same command continues.
            UserError: an image cannot be read, the teachers are others than at the start, or the loss is not finite.
        """
        job, state = self.job, self.state
        # An earlier training may have set another value.
        self.accelerator.gradient_accumulation_steps = job.loop.accumulation
        self.accelerator.step = 0
        with listen() as stop:
            state.resume(self.teachers)
            if state.speed.compiled:
                self.compile()
            lines = MetricLines(
                job.folder / "metrics.jsonl", state.step, self.accelerator.is_main_process, state.module
            )
            watch = Watch(self.accelerator, job.loop.checkpoint_minutes, state.step, stop)
            try:
                with ProgressBar(job.title, job.steps, state.step, report_end=True) as bar, self.watch:
                    self._train(lines, bar, watch)
            except RuntimeError as error:
                if not stop.seen:
                    raise
                # The signal also ended loaders that were starting, or other processes, before this one could stop.
                message = f"{job.title}: stopped ({error}); the same command continues from the last checkpoint."
                raise Interrupted(message) from error
        return state.finish()

    def compile(self, backend: str = "inductor") -> None:
        """Compile the student, the losses and each teacher, each on its own, where this machine can.

        Raises:
            UserError: `loop.compile` is true, and it cannot.
        """
        if reason := why_not_compiled(self.accelerator, backend):
            if self.job.loop.compile is True:
                raise UserError(f"loop.compile: networks cannot be compiled here: {reason}. Write false.")
            logger.warning("loop.compile: networks are not compiled: %s", reason)
            return
        torch._dynamo.config.suppress_errors = True  # a network that the compiler fails on runs as it is
        self.state.module.compile(backend=backend, dynamic=False)
        if self.teaching and self.teaching.compile:
            self.teaching.compile(backend=backend)  # a store asks for some images of a batch: any number

    def _train(self, lines: MetricLines, bar: ProgressBar, watch: Watch) -> None:
        job, state, batches, ended = self.job, self.state, self.batches(), False
        while state.step < job.steps and not ended and not self._is_out_of_patience():
            losses = self.take_step(batches)
            ended = self._is_ended(losses)
            bar.step(state.step, self._log(lines, losses) if job.logs(state.step) else ())
            if self.take_step.shares:
                lines.shares(state.step, self.take_step.shares)
            if ended or job.validates(state.step):
                with self.watch.paused():
                    lines.validation(state.step, self._validate())
            stop, due = watch.look(state.step)
            if stop or due or ended or job.saves(state.step):
                with self.watch.paused():
                    state.save(self.teachers)
                watch.saved()
            if stop:
                # Launchers kill the other processes when one ends, even while they save.
                self.accelerator.wait_for_everyone()
                raise Interrupted(f"{job.title}: stopped at step {state.step}; the same command continues.")

    def batches(self) -> Iterator[Batch]:
        """The batches of the steps that are left."""
        job, parts, a = self.job, self.job.loop.accumulation, self.accelerator
        start, stop = self.state.step * parts, job.steps * parts
        steps = Steps(job.loop.batch_size, derive(job.seed, "batches"), start, stop, a.process_index, a.num_processes)
        return job.data.batches(job.images, steps, self.state.bad_images)

    def _is_ended(self, losses: dict[str, Tensor]) -> bool:
        """Whether `on_step` of any process ends the training after this step. Where there is one, the device is
        read."""
        job, a = self.job, self.accelerator
        if job.on_step is None:
            return False
        ended = bool(job.on_step(self.state.step, {name: loss.item() for name, loss in losses.items()}))
        if a.num_processes > 1:
            ended = bool(a.reduce(torch.tensor(float(ended), device=a.device)) > 0)
        if ended:
            logger.info("%s: ended by on_step after step %d of %d", job.title, self.state.step, job.steps)
        return ended

    def _is_out_of_patience(self) -> bool:
        """Whether `loop.patience` validations have passed since the best one."""
        patience, best = self.job.loop.patience, self.state.best
        return bool(patience and best and self.state.step - best.step >= patience * self.job.validation_interval)

    def _validate(self) -> dict[str, float]:
        """Measure top1 (per cent) and nll (nats) on the validation split; both 0 without one or a head. The best
        weights are kept, of equal ones the last."""
        job, stream = self.job, self.state.evaluated()
        if self.accelerator.num_processes > 1:
            same_buffers(stream)
        scores = {"top1": 0.0, "nll": 0.0}
        if len(job.data.validation) and stream.has_logits:
            scores = validate(stream, job.data, self.accelerator, job.loop.batch_size)
        self.state.keep_if_best(stream, -scores["nll"] if job.loop.best == "nll" else scores["top1"])
        return scores

    def _log(self, lines: MetricLines, losses: dict[str, Tensor]) -> list[str]:
        """Write a line of metrics and return the fields of the progress bar. Reads the device, as validation does; no
        other part of a step waits for it."""
        job, state, a = self.job, self.state, self.accelerator
        images = job.loop.batch_size * job.loop.accumulation * a.num_processes
        facts = {
            "lr": state.optimizer.param_groups[0]["lr"],
            **lines.pace(state.step, images, self.take_step.waited),
            "skipped_steps": int(state.skipped[0]),
            **state.bad_images.count(a),
        }
        if a.trackers:
            values = {name: loss.item() for name, loss in losses.items()}
            a.log({f"{job.title}/{name}": value for name, value in (facts | values).items()}, step=state.step)
        return lines.losses(state.step, losses, facts, bad_in_row=int(state.skipped[1]))
