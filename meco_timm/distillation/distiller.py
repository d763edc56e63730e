"""One step: what the teachers give × the student's outputs → named losses (paper, section 3.5: joint training).

All that learns is one module: one optimizer, one backward.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import get_total_norm

from meco_timm.distillation import losses
from meco_timm.distillation.discriminators import PATCH_WIDTH, Discriminator, adversarial, as_rows
from meco_timm.distillation.projections import NoProjections, Projections
from meco_timm.distillation.targets import Targets
from meco_timm.networks import Outputs, Stream
from meco_timm.recipe import Alignment, Discriminators, Method


class Supervised(nn.Module):
    """A student learning from labels: a teacher in the making, or the student alone."""

    weight: Tensor | None

    def __init__(self, student: Stream, label_smoothing: float = 0.0, weight: Tensor | None = None):
        """weight: K, of each class in the loss; None for 1."""
        super().__init__()
        self.student = student
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, image: Tensor, label: Tensor, teacher: Outputs | None = None) -> dict[str, Tensor]:
        """image uint8 B×3×H×W, label B → {"total", "labels"}."""
        loss = losses.with_labels(self.student(image).logits, label, self.label_smoothing, self.weight)
        return {"total": loss, "labels": loss.detach()}


Shapes = list[tuple[int, ...]]  # of the blocks of one image, first block first
Pair = tuple[str, Tensor, Tensor]  # name, teacher's side, student's side
Terms = dict[str, tuple[float, Tensor]]  # name → (weight, loss)


class Distiller(nn.Module):
    """Student stream, projections and discriminators, and the paper's objective over them.

    teacher_block_shapes: of each teacher's blocks for one image, by its number in the zoo; `projection` needs them.
    class_weight: K, of each class in the term of the labels; None for 1.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        student: Stream,
        method: Method,
        classes: int,
        teacher_block_shapes: Sequence[Shapes] = (),
        class_weight: Tensor | None = None,
    ):
        super().__init__()
        self.student = student
        alignment = method.alignment
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.settings, self.adversary = method.losses, method.discriminators
        self.block_weights = method.block_weights
        self.per_teacher = alignment.method == "projection"
        vectors: Shapes = [(alignment.length,)] * alignment.blocks
        shapes = list(teacher_block_shapes) if self.per_teacher else [vectors]
        self.projections = _projections(student, alignment, shapes)
        made = _discriminators(method.discriminators, self.per_teacher, classes, shapes)
        self.discriminators = nn.ModuleDict(made)

    def forward(
        self, image: Tensor, label: Tensor, teacher: Targets | Outputs, apart: bool = False
    ) -> dict[str, Tensor]:
        """image uint8 B×3×H×W, label B, what the teachers give for the same images → {"total": …, each term: …}.

        Only "total" carries a gradient. `apart`: the weighted terms that make it up instead, each with its own.
        """
        return self.compare(self.student(image), label, teacher, apart)

    def compare(
        self, outputs: Outputs, label: Tensor, teacher: Targets | Outputs, apart: bool = False
    ) -> dict[str, Tensor]:
        """The same, of the student's outputs for these images."""
        targets = Targets.of(teacher) if isinstance(teacher, Outputs) else teacher
        logits = cast(Tensor, outputs.logits)  # a student has a head
        blocks = self._compared(targets, outputs)
        terms = self._similarities(targets, logits, blocks)
        if self.settings.labels:
            terms["labels"] = (self.settings.labels, losses.with_labels(logits, label, weight=self.class_weight))
        weighted = {name: weight * loss for name, (weight, loss) in terms.items()}
        named = {name: loss.detach() for name, (_, loss) in terms.items()}
        played = self._play(targets, logits, blocks)
        weighted |= {name: loss for name, loss in played.items() if name.startswith("adversary/")}
        named |= {name: loss.detach() for name, loss in played.items()}
        if apart:
            return weighted
        return {"total": self._idle(targets, outputs) + torch.stack(list(weighted.values())).sum(), **named}

    def _compared(self, targets: Targets, student: Outputs) -> list[list[tuple[Tensor, Tensor]]]:
        """For each teacher whose blocks are there, (teacher's, student's) form of each block."""
        return [self.projections(t.teacher, student.blocks, t.blocks) for t in targets.blocks]

    def _similarities(self, targets: Targets, logits: Tensor, blocks: list[list[tuple[Tensor, Tensor]]]) -> Terms:
        """What these teachers give and the recipe weighs; of several teachers' blocks the mean."""
        s = self.settings
        terms: Terms = {}
        if s.logits and targets.logits is not None:
            if s.object:  # a function of the caller's
                loss = s.object(targets.logits.float(), logits.float())
            else:
                loss = losses.between_logits(s.similarity, targets.logits, logits, s.temperature)
            if s.similarity == "ce":  # shown as KL, which is 0 where the student agrees; the gradient is the same
                loss = loss - losses.entropy(targets.logits, s.temperature)
            terms["similarity/logits"] = (s.logits, loss)
        for i, weight in enumerate(self.block_weights if blocks else []):
            if weight:
                parts = [losses.between_blocks(s.block_similarity, *block[i]) for block in blocks]
                terms[f"similarity/{i}"] = (weight, torch.stack(parts).mean() if len(parts) > 1 else parts[0])
        return terms

    def _play(self, targets: Targets, logits: Tensor, blocks: list[list[tuple[Tensor, Tensor]]]) -> dict[str, Tensor]:
        """ "adversary/BLOCK" → loss, "discriminator_accuracy/BLOCK" → share; of several teachers the mean."""
        found: dict[str, list[Tensor]] = {}
        for key, of_teacher, of_student in self._pairs(targets, logits, blocks):
            a, d = self.adversary, cast(Discriminator, self.discriminators[key])
            loss, right = adversarial(d, of_teacher, of_student, a.adversary, a.weight)
            name = key.rpartition("-")[2]
            found.setdefault(f"adversary/{name}", []).append(loss)
            found.setdefault(f"discriminator_accuracy/{name}", []).append(right)
        return {name: torch.stack(values).mean() if len(values) > 1 else values[0] for name, values in found.items()}

    def _pairs(self, targets: Targets, logits: Tensor, blocks: list[list[tuple[Tensor, Tensor]]]) -> Iterator[Pair]:
        """(key, teacher's rows, student's rows) for each discriminator; of logits it sees the softmax."""
        for t, compared in zip(targets.blocks, blocks, strict=True):
            for i, sides in enumerate(compared):
                if (key := self._key(t.teacher, i)) in self.discriminators:
                    of_teacher, of_student = map(as_rows, sides)
                    yield key, of_teacher, of_student
        if "logits" in self.discriminators and targets.logits is not None:
            yield "logits", targets.logits.float().softmax(1), logits.float().softmax(1)

    def _key(self, teacher: int, block: int) -> str:
        return f"{teacher}-{block}" if self.per_teacher else str(block)

    def _idle(self, targets: Targets, student: Outputs) -> Tensor:
        """Zero, through every parameter that these teachers leave unused this step.

        DistributedDataParallel wants a gradient for each parameter in each step, without searching the graph.
        """
        here = {t.teacher for t in targets.blocks}
        used = {self._key(t.teacher, i) for t in targets.blocks for i in range(len(t.blocks))}
        used |= {"logits"} if targets.logits is not None else set()
        unused = [d for key, d in self.discriminators.items() if key not in used]
        unused += [p for i, p in enumerate(self.projections) if self.per_teacher and i not in here]
        idle = [p.sum() for module in unused for p in module.parameters()]
        idle += [] if targets.blocks else [block.sum() for block in student.blocks]
        idle += [cast(Tensor, student.logits).sum()] if targets.logits is None else []
        return 0.0 * torch.stack(idle).sum() if idle else cast(Tensor, student.logits).new_zeros(())


def _projections(student: Stream, a: Alignment, teachers: list[Shapes]) -> nn.ModuleList:
    if a.method == "projection":
        return Projections(student.block_shapes, teachers)
    return NoProjections()


def _discriminators(
    a: Discriminators, per_teacher: bool, classes: int, teachers: list[Shapes]
) -> dict[str, Discriminator]:
    """By teacher and block, where each teacher has its own projection; else by block; and "logits"."""
    if a.adversary == "none":
        return {}
    found: dict[str, Discriminator] = {}
    for teacher, shapes in enumerate(teachers if a.on in ("blocks", "all") else []):
        for block, shape in enumerate(shapes):
            key = f"{teacher}-{block}" if per_teacher else str(block)
            found[key] = Discriminator(shape[0], PATCH_WIDTH if per_teacher else None)
    if a.on in ("logits", "all"):
        found["logits"] = Discriminator(classes)
    return found


def gradient_shares(distiller: Distiller, image: Tensor, label: Tensor, teacher: Targets | Outputs) -> dict[str, float]:
    """Each term's share of what pulls at the student's weights: the norm of its gradient on them over the sum of all.

    A forward more and a backward per term; the module, its statistics included, is left as it was.
    """
    buffers = {name: buffer.clone() for name, buffer in distiller.named_buffers()}
    terms = functional_call(distiller, buffers, (image, label, teacher), {"apart": True})
    weights = [p for p in distiller.student.parameters() if p.requires_grad]
    norms = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        norms[name] = get_total_norm([g for g in gradients if g is not None])
    total = torch.stack(list(norms.values())).sum()
    return {name: (norm / total).item() for name, norm in norms.items()}
