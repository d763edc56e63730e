"""Teachers: loaded or trained, frozen, drawn, stored.

In: the recipe's teachers. Out: a teacher's `Outputs` for a batch, live or from the store.
Never: updates a teacher while it teaches, or sees the student.
"""

from meco_timm.zoo.listing import list_teachers, print_teachers
from meco_timm.zoo.precompute import fill, use_store
from meco_timm.zoo.store import layout
from meco_timm.zoo.teachers import assemble_zoo, named_teachers, ready_teachers, student_alone, weightless_zoo
from meco_timm.zoo.zoo import Zoo, draw

__all__ = [
    "Zoo",
    "assemble_zoo",
    "draw",
    "fill",
    "layout",
    "list_teachers",
    "named_teachers",
    "print_teachers",
    "ready_teachers",
    "student_alone",
    "use_store",
    "weightless_zoo",
]
