"""The method: teachers' targets × the student's outputs → named losses (paper, section 3.5: joint training)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from meco_timm.distillation.discriminators import Discriminators, block_key
from meco_timm.distillation.labels import cross_entropy
from meco_timm.distillation.objective import Objective, Term
from meco_timm.distillation.projections import EmbeddingProjections, Projections, Shapes
from meco_timm.distillation.similarity import BLOCKS, LOGITS, embeddings
from meco_timm.distillation.targets import Targets
from meco_timm.networks import Outputs, Stream
from meco_timm.recipe import Method


class Distiller(Objective):
    """Student, projections and discriminators: all that learns is one module, with one optimizer and one backward.

    teacher_block_shapes: of each teacher's blocks for one image, by its number in the zoo; `projection` needs them.
    teacher_embedding_sizes: length of each teacher's embedding, None without; embeddings need them.
    class_weight: K, of each class in the term of the labels; None for 1.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        student: Stream,
        method: Method,
        classes: int,
        teacher_block_shapes: Sequence[Shapes] = (),
        teacher_embedding_sizes: Sequence[int | None] = (),
        class_weight: Tensor | None = None,
    ):
        super().__init__()
        self.student, self.method = student, method
        self.register_buffer("class_weight", class_weight, persistent=False)
        losses = method.losses
        self.similarity_of_logits = losses.object or partial(LOGITS[losses.similarity], temperature=losses.temperature)
        self.similarity_of_blocks = BLOCKS[losses.block_similarity]
        teachers = list(teacher_block_shapes) if method.alignment.per_teacher else []
        self.projections = Projections(student.block_shapes, teachers)
        shapes: dict[int | None, Shapes] = dict(enumerate(teachers))
        if not method.alignment.per_teacher:
            shapes[None] = student.block_shapes
        self.discriminators = Discriminators(method.discriminators, classes, shapes)
        mlp = method.alignment.embedding == "mlp"
        self.embedding_projections = EmbeddingProjections(student.embedding_size, teacher_embedding_sizes, mlp)

    def terms(self, student: Outputs, label: Tensor, targets: Targets) -> dict[str, Term]:
        """The objective (docs/method.md): similarity of logits, of embeddings and of blocks, labels, adversary."""
        losses = self.method.losses
        terms: dict[str, Term] = {}
        logits = None if student.logits is None else student.logits.float()
        if losses.logits and logits is not None and targets.logits is not None:
            terms["similarity/logits"] = Term(self.similarity_of_logits(targets.logits.float(), logits), losses.logits)

        if losses.embedding and targets.embeddings:
            pairs = [self.embedding_projections(i, t, student.embedding) for i, t in targets.embeddings.items()]
            loss = torch.stack([embeddings(*pair) for pair in pairs]).mean()
            terms["similarity/embedding"] = Term(loss, losses.embedding)

        blocks = {teacher.teacher: self.projections(teacher, student.blocks) for teacher in targets.blocks}
        for i, weight in enumerate(self.method.block_weights if blocks else []):
            if weight:
                each = [self.similarity_of_blocks(*pairs[i]) for pairs in blocks.values()]
                terms[f"similarity/{i}"] = Term(torch.stack(each).mean(), weight)

        if losses.labels and logits is not None:
            terms["labels"] = Term(cross_entropy(logits, label, weight=self.class_weight), losses.labels)

        compared = {block_key(teacher, i): pair for teacher, pairs in blocks.items() for i, pair in enumerate(pairs)}
        if targets.logits is not None and logits is not None and "logits" in self.discriminators:
            compared["logits"] = (targets.logits.float().softmax(1), logits.softmax(1))
        return terms | self.discriminators(compared)

    def zero_of_unused(self, student: Outputs, targets: Targets) -> Tensor:
        """Zero, through every parameter that these targets leave unused.

        DistributedDataParallel wants a gradient for each parameter in each step, without searching the graph.
        """
        teachers = {teacher.teacher for teacher in targets.blocks}
        used = {block_key(t.teacher, i) for t in targets.blocks for i in range(len(t.blocks))}
        used |= {"logits"} if targets.logits is not None else set()
        unused = [module for key, module in self.discriminators.items() if key not in used]
        unused += [module for i, module in enumerate(self.projections) if i not in teachers]
        unused += [module for i, module in self.embedding_projections.items() if int(i) not in targets.embeddings]
        idle = [p.sum() for module in unused for p in module.parameters()]
        idle += [] if targets.blocks else [block.sum() for block in student.blocks]
        idle += [student.logits.sum()] if student.logits is not None and targets.logits is None else []
        idle += [student.embedding.sum()] if student.embedding is not None and not targets.embeddings else []
        return 0.0 * torch.stack(idle).sum() if idle else torch.zeros(())

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Projections at the student's rate, discriminators at their own, both without weight decay."""
        discriminators = (self.discriminators, self.method.discriminators.lr)
        rates = ((self.projections, lr), discriminators, (self.embedding_projections, lr))
        groups = [{"params": list(module.parameters()), "lr": rate, "weight_decay": 0.0} for module, rate in rates]
        return [group for group in groups if group["params"]]

    def weight_key(self, term: str) -> str:
        """The recipe's key for the weight of a term."""
        family, _, output = term.partition("/")
        if family == "similarity":
            return f"losses.{output}" if output in ("logits", "embedding") else "losses.blocks"
        return "discriminators.weight" if family == "adversary" else f"losses.{term}"

    def summary(self, values: dict[str, float]) -> list[str]:
        """The terms in short: the means over blocks and over discriminators."""
        short = {"similarity": "blocks", "discriminator_accuracy": "discriminators right"}
        groups: dict[str, list[float]] = {}
        for name, value in values.items():
            family, _, output = name.partition("/")
            label = (
                output if output in ("logits", "embedding") and family == "similarity" else short.get(family, family)
            )
            groups.setdefault(label, []).append(value)
        return super().summary({name: sum(group) / len(group) for name, group in groups.items()})
