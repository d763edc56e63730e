"""A timm network as a stream: one forward for teacher and student.

In: a network as the recipe names it, images uint8 B×3×H×W. Out: `Outputs(blocks, logits)`; a timm checkpoint.
Never: trains, compares two networks, or knows where images come from.
"""

from meco_timm.networks.alignment import pool_to_grid, standardise
from meco_timm.networks.class_maps import imagenet, known_by_name, read_class_names, readable_names, some
from meco_timm.networks.configs import data_config
from meco_timm.networks.factory import is_place, make_network, weights_digest
from meco_timm.networks.foreign import LogitsOnly, is_foreign
from meco_timm.networks.live import Live, classes_of, name_of, student_of, teacher_of
from meco_timm.networks.saving import export, weights_file_digest
from meco_timm.networks.streams import LOGITS_ONLY, NEVER, Outputs, Stream, student_stream, teacher_stream

__all__ = [
    "LOGITS_ONLY",
    "NEVER",
    "Live",
    "LogitsOnly",
    "Outputs",
    "Stream",
    "classes_of",
    "data_config",
    "export",
    "imagenet",
    "is_foreign",
    "is_place",
    "known_by_name",
    "make_network",
    "name_of",
    "pool_to_grid",
    "read_class_names",
    "readable_names",
    "some",
    "standardise",
    "student_of",
    "student_stream",
    "teacher_of",
    "teacher_stream",
    "weights_digest",
    "weights_file_digest",
]
