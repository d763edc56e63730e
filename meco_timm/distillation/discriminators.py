"""The adversary: a classifier per block, teacher or student? The student is trained against it (paper, section 3.4).

Linear logits, not the released code's ReLU, under which a discriminator's loss cannot fall below 0.35 and may die.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

PATCH_WIDTH = 64


class Discriminator(nn.Module):
    """N×d → N logits, positive for 'teacher': d → d/2 → d/4 → 1, the paper's 1×1 convolutions as linear layers.

    `width`: of both hidden layers instead. `spectral`: weights divided by their largest singular value, so that it is
    1-Lipschitz (Miyato 2018).
    """

    def __init__(self, length: int, spectral: bool = False, width: int | None = None):
        super().__init__()
        middle, last = (width, width) if width else (max(length // 2, 8), max(length // 4, 4))
        sizes = pairwise((length, middle, last, 1))
        linear = [spectral_norm(nn.Linear(*size)) if spectral else nn.Linear(*size) for size in sizes]
        self.layers = nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)

    def slope(self, x: Tensor) -> Tensor:
        """Gradient of each of N outputs by its input, N×d, written out: it needs no second backward pass."""
        first, _, second, _, last = self.layers
        one = first(x)
        two = second(one.relu())
        return ((last.weight * (two > 0)) @ second.weight * (one > 0)) @ first.weight


class _ScaleGradient(torch.autograd.Function):
    """Identity forward; backward multiplies the gradient by `scale` (negative: gradient reversal, Ganin 2015)."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return gradient * ctx.scale, None


def as_rows(block: Tensor, form: str | None) -> Tensor:
    """What a discriminator judges one by one: B×C×h×w → (B·h·w)×C by `patch` (PatchGAN, Isola 2017), else B×d."""
    return block.permute(0, 2, 3, 1).flatten(0, 2) if form == "patch" else block.flatten(1)


def conditioned(rows: Tensor, condition: Tensor | None) -> Tensor:
    """N×d and B×K of the same images → N×(d+K); N is B or, by position, a multiple of it (Mirza and Osindero 2014)."""
    if condition is None:
        return rows
    return torch.cat([rows, condition.repeat_interleave(len(rows) // len(condition), 0)], 1)


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    return _ScaleGradient.apply(x, scale)


def adversarial(
    discriminator: Discriminator,
    teacher: Tensor,
    student: Tensor,
    adversary: str,
    weight: float,
    smoothing: float = 0.0,
    r1: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(loss to minimise, accuracy of the discriminator) for one block, teacher and student N×d.

    The discriminator's gradient is always that of −E_T log D − E_S log(1 − D), at full strength. The student's is
    `weight` times that of E_S log(1 − D) (`minimax`), of −E_S log D (`non_saturating`), or of −E_S log(1 − D), which
    helps the discriminator (`cooperative`, the released code). `smoothing`: the teacher's side counts as 1 − smoothing
    teacher (one-sided label smoothing, Salimans 2016). `r1`: the discriminator pays r1/2 · E_T |∇D|², so it cannot grow
    steep where the teacher is (Mescheder 2018).
    """
    sign = {"minimax": -weight, "cooperative": weight, "non_saturating": 0.0}[adversary]
    of_student = scale_gradient(student, sign) if sign else student.detach()
    on_teacher, on_student = discriminator(torch.cat([teacher.detach(), of_student])).chunk(2)
    loss = _bce(on_teacher, 1 - smoothing) + _bce(on_student, 0)
    if adversary == "non_saturating":
        frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
        loss = loss + weight * _bce(functional_call(discriminator, frozen, (student,)), 1)
    if r1:
        loss = loss + r1 / 2 * discriminator.slope(teacher.detach()).square().sum(1).mean()
    right = (on_teacher > 0).float().mean() + (on_student < 0).float().mean()
    return loss, (right / 2).detach()


def _bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
