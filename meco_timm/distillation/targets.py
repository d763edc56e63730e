"""What a step learns from: one value, whether one teacher was drawn or all."""

from typing import NamedTuple

from torch import Tensor

from meco_timm.networks import Outputs


class TeacherBlocks(NamedTuple):
    """One teacher's blocks. teacher: its number in the zoo, 0 where all share one alignment."""

    teacher: int
    blocks: list[Tensor]


class Targets(NamedTuple):
    """blocks: an entry per teacher whose blocks are compared. logits: B×K; None from teachers of blocks only."""

    blocks: list[TeacherBlocks]
    logits: Tensor | None

    @classmethod
    def of(cls, outputs: Outputs, teacher: int = 0) -> "Targets":
        """Of one teacher's outputs on the whole batch."""
        return cls([TeacherBlocks(teacher, outputs.blocks)] if outputs.blocks else [], outputs.logits)
