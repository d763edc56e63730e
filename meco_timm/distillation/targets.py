"""What a step learns from: one value, whether one teacher was drawn or all."""

from typing import NamedTuple

from torch import Tensor

from meco_timm.networks import Outputs


class TeacherBlocks(NamedTuple):
    """Blocks that a step compares. teacher: its number in the zoo, None where blocks of all networks are alike."""

    teacher: int | None
    blocks: list[Tensor]


class Targets(NamedTuple):
    """blocks: an entry per teacher whose blocks are compared. logits: B×K; None from teachers of blocks only."""

    blocks: list[TeacherBlocks]
    logits: Tensor | None

    @classmethod
    def of(cls, outputs: Outputs, teacher: int | None = None) -> "Targets":
        """Make the targets of one teacher's outputs."""
        return cls([TeacherBlocks(teacher, outputs.blocks)] if outputs.blocks else [], outputs.logits)
