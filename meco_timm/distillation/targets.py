"""What a step learns from: one value, whether one teacher was drawn or all."""

from typing import NamedTuple

from torch import Tensor

from meco_timm.networks import Outputs


class TeacherBlocks(NamedTuple):
    """Blocks that a step compares. teacher: its number in the zoo, None where blocks of all networks are alike."""

    teacher: int | None
    blocks: list[Tensor]


class Targets(NamedTuple):
    """blocks: an entry per teacher whose blocks are compared. embeddings: B×d by the teacher's number in the zoo.
    logits: B×K; None where no teacher gives any.
    """

    blocks: list[TeacherBlocks]
    embeddings: dict[int, Tensor]
    logits: Tensor | None

    @classmethod
    def of(cls, outputs: Outputs, teacher: int = 0, per_teacher: bool = False) -> "Targets":
        """Make the targets of one teacher's outputs; per_teacher: as of `Alignment`."""
        number = teacher if per_teacher else None
        blocks = [TeacherBlocks(number, outputs.blocks)] if outputs.blocks else []
        return cls(blocks, {} if outputs.embedding is None else {teacher: outputs.embedding}, outputs.logits)
