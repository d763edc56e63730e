"""The teacher zoo: teachers are loaded, frozen, offloaded, drawn at random per iteration, and their outputs stored.

In: networks that have been trained. Out: a teacher's `Outputs` for a batch, computed or read from the store.
Never: trains a network, or uses the student.
"""

from meco_timm.zoo.embeddings import embedding_moments
from meco_timm.zoo.listing import list_teachers, print_teachers
from meco_timm.zoo.precompute import precompute_outputs, use_store
from meco_timm.zoo.store import layout, teacher_view
from meco_timm.zoo.teachers import (
    TeacherLike,
    check_targets,
    load_teachers,
    load_trained_teachers,
    recipe_entries,
    untrained_teachers,
    with_live,
    with_network,
)
from meco_timm.zoo.zoo import DeviceContext, Zoo, written_combination

__all__ = [
    "DeviceContext",
    "TeacherLike",
    "Zoo",
    "check_targets",
    "embedding_moments",
    "layout",
    "list_teachers",
    "load_teachers",
    "load_trained_teachers",
    "precompute_outputs",
    "print_teachers",
    "recipe_entries",
    "teacher_view",
    "untrained_teachers",
    "use_store",
    "with_live",
    "with_network",
    "written_combination",
]
