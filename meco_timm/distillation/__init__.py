"""The method (MEAL): teacher outputs × student outputs → named losses.

In: `Targets` of the zoo, the student's `Outputs`. Out: similarity of logits and blocks, adversary, and their total.
Never: runs a teacher, steps an optimizer, reads data.
"""

from meco_timm.distillation.custom import check_similarity, similarity_name
from meco_timm.distillation.distiller import Distiller
from meco_timm.distillation.labels import class_weights
from meco_timm.distillation.objective import Objective, Supervised, weighted_sum
from meco_timm.distillation.targets import Targets, TeacherBlocks

__all__ = [
    "Distiller",
    "Objective",
    "Supervised",
    "Targets",
    "TeacherBlocks",
    "check_similarity",
    "class_weights",
    "similarity_name",
    "weighted_sum",
]
