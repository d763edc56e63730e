from .alignment import pool_to_grid, standardise
from .class_maps import known_by_name, readable_names
from .configs import data_config
from .factory import is_place, make_network, weights_digest
from .foreign import LogitsOnly, is_foreign
from .live import Live, classes_of, name_of, student_of, teacher_of
from .onnx_file import write_onnx
from .saving import export
from .streams import LOGITS_ONLY, NEVER, Outputs, Stream, bare_stream, student_stream, teacher_stream
from .weights_file import weights_file_digest

__all__ = [
    "LOGITS_ONLY",
    "NEVER",
    "Live",
    "LogitsOnly",
    "Outputs",
    "Stream",
    "bare_stream",
    "classes_of",
    "data_config",
    "export",
    "is_foreign",
    "is_place",
    "known_by_name",
    "make_network",
    "name_of",
    "pool_to_grid",
    "readable_names",
    "standardise",
    "student_of",
    "student_stream",
    "teacher_of",
    "teacher_stream",
    "weights_digest",
    "weights_file_digest",
    "write_onnx",
]
