"""Distillation of an ensemble inside a training script of your own, as one of timm's tasks.

In: a timm network, teachers, and batches as timm's loaders give them. Out: the loss, the student's logits, each term.
Never: has an optimizer or a loop, or computes a loss in another way than our own loop does.
"""

from meco_timm.task.ensemble import EnsembleDistillation

__all__ = ["EnsembleDistillation"]
