"""The teacher zoo: teachers are loaded or trained, frozen, drawn at random per iteration, and their outputs stored.

In: the recipe's teachers. Out: a teacher's `Outputs` for a batch, computed or read from the store.
Never: updates a frozen teacher, or uses the student.
"""

from meco_timm.zoo.listing import list_teachers, print_teachers
from meco_timm.zoo.objects import Given, holding, recipe_entries, teacher_streams, with_live
from meco_timm.zoo.precompute import precompute_outputs, use_store
from meco_timm.zoo.store import layout
from meco_timm.zoo.teachers import (
    assemble_zoo,
    check_targets,
    load_pretrained,
    named_teachers,
    student_alone,
    train_teachers,
    untrained_teachers,
)
from meco_timm.zoo.zoo import Here, Zoo, draw

__all__ = [
    "Given",
    "Here",
    "Zoo",
    "assemble_zoo",
    "check_targets",
    "draw",
    "holding",
    "layout",
    "list_teachers",
    "load_pretrained",
    "named_teachers",
    "precompute_outputs",
    "print_teachers",
    "recipe_entries",
    "student_alone",
    "teacher_streams",
    "train_teachers",
    "untrained_teachers",
    "use_store",
    "with_live",
]
