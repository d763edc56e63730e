"""What a training minimises: named terms of a student, and what a training loop asks of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from meco_timm.distillation.labels import cross_entropy
from meco_timm.distillation.targets import Targets
from meco_timm.networks import Outputs, Stream


class Term(NamedTuple):
    """A loss and its weight in the total; None for a number that is only shown."""

    loss: Tensor
    weight: float | None = 1.0


class Objective(nn.Module):
    """A student, what is trained along with it, and the terms whose weighted sum is minimised."""

    student: Stream
    parts: tuple[Callable[..., Outputs], Callable[..., dict[str, Tensor]]] | None = None  # compiled

    def forward(self, image: Tensor, label: Tensor, targets: Any = None) -> dict[str, Tensor]:
        """Compute "total", the only one with a gradient, and each term of it.

        image: uint8 B×3×H×W. label: B. targets: what the teachers give for these images, if the terms need any.
        """
        student, losses = self.parts or (self.student, self.losses)
        return losses(student(image), label, targets)

    def losses(self, student: Outputs, label: Tensor, targets: Any) -> dict[str, Tensor]:
        """Compute "total" and the terms from precomputed student outputs."""
        return weighted_sum(self.terms(student, label, targets), self.zero_of_unused(student, targets))

    def compile(self, **options: Any) -> None:
        """Compile the student and the losses, each on its own, with these options of `torch.compile`.

        A teacher that is drawn for the first time then compiles its losses and no network; those of each are kept. The
        student itself stays as it is, for evaluation.
        """
        self.parts = torch.compile(self.student.forward, **options), torch.compile(self.losses, **options)

    def terms(self, student: Outputs, label: Tensor, targets: Any) -> dict[str, Term]:
        """Compute each term from the student's outputs, by name."""
        raise NotImplementedError

    def zero_of_unused(self, student: Outputs, targets: Any) -> Tensor | float:
        """Zero, through what these targets leave unused."""
        return 0.0

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for the optimizer of what is trained beside the student; `lr`: the student's rate."""
        return []

    def weight_key(self, term: str) -> str:
        """The recipe's key for the weight of a term."""
        return f"losses.{term}"

    def summary(self, values: dict[str, float]) -> list[str]:
        """The terms of the loss in short, for a line of progress."""
        return [f"{name} {value:.3f}" for name, value in values.items() if name != "total"]

    def gradient_shares(self, image: Tensor, label: Tensor, targets: Targets | None) -> dict[str, float]:
        """Each term's share of what pulls at the student's weights: the norm of its gradient over the sum of all.

        Takes a forward and a backward per term; leaves the module, its statistics included, as it was.
        """
        kept = [buffer.clone() for buffer in self.buffers()]
        terms = self.terms(self.student(image), label, targets)
        weights = [p for p in self.student.parameters() if p.requires_grad]
        norms = {}
        for name, term in terms.items():
            if term.weight is not None:
                loss = term.weight * term.loss
                gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
                norms[name] = get_total_norm([g for g in gradients if g is not None])
        with torch.no_grad():
            for buffer, before in zip(self.buffers(), kept, strict=True):
                buffer.copy_(before)
        total = torch.stack(list(norms.values())).sum()
        return {name: (norm / total).item() for name, norm in norms.items()}


def weighted_sum(terms: dict[str, Term], zero: Tensor | float = 0.0) -> dict[str, Tensor]:
    """Add up "total", and give each term beside it without weight and gradient. zero: added to the total."""
    weighted = [term.weight * term.loss for term in terms.values() if term.weight is not None]
    return {"total": zero + torch.stack(weighted).sum(), **{name: term.loss.detach() for name, term in terms.items()}}


class Supervised(Objective):
    """A student learning from labels: a teacher in the making, or the student alone."""

    class_weight: Tensor | None

    def __init__(self, student: Stream, label_smoothing: float = 0.0, class_weight: Tensor | None = None):
        """class_weight: K, of each class in the loss; None for 1."""
        super().__init__()
        self.student, self.label_smoothing = student, label_smoothing
        self.register_buffer("class_weight", class_weight, persistent=False)

    def terms(self, student: Outputs, label: Tensor, targets: Targets | None) -> dict[str, Term]:
        assert student.logits is not None
        return {"labels": Term(cross_entropy(student.logits, label, self.label_smoothing, self.class_weight))}
