"""When a training run validates, and which weights it keeps."""

from typing import NamedTuple

from accelerate import Accelerator
from torch import Tensor

from meco_timm.evaluation import validate
from meco_timm.networks import Stream
from meco_timm.training.job import Job
from meco_timm.training.sharding import same_buffers


class Best(NamedTuple):
    """The best validation so far; without a validation split, the last weights. `state` is on the CPU."""

    score: float
    step: int
    state: dict[str, Tensor]


class Validation:
    """The validations of a run, evenly spread over its steps. `best` is part of a checkpoint."""

    def __init__(self, job: Job, accelerator: Accelerator):
        self.job, self.accelerator = job, accelerator
        self.interval = max(1, job.steps // job.loop.validations)
        self.best: Best | None = None

    def is_due(self, step: int) -> bool:
        return step % self.interval == 0 or step == self.job.steps

    def is_out_of_patience(self, step: int) -> bool:
        """Whether `loop.patience` validations have passed since the best one."""
        patience = self.job.loop.patience
        return bool(patience and self.best and step - self.best.step >= patience * self.interval)

    def run(self, stream: Stream, step: int) -> dict[str, float]:
        """top1 (per cent) and nll (nats) on the validation split; both 0 without one. Updates `best`."""
        if self.accelerator.num_processes > 1:
            same_buffers(stream)
        scores = {"top1": 0.0, "nll": 0.0}
        if len(self.job.data.validation):
            scores = validate(stream, self.job.data, self.accelerator, self.job.loop.batch_size)
        score = -scores["nll"] if self.job.loop.best == "nll" else scores["top1"]
        if self.best is None or score >= self.best.score:  # of equal ones the later, which has trained longer
            state = {name: tensor.detach().cpu().clone() for name, tensor in stream.model.state_dict().items()}
            self.best = Best(score, step, state)
        return scores
