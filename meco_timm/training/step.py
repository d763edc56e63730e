"""One optimizer step: batch → targets → losses → weights."""

import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from meco_timm.common import reseed
from meco_timm.data import Batch
from meco_timm.recipe import Loop
from meco_timm.training.job import Job, Teaching
from meco_timm.training.optimizers import Guard
from meco_timm.training.state import TrainingState


class TrainingStep:
    """Takes steps of a training.

    waited: seconds of waiting for batches so far. shares: of each term in the student's gradient, where the last step
    measured them, else empty.
    """

    def __init__(self, state: TrainingState, job: Job, accelerator: Accelerator, teaching: Teaching | None):
        self.state, self.job, self.accelerator, self.teaching = state, job, accelerator, teaching
        self.guard = Guard(accelerator, state.module, state.optimizer, job.loop.clip_grad)
        self.mixing = Mixing(job.loop, max(len(job.data.classes), 1), str(accelerator.device))
        self.waited = 0.0
        self.shares: dict[str, float] = {}

    def __call__(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Take one step; returns the losses of its last part, detached but for "total"."""
        state, a = self.state, self.accelerator
        if state.schedule:
            state.schedule.step_update(state.step)
        if not state.student.training:
            state.objective.train()
        for part in range(self.job.loop.accumulation):
            read = self._next(batches)
            batch = send_to_device(read, a.device, non_blocking=True)
            # For mixing, dropout and the like; after reading the batch, which without workers changes the generators.
            reseed(self.job.seed, "step", state.step, part, a.process_index)
            image, label = self.mixing(batch.image, batch.label)
            targets = self.teaching.targets(read, image, state.step) if self.teaching else None
            with a.accumulate(state.objective):
                with a.autocast():  # accelerate does this itself, except with FSDP2
                    losses = state.objective(image, label, targets)
                a.backward(losses["total"])
                if a.sync_gradients:
                    bad = self.guard()
                    state.skipped = torch.stack([state.skipped[0] + bad, (state.skipped[1] + 1) * bad])
                state.optimizer.step()
                state.optimizer.zero_grad()
        if state.ema:
            state.ema.update(state.student, step=state.step)
        state.step += 1
        self.shares = {}
        if targets is not None and self.job.measures_shares(state.step) and not state.shards.spread:
            with a.autocast():
                self.shares = state.module.gradient_shares(image, label, targets)
        return losses

    def _next(self, batches: Iterator[Batch]) -> Batch:
        began = time.monotonic()
        batch = next(batches)
        self.waited += time.monotonic() - began
        return batch


class Mixing:
    """mixup, cutmix and random erasing of a whole batch, by timm. Teacher and student see the same result.

    Draws from the global generators, which each step seeds, so that a resumed run mixes the same.
    """

    def __init__(self, settings: Loop, classes: int, device: str):
        alphas = {"mixup_alpha": settings.mixup, "cutmix_alpha": settings.cutmix}
        self.mixup = Mixup(**alphas, label_smoothing=0.0, num_classes=classes) if any(alphas.values()) else None
        p = settings.random_erasing
        self.erase = RandomErasing(p, mode="const", device=device) if p else None

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """image uint8 B×3×H×W, label B (−1: none) → mixed image, float in [0, 1], and class probabilities B×K.

        Without mixing the label is returned as it is; without mixing and erasing also the image. An image that is
        mixed with one without label has no label itself: its row is 0.
        """
        if self.mixup is None and self.erase is None:
            return image, label
        image = image.float() / 255
        if self.erase:
            image = self.erase(image)
        if self.mixup:
            labelled = (label >= 0) & (label.flip(0) >= 0)
            image, shares = self.mixup(image, label.clamp(min=0))
            label = shares * labelled[:, None]
        return image, label
