"""What is trained, on what, for how long, and where its files go."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from meco_timm.common import Stopwatch
from meco_timm.data import Batch, DataSource, Images
from meco_timm.distillation import Targets
from meco_timm.recipe import Loop

Teach = Callable[[Batch, Tensor, int], Targets]
OnStep = Callable[[int, dict[str, float]], bool | None]


class Job(NamedTuple):
    """One training run.

    title: of its progress and messages.
    folder: of its metrics and checkpoints.
    loop: the recipe's settings.
    data: validation split and class names; reads the batches.
    images: the images to train on.
    steps: optimizer steps in total.
    seed: of batches, views, mixing and dropout.
    on_step: called after each step with its number, from 1, and its losses; True ends the training.
    watch: runs during the steps, without validations and checkpoints.
    """

    title: str
    folder: Path
    loop: Loop
    data: DataSource
    images: Images
    steps: int
    seed: int
    on_step: OnStep | None = None
    watch: Stopwatch | None = None

    def logs(self, step: int) -> bool:
        """Whether a line of metrics is due after `step` steps."""
        return step % self.loop.log_every == 0 or step == self.steps

    @property
    def validation_interval(self) -> int:
        """Steps between two validations."""
        return max(1, self.steps // self.loop.validations)

    def validates(self, step: int) -> bool:
        """Whether a validation is due after `step` steps."""
        return step % self.validation_interval == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due by the number of steps."""
        every = self.loop.checkpoint_steps
        return step == self.steps or (every is not None and step % every == 0)

    def measures_shares(self, step: int) -> bool:
        """Whether to measure each term's share of the gradient after `step` steps: four times a run, in steps that
        write metrics and so wait for the device anyway."""
        quarter = max(1, self.steps // 4)
        before = (step - 1) // self.loop.log_every * self.loop.log_every
        return self.logs(step) and step // quarter > before // quarter


class Teaching(NamedTuple):
    """The teachers' side of a training run.

    targets: (batch on the CPU, its images on the device as the student sees them, step) → what the step learns from.
    fingerprints: digest of each teacher's weights, by name; a checkpoint is resumed only with the same.
    compile: compiles the teachers with options of `torch.compile`.
    """

    targets: Teach
    fingerprints: dict[str, str] = {}  # noqa: RUF012  never changed
    compile: Callable[..., None] | None = None


def total_steps(settings: Loop, images: int, processes: int) -> int:
    """Optimizer steps of a run; an epoch is one pass over `images`."""
    if settings.steps is not None:
        return settings.steps
    per_step = settings.batch_size * settings.accumulation * processes
    return max(1, settings.min_steps, math.ceil((settings.epochs or 0) * images / per_step))
