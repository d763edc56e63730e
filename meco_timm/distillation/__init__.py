"""The method (MEAL): teacher outputs × student outputs → named losses.

In: two `Outputs`. Out: similarity per block and on the logits, adversary per block, and their total.
Never: runs a teacher, steps an optimizer, reads data.
"""

from meco_timm.distillation.distiller import Distiller, Supervised, gradient_shares
from meco_timm.distillation.losses import class_weights, mean_logits

__all__ = [
    "Distiller",
    "Supervised",
    "class_weights",
    "gradient_shares",
    "mean_logits",
]
