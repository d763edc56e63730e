from .alignment import pool_to_grid, standardise
from .class_maps import assumed_pairs, known_by_name, readable_names
from .configs import data_config
from .ensemble import Combination, mean_logits
from .factory import is_hub_or_folder, make_network, weights_digest
from .foreign import LogitsOnly, is_foreign
from .modules import ModuleEntry, architecture_name, count_classes, wrap_student, wrap_teacher
from .onnx_file import write_onnx
from .saving import background_of, export
from .streams import LOGITS_ONLY, NEVER, Outputs, Stream, bare_stream, student_stream, teacher_stream
from .weights_file import weights_file_digest

__all__ = [
    "LOGITS_ONLY",
    "NEVER",
    "Combination",
    "LogitsOnly",
    "ModuleEntry",
    "Outputs",
    "Stream",
    "architecture_name",
    "assumed_pairs",
    "background_of",
    "bare_stream",
    "count_classes",
    "data_config",
    "export",
    "is_foreign",
    "is_hub_or_folder",
    "known_by_name",
    "make_network",
    "mean_logits",
    "pool_to_grid",
    "readable_names",
    "standardise",
    "student_stream",
    "teacher_stream",
    "weights_digest",
    "weights_file_digest",
    "wrap_student",
    "wrap_teacher",
    "write_onnx",
]
