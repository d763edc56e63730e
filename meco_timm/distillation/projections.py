"""Learned maps on the student's side, trained along and thrown away: what makes two networks' blocks comparable.

The order of channels means nothing between two networks, so they are not averaged before they are compared: each
teacher has its own map from the student's channels to its own (as the adaptor heads of AM-RADIO or UNIC's projectors).
"""

from collections.abc import Sequence
from typing import cast

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
