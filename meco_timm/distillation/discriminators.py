"""The adversary: a classifier per block, teacher or student? The student is trained against it (paper, section 3.4).

Linear logits, not the released code's ReLU, under which a discriminator's loss cannot fall below 0.35 and may die.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

PATCH_WIDTH = 64


class Discriminator(nn.Module):
    """N×d → N logits, positive for 'teacher': d → d/2 → d/4 → 1, the paper's 1×1 convolutions as linear layers.

    `width`: of both hidden layers instead.
    """

    def __init__(self, length: int, width: int | None = None):
        super().__init__()
        middle, last = (width, width) if width else (max(length // 2, 8), max(length // 4, 4))
        sizes = pairwise((length, middle, last, 1))
        linear = [nn.Linear(*size) for size in sizes]
        self.layers = nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


class _ScaleGradient(torch.autograd.Function):
    """Identity forward; backward multiplies the gradient by `scale` (negative: gradient reversal, Ganin 2015)."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return gradient * ctx.scale, None


def as_rows(block: Tensor) -> Tensor:
    """What a discriminator judges one by one: the positions of a map B×C×h×w → (B·h·w)×C (PatchGAN, Isola 2017); a
    vector B×d as a whole."""
    return block.permute(0, 2, 3, 1).flatten(0, 2) if block.ndim == 4 else block


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    return _ScaleGradient.apply(x, scale)


def adversarial(
    discriminator: Discriminator,
    teacher: Tensor,
    student: Tensor,
    adversary: str,
    weight: float,
) -> tuple[Tensor, Tensor]:
    """(loss to minimise, accuracy of the discriminator) for one block, teacher and student N×d.

    The discriminator's gradient is always that of −E_T log D − E_S log(1 − D), at full strength. The student's is
    `weight` times that of E_S log(1 − D) (`minimax`), of −E_S log D (`non_saturating`), or of −E_S log(1 − D), which
    helps the discriminator (`cooperative`, the released code).
    """
    sign = {"minimax": -weight, "cooperative": weight, "non_saturating": 0.0}[adversary]
    of_student = scale_gradient(student, sign) if sign else student.detach()
    on_teacher, on_student = discriminator(torch.cat([teacher.detach(), of_student])).chunk(2)
    loss = _bce(on_teacher, 1) + _bce(on_student, 0)
    if adversary == "non_saturating":
        frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
        loss = loss + weight * _bce(functional_call(discriminator, frozen, (student,)), 1)
    right = (on_teacher > 0).float().mean() + (on_student < 0).float().mean()
    return loss, (right / 2).detach()


def _bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
