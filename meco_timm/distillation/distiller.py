"""8 · One step: Outputs × Outputs → named losses. All that learns is one module: one optimizer, one backward."""

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import get_total_norm

from meco_timm.distillation import losses
from meco_timm.distillation.discriminators import Discriminator, adversarial
from meco_timm.networks import Outputs, Stream
from meco_timm.recipe import Recipe


class Supervised(nn.Module):
    """A student learning from labels: a teacher in the making, or the student alone."""

    weight: Tensor | None

    def __init__(self, student: Stream, label_smoothing: float = 0.0, weight: Tensor | None = None):
        """weight: K, of each class in the loss; None for 1."""
        super().__init__()
        self.student = student
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, image: Tensor, label: Tensor, teacher: Outputs | None = None) -> dict[str, Tensor]:
        """image uint8 B×3×H×W, label B → {"total", "labels"}."""
        loss = losses.with_labels(self.student(image).logits, label, self.label_smoothing, self.weight)
        return {"total": loss, "labels": loss.detach()}


class Seen(NamedTuple):
    """What the distiller compares of the student: projected blocks, each B×d, and logits B×K."""

    blocks: list[Tensor]
    logits: Tensor


class Distiller(nn.Module):
    """Student stream, projections and discriminators, and the paper's objective over them."""

    weight: Tensor | None

    def __init__(self, student: Stream, recipe: Recipe, classes: int, weight: Tensor | None = None):
        """weight: K, of each class in the term of the labels; None for 1."""
        super().__init__()
        self.student = student
        self.register_buffer("weight", weight, persistent=False)
        self.settings, self.adversary = recipe.losses, recipe.discriminators
        self.block_weights = recipe.block_weights
        blocks, length = recipe.alignment.blocks, recipe.alignment.length
        self.projections = nn.ModuleList(_identity(length) for _ in range(blocks if recipe.alignment.projection else 0))
        lengths = {str(i): length for i in range(blocks)} if self.adversary.on in ("blocks", "all") else {}
        if self.adversary.on in ("logits", "all"):
            lengths["logits"] = classes
        if self.adversary.adversary == "none":
            lengths = {}
        spectral = self.adversary.spectral_norm
        self.discriminators = nn.ModuleDict({name: Discriminator(n, spectral) for name, n in lengths.items()})

    def forward(self, image: Tensor, label: Tensor, teacher: Outputs, apart: bool = False) -> dict[str, Tensor]:
        """image uint8 B×3×H×W, label B, the teacher's outputs on the same images → {"total": …, each term: …}.

        Only "total" carries a gradient. `apart`: the weighted terms that make it up instead, each with its own.
        """
        outputs = self.student(image)
        assert outputs.logits is not None  # a student has a head
        student = Seen(self._project(outputs.blocks), outputs.logits)
        terms = self._similarities(teacher, student)
        if self.settings.labels:
            terms["labels"] = (self.settings.labels, losses.with_labels(student.logits, label, weight=self.weight))
        weighted = {name: weight * loss for name, (weight, loss) in terms.items()}
        named = {name: loss.detach() for name, (_, loss) in terms.items()}
        a = self.adversary
        for name, of_teacher, of_student in self._pairs(teacher, student):
            d = cast(Discriminator, self.discriminators[name])
            loss, right = adversarial(d, of_teacher, of_student, a.adversary, a.weight, a.smoothing, a.r1)
            weighted[f"adversary/{name}"] = loss
            named |= {f"adversary/{name}": loss.detach(), f"discriminator_accuracy/{name}": right}
        if apart:
            return weighted
        return {"total": self._idle(teacher, student) + torch.stack(list(weighted.values())).sum(), **named}

    def _project(self, blocks: list[Tensor]) -> list[Tensor]:
        if not self.projections:
            return blocks
        return [project(block) for project, block in zip(self.projections, blocks, strict=True)]

    def _similarities(self, teacher: Outputs, student: Seen) -> dict[str, tuple[float, Tensor]]:
        """name → (weight, loss) of what this teacher gives and the recipe weighs."""
        s = self.settings
        terms = {}
        if s.logits and teacher.logits is not None:
            loss = losses.between_logits(s.similarity, teacher.logits, student.logits, s.temperature)
            terms["similarity/logits"] = (s.logits, loss)
        for i, (weight, of_teacher) in enumerate(zip(self.block_weights, teacher.blocks, strict=False)):
            if weight:
                loss = losses.between_blocks(s.block_similarity, of_teacher, student.blocks[i])
                terms[f"similarity/{i}"] = (weight, loss)
        return terms

    def _pairs(self, teacher: Outputs, student: Seen) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, teacher's side, student's side) for each discriminator; of logits it sees the softmax."""
        for i, (of_teacher, of_student) in enumerate(zip(teacher.blocks, student.blocks, strict=False)):
            if str(i) in self.discriminators:
                yield str(i), of_teacher, of_student
        if "logits" in self.discriminators and teacher.logits is not None:
            yield "logits", teacher.logits.float().softmax(1), student.logits.float().softmax(1)

    def _idle(self, teacher: Outputs, student: Seen) -> Tensor:
        """Zero, through every parameter that a teacher of blocks only, or of logits only, leaves unused this step.

        DistributedDataParallel wants a gradient for each parameter in each step, without searching the graph.
        """
        used = {name for name, _, _ in self._pairs(teacher, student)}
        unused = [d for name, d in self.discriminators.items() if name not in used]
        idle = [block.sum() for block in student.blocks[len(teacher.blocks) :]]
        idle += [p.sum() for d in unused for p in d.parameters()]
        idle += [student.logits.sum()] if teacher.logits is None else []
        return 0.0 * torch.stack(idle).sum() if idle else student.logits.new_zeros(())


def gradient_shares(distiller: Distiller, image: Tensor, label: Tensor, teacher: Outputs) -> dict[str, float]:
    """Each term's share of what pulls at the student's weights: the norm of its gradient on them over the sum of all.

    A forward more and a backward per term; the module, its statistics included, is left as it was.
    """
    buffers = {name: buffer.clone() for name, buffer in distiller.named_buffers()}
    terms = functional_call(distiller, buffers, (image, label, teacher), {"apart": True})
    weights = [p for p in distiller.student.parameters() if p.requires_grad]
    norms = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        norms[name] = get_total_norm([g for g in gradients if g is not None])
    total = torch.stack(list(norms.values())).sum()
    return {name: (norm / total).item() for name, norm in norms.items()}


def _identity(length: int) -> nn.Linear:
    layer = nn.Linear(length, length)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
