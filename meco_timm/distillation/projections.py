"""Learned maps on the student's side, trained along and thrown away: what makes two networks' blocks comparable.

The order of channels means nothing between two networks, so they are not averaged before they are compared: each
teacher has its own map from the student's channels to its own (as the adaptor heads of AM-RADIO or UNIC's projectors).
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from meco_timm.distillation.targets import TeacherBlocks
from meco_timm.networks import pool_to_grid, standardise

Shapes = Sequence[tuple[int, ...]]  # of the blocks of one image, first block first
Pair = tuple[Tensor, Tensor]  # the teacher's side, the student's side


class Projections(nn.ModuleList):
    """Per teacher and block a 1×1 convolution from the student's channels to the teacher's.

    student: C×h×w of each block of the student. teachers: the same of each teacher's blocks, none of logits-only ones;
    empty where blocks of all networks are vectors of one length, which need no projection (the paper).
    """

    def __init__(self, student: Shapes, teachers: Sequence[Shapes]):
        super().__init__(
            nn.ModuleList(nn.Conv2d(own[0], its[0], 1) for own, its in zip(student, shapes, strict=False))
            for shapes in teachers
        )

    def forward(self, teacher: TeacherBlocks, student: list[Tensor]) -> list[Pair]:
        """Both sides of each block: vectors B×d, or maps B×c×h×w on the coarser grid of the two, standardised."""
        if teacher.teacher is None:
            return list(zip(teacher.blocks, student, strict=True))
        layers = cast(nn.ModuleList, self[teacher.teacher])
        projected = [layer(block) for layer, block in zip(layers, student, strict=True)]
        return [_on_one_grid(t, s) for t, s in zip(teacher.blocks, projected, strict=True)]


def _on_one_grid(teacher: Tensor, student: Tensor) -> Pair:
    t = pool_to_grid(teacher, *student.shape[2:])
    return standardise(t), standardise(pool_to_grid(student, *t.shape[2:]))


class EmbeddingProjection(nn.Module):
    """From the student's embedding to a teacher's, which is standardised by what was measured before the training.

    mean, deviation: of each of the teacher's d dimensions; part of the checkpoint. mlp: with one hidden layer of d.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, student: int, teacher: int, mlp: bool):
        super().__init__()
        hidden = [nn.Linear(student, teacher), nn.GELU()] if mlp else []
        self.layers = nn.Sequential(*hidden, nn.Linear(teacher if mlp else student, teacher))
        self.register_buffer("mean", torch.zeros(teacher))
        self.register_buffer("deviation", torch.ones(teacher))

    def forward(self, teacher: Tensor, student: Tensor) -> Pair:
        """Both sides, B×d float32."""
        return (teacher.float() - self.mean) / self.deviation, self.layers(student).float()

    def standardise_by(self, mean: Tensor, deviation: Tensor, isotropic: bool) -> None:
        """Set the teacher's mean and deviation. isotropic: one deviation for all dimensions, the root of the mean
        square (PHI-S up to its rotation: Ranzinger et al. 2024). A dimension that hardly varies is not blown up."""
        whole = deviation.square().mean().sqrt()
        self.mean.copy_(mean)
        self.deviation.copy_(whole.expand_as(deviation) if isotropic else deviation.clamp(min=1e-3 * whole.item()))


class EmbeddingProjections(nn.ModuleDict):
    """One per teacher that gives an embedding, by its number in the zoo."""

    def __init__(self, student: int | None, teachers: Sequence[int | None], mlp: bool):
        lengths = {str(i): length for i, length in enumerate(teachers) if length is not None and student is not None}
        super().__init__({i: EmbeddingProjection(student or 0, length, mlp) for i, length in lengths.items()})

    def forward(self, teacher: int, target: Tensor, student: Tensor | None) -> Pair:
        """Both sides of a teacher's embedding, B×d."""
        return self[str(teacher)](target, student)

    def standardise_by(self, moments: Mapping[int, tuple[Tensor, Tensor]], isotropic: bool) -> None:
        """Set each teacher's mean and deviation, by its number."""
        for i, (mean, deviation) in moments.items():
            cast(EmbeddingProjection, self[str(i)]).standardise_by(mean, deviation, isotropic)
