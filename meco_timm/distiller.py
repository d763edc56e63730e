"""8 · One step: Outputs × Outputs → named losses. All that learns is one module: one optimizer, one backward."""

import torch
from torch import Tensor, nn

from meco_timm import losses
from meco_timm.discriminators import Discriminator, adversarial
from meco_timm.recipe import Recipe
from meco_timm.streams import Outputs, Stream


class Supervised(nn.Module):
    """A student learning from labels: a teacher in the making, or the student alone."""

    def __init__(self, student: Stream, label_smoothing: float = 0.0):
        super().__init__()
        self.student = student
        self.label_smoothing = label_smoothing

    def forward(self, image: Tensor, label: Tensor, teacher: Outputs | None = None) -> dict[str, Tensor]:
        """image uint8 B×3×H×W, label B → {"total", "labels"}."""
        loss = losses.with_labels(self.student(image).logits, label, self.label_smoothing)
        return {"total": loss, "labels": loss.detach()}


class Distiller(nn.Module):
    """Student stream, projections and discriminators, and the paper's objective over them."""

    def __init__(self, student: Stream, recipe: Recipe, classes: int):
        super().__init__()
        self.student = student
        self.settings, self.adversary = recipe.losses, recipe.discriminators
        self.block_weights = recipe.block_weights
        blocks, length = recipe.alignment.blocks, recipe.alignment.length
        self.projections = nn.ModuleList(_identity(length) for _ in range(blocks if recipe.alignment.projection else 0))
        places = [("blocks", [length] * blocks), ("logits", [classes])]
        lengths = [n for place, widths in places if self.adversary.on in (place, "all") for n in widths]
        self.discriminators = nn.ModuleList(Discriminator(n) for n in lengths if self.adversary.adversary != "none")

    def forward(self, image: Tensor, label: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """image uint8 B×3×H×W, label B, the teacher's outputs on the same images → {"total": …, each term: …}.

        Only "total" carries a gradient.
        """
        student = self._project(self.student(image))
        terms = self._similarities(teacher, student)
        if self.settings.labels:
            terms["labels"] = (self.settings.labels, losses.with_labels(student.logits, label))
        total = torch.stack([weight * loss for weight, loss in terms.values()]).sum()
        named = {name: loss.detach() for name, (_, loss) in terms.items()}
        for name, discriminator, of_teacher, of_student in self._games(teacher, student):
            loss, right = adversarial(
                discriminator, of_teacher, of_student, self.adversary.adversary, self.adversary.weight
            )
            total = total + loss
            named |= {f"adversary/{name}": loss.detach(), f"discriminator_accuracy/{name}": right}
        return {"total": total, **named}

    def _project(self, outputs: Outputs) -> Outputs:
        if not self.projections:
            return outputs
        return outputs._replace(blocks=[p(b) for p, b in zip(self.projections, outputs.blocks, strict=True)])

    def _similarities(self, teacher: Outputs, student: Outputs) -> dict[str, tuple[float, Tensor]]:
        s = self.settings
        terms = {}
        if s.logits:
            loss = losses.between_logits(s.similarity, teacher.logits, student.logits, s.temperature)
            terms["similarity/logits"] = (s.logits, loss)
        for i, weight in enumerate(self.block_weights):
            if weight:
                loss = losses.between_blocks(s.block_similarity, teacher.blocks[i], student.blocks[i])
                terms[f"similarity/{i}"] = (weight, loss)
        return terms

    def _games(self, teacher: Outputs, student: Outputs) -> list[tuple[str, nn.Module, Tensor, Tensor]]:
        """(name, discriminator, teacher's side, student's side) of each; of logits a discriminator sees the softmax."""
        if not self.discriminators:
            return []
        pairs = [(str(i), t, s) for i, (t, s) in enumerate(zip(teacher.blocks, student.blocks, strict=True))]
        logits = [("logits", teacher.logits.float().softmax(1), student.logits.float().softmax(1))]
        seen = {"blocks": pairs, "logits": logits, "all": pairs + logits}[self.adversary.on]
        return [(name, d, t, s) for d, (name, t, s) in zip(self.discriminators, seen, strict=True)]


def _identity(length: int) -> nn.Linear:
    layer = nn.Linear(length, length)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
