"""Sections of a recipe that say how a student is compared with its teachers: `alignment`, `losses`, `discriminators`.

Nothing here imports torch.
"""

from collections.abc import Callable
from math import isqrt
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, WrapValidator, model_validator

from meco_timm.common import is_object
from meco_timm.recipe.sections import NotNegative, ObjectSection, Positive, Section


def _word_or_object(value: Any, check: Callable[[Any], Any]) -> Any:
    return value if isinstance(value, str) and is_object(value) else check(value)


class Alignment(Section):
    """How blocks of the student and of its teachers are brought into a form in which they can be compared."""

    blocks: Annotated[int, Field(ge=0)] = 4
    """Blocks compared per network, chosen by relative depth; 0 compares logits only. When it is not written: 4 where
    `losses.blocks` or a discriminator looks at blocks, else 0."""
    method: Literal["projection", "flatten", "channel_mean", "grid", "attention"] = "projection"
    """`projection`: maps pooled to 4 × 4 positions, and a learned 1 × 1 convolution per teacher and block from the
    student's channels to the teacher's, thrown away after training. Without parameters: `flatten`: adaptive pooling of
    all values in a row (the paper). `channel_mean`: pooled over positions, mean over channels (the released code).
    `grid`: channels and positions pooled apart, so positions are kept. `attention`: energy per position, comparable
    between any two networks."""
    length: Annotated[int, Field(ge=16)] = 1024
    """Numbers per block: a multiple of 16 for `grid` (4 × 4 positions), a square for `attention`. For `projection` the
    most of a teacher, whose channels are reduced to length / 16 by a fixed random orthogonal projection. When it is not
    written: 1024 for `projection`, else 256."""
    teachers: Literal["drawn", "all"] = "drawn"
    """Of `projection` and of embeddings with `zoo.sampling: average`: whose a step compares, those of one teacher drawn
    as by `random`, or those of all."""
    embedding: Literal["none", "linear", "mlp"] = "none"
    """The learned map from the student's embedding (pooled features before the head) to each teacher's, thrown away
    after training: `linear`, or an `mlp` of one hidden layer. When it is not written: `linear` where `losses.embedding`
    has a weight, else `none`."""
    standardise: Literal["dimensions", "isotropic"] = "dimensions"
    """A teacher's embedding, less its mean over the first images, is divided by the deviation of each of its
    `dimensions`, or by one deviation for all (`isotropic`, as PHI-S up to its rotation)."""

    @model_validator(mode="after")
    def _length_fits(self) -> "Alignment":
        if not self.per_teacher and "length" not in self.model_fields_set:
            self.length = 256
        if self.method in ("grid", "projection") and self.length % 16:
            raise ValueError(
                f"length {self.length} is not a multiple of 16, which method {self.method} needs (4 × 4 positions)"
            )
        if self.method == "attention" and isqrt(self.length) ** 2 != self.length:
            raise ValueError(f"length {self.length} is not a square, which method attention needs")
        return self

    @property
    def per_teacher(self) -> bool:
        """Whether blocks keep each network's channels, so that every teacher needs a projection of its own."""
        return self.method == "projection"


class Losses(ObjectSection):
    """Similarity between teacher and student (distillation/similarity.py)."""

    similarity: Annotated[Literal["l1", "l2", "kl", "ce", "dist"], WrapValidator(_word_or_object)] = "ce"
    """Between softened logits. The paper found `ce` best of its four; `dist` compares correlations instead."""
    temperature: Positive = 4.0
    """Softens both sides; `ce`, `kl` and `dist` are multiplied by its square."""
    logits: NotNegative = 1.0
    """Weight of the logits' similarity."""
    block_similarity: Literal["l1", "l2", "kl", "ce"] = "l2"
    """Between aligned blocks: l1 and l2 on standardised vectors (so that l2 is 2 − 2 · cosine), kl and ce on their
    softmax."""
    blocks: NotNegative | list[NotNegative] = 3.0
    """Weight of the blocks' similarity: one for all or a list, first block first; 0 compares logits only. When it is
    not written: 3 with `alignment.method: projection`, 0.3 with the others, 0 with `alignment.blocks: 0`."""
    embedding: NotNegative = 0.0
    """Weight of the embeddings' similarity: 1 − cosine + smooth L1, as in AM-RADIO. When it is not written: 3 with
    `task: backbone`, else 0."""
    labels: NotNegative = 0.0
    """Weight of cross-entropy with the labels, on images that have one. The paper's form is 0: soft labels only."""


class Discriminators(Section):
    """Small classifiers that tell teacher outputs from student outputs; the student is trained against them. With
    alignment method `projection` they judge each position of a map by itself (1 × 1 convolutions, 64 wide), with the
    others a block as a whole (the paper)."""

    adversary: Literal["minimax", "non_saturating", "cooperative", "none"] = "minimax"
    """`minimax`: the paper's game, by gradient reversal. `non_saturating`: the usual GAN loss for the student.
    `cooperative`: what the paper's released code does, the student helps the discriminator. `none`. When it is not
    written: `minimax` where `alignment.method` is `projection` and the blocks have a weight, else `none`."""
    on: Literal["blocks", "logits", "all"] = "blocks"
    """Which outputs have a discriminator."""
    weight: Positive = 0.1
    """Factor of the adversary's gradient on the student; the discriminators' own gradient is not scaled."""
    lr: Positive = 1e-3
    """Learning rate of the discriminators."""


class Method(NamedTuple):
    """The sections of a recipe that say how a student is compared with its teachers."""

    alignment: Alignment
    losses: Losses
    discriminators: Discriminators

    @property
    def compares_blocks(self) -> bool:
        """Whether a loss or a discriminator uses blocks."""
        d = self.discriminators
        return self.losses.blocks != 0 or (d.adversary != "none" and d.on != "logits")

    @property
    def block_weights(self) -> list[float]:
        """Weight of the similarity of each block, first block first."""
        weights = self.losses.blocks
        return weights if isinstance(weights, list) else [weights] * self.alignment.blocks
