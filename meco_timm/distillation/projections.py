"""Learned maps on the student's side, trained along and thrown away: what makes two networks' blocks comparable.

The order of channels means nothing between two networks, so they are not averaged before they are compared: each
teacher has its own map from the student's channels to its own (as the adaptor heads of AM-RADIO or UNIC's projectors).
"""

from typing import cast

from torch import Tensor, nn

from meco_timm.networks import pool_to_grid, standardise


class Projections(nn.ModuleList):
    """Per teacher and block a 1×1 convolution from the student's channels to the teacher's.

    student: C×h×w of each block of the student. teachers: the same of each teacher's blocks, none of logits-only ones.
    """

    def __init__(self, student: list[tuple[int, ...]], teachers: list[list[tuple[int, ...]]]):
        super().__init__(
            nn.ModuleList(nn.Conv2d(own[0], its[0], 1) for own, its in zip(student, shapes, strict=False))
            for shapes in teachers
        )

    def forward(self, teacher: int, blocks: list[Tensor], targets: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(teacher's, student's) block of each, both B×c×h×w on the coarser grid of the two, standardised per image."""
        layers = cast(nn.ModuleList, self[teacher])
        return [_on_one_grid(t, layer(s)) for layer, s, t in zip(layers, blocks, targets, strict=True)]


def _on_one_grid(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    t = pool_to_grid(teacher, *student.shape[2:])
    return standardise(t), standardise(pool_to_grid(student, *t.shape[2:]))


class NoProjections(nn.ModuleList):
    """Blocks as they were aligned (the paper)."""

    def forward(self, teacher: int, blocks: list[Tensor], targets: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(teacher's, student's) vector of each block, both B×d."""
        return list(zip(targets, blocks, strict=True))
