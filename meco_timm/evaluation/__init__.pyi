from .agreement import block_agreement, kernel_cka
from .class_check import ClassCheck, balanced_sample, check_classes
from .ensemble import Combination
from .image_files import Prediction, iter_predictions, predict, print_predictions
from .one_network import evaluate
from .predictions import Predictions, load_predictions, make_predictions, save_predictions
from .rows import Row, compare_errors, print_table, styled_table, table_columns
from .table import Evaluation, compute_logits, make_table, on_device, validate
from .teacher_contributions import Change, Contributions, Difference, bootstrap_changes, contributions, temperature_of

__all__ = [
    "Change",
    "ClassCheck",
    "Combination",
    "Contributions",
    "Difference",
    "Evaluation",
    "Prediction",
    "Predictions",
    "Row",
    "balanced_sample",
    "block_agreement",
    "bootstrap_changes",
    "check_classes",
    "compare_errors",
    "compute_logits",
    "contributions",
    "evaluate",
    "iter_predictions",
    "kernel_cka",
    "load_predictions",
    "make_predictions",
    "make_table",
    "on_device",
    "predict",
    "print_predictions",
    "print_table",
    "save_predictions",
    "styled_table",
    "table_columns",
    "temperature_of",
    "validate",
]
