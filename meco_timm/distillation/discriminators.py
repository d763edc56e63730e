"""The adversary: a classifier per output, teacher or student? The student is trained against it (paper, section 3.4).

Linear logits, not the released code's ReLU, under which a discriminator's loss cannot fall below 0.35 and may die.
A new game is a function and its word in `ADVERSARIES`.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from meco_timm.distillation.objective import Term
from meco_timm.distillation.projections import Pair, Shapes
from meco_timm.recipe import Discriminators as Settings

PATCH_WIDTH = 64


class Discriminator(nn.Module):
    """N×d → N logits, positive for 'teacher': d → d/2 → d/4 → 1, the paper's 1×1 convolutions as linear layers.

    width: of both hidden layers instead.
    """

    def __init__(self, length: int, width: int | None = None):
        super().__init__()
        middle, last = (width, width) if width else (max(length // 2, 8), max(length // 4, 4))
        first, second, third = (nn.Linear(*size) for size in pairwise((length, middle, last, 1)))
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


class Discriminators(nn.ModuleDict):
    """One per block, as BLOCK or, where teachers have their own projections, TEACHER-BLOCK; one of "logits".

    classes: K of the logits. shapes: of the blocks of one image, by teacher, or by None for all teachers.
    """

    def __init__(self, settings: Settings, classes: int, shapes: Mapping[int | None, Shapes]):
        super().__init__()
        self.play, self.weight = ADVERSARIES.get(settings.adversary), settings.weight
        if self.play and settings.on in ("blocks", "all"):
            for teacher, blocks in shapes.items():
                for i, shape in enumerate(blocks):
                    self[block_key(teacher, i)] = Discriminator(shape[0], PATCH_WIDTH if len(shape) == 3 else None)
        if self.play and settings.on in ("logits", "all"):
            self["logits"] = Discriminator(classes)

    def forward(self, pairs: Mapping[str, Pair]) -> dict[str, Term]:
        """Both sides of each output by its key → "adversary/OUTPUT" and "discriminator_accuracy/OUTPUT", of several
        teachers the mean."""
        losses: dict[str, list[Tensor]] = {}
        accuracies: dict[str, list[Tensor]] = {}
        for key, (teacher, student) in pairs.items():
            if self.play and key in self:
                discriminator = cast(Discriminator, self[key])
                loss, accuracy = self.play(discriminator, as_rows(teacher), as_rows(student), self.weight)
                losses.setdefault(key.rpartition("-")[2], []).append(loss)
                accuracies.setdefault(key.rpartition("-")[2], []).append(accuracy)
        terms = {f"adversary/{name}": Term(torch.stack(each).mean()) for name, each in losses.items()}
        shown = {name: torch.stack(each).mean() for name, each in accuracies.items()}
        return terms | {f"discriminator_accuracy/{name}": Term(mean, None) for name, mean in shown.items()}


def block_key(teacher: int | None, block: int) -> str:
    """Key of a block's discriminator."""
    return str(block) if teacher is None else f"{teacher}-{block}"


def as_rows(output: Tensor) -> Tensor:
    """What a discriminator judges one by one: the positions of a map B×C×h×w → (B·h·w)×C (PatchGAN, Isola 2017); a
    vector B×d as a whole."""
    return output.permute(0, 2, 3, 1).flatten(0, 2) if output.ndim == 4 else output


# The games. Each gives (loss to minimise, accuracy of the discriminator) for one output, teacher and student N×d. The
# discriminator's gradient is always that of −E_T log D − E_S log(1 − D), at full strength.


def minimax(discriminator: Discriminator, teacher: Tensor, student: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """The student minimises `weight` · E_S log(1 − D), by gradient reversal (the paper)."""
    return classify(discriminator, teacher, scale_gradient(student, -weight))


def cooperative(discriminator: Discriminator, teacher: Tensor, student: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """The student minimises −`weight` · E_S log(1 − D), which helps the discriminator (the released code)."""
    return classify(discriminator, teacher, scale_gradient(student, weight))


def non_saturating(
    discriminator: Discriminator, teacher: Tensor, student: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """The student minimises −`weight` · E_S log D (Goodfellow 2014)."""
    loss, accuracy = classify(discriminator, teacher, student.detach())
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    return loss + weight * _bce(functional_call(discriminator, frozen, (student,)), 1), accuracy


Game = Callable[[Discriminator, Tensor, Tensor, float], tuple[Tensor, Tensor]]
ADVERSARIES: dict[str, Game] = {
    "minimax": minimax,
    "non_saturating": non_saturating,
    "cooperative": cooperative,
}


def classify(discriminator: Discriminator, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """(−E_T log D − E_S log(1 − D), accuracy of the discriminator)."""
    on_teacher, on_student = discriminator(torch.cat([teacher.detach(), student])).chunk(2)
    right = (on_teacher > 0).float().mean() + (on_student < 0).float().mean()
    return _bce(on_teacher, 1) + _bce(on_student, 0), (right / 2).detach()


def _bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


class _ScaleGradient(torch.autograd.Function):
    """Identity forward; backward multiplies the gradient by `scale` (negative: gradient reversal, Ganin 2015)."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return gradient * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    return _ScaleGradient.apply(x, scale)
