"""The method (MEAL): teacher outputs × student outputs → named losses.

In: `Targets` of the zoo, the student's `Outputs`. Out: similarity of blocks and logits, adversary, and their total.
Never: runs a teacher, steps an optimizer, reads data.
"""

from meco_timm.distillation.custom import check_similarity, similarity_name
from meco_timm.distillation.distiller import Distiller, Supervised, gradient_shares
from meco_timm.distillation.losses import class_weights, mean_logits
from meco_timm.distillation.targets import Targets, TeacherBlocks

__all__ = [
    "Distiller",
    "Supervised",
    "Targets",
    "TeacherBlocks",
    "check_similarity",
    "class_weights",
    "gradient_shares",
    "mean_logits",
    "similarity_name",
]
