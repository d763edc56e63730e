from .agreement import block_agreement, kernel_cka
from .class_check import ClassCheck, balanced_sample, check_classes
from .ensemble import vote
from .image_files import Prediction, iter_predictions, predict, print_predictions
from .latency import Latency, measure_latency, torch_threads
from .one_network import Measured, data_for, evaluate, measure
from .onnx_runtime import OnnxNetwork, quantise
from .predictions import Predictions, load_predictions, make_predictions, save_predictions
from .repeats import Interval, Runs, paired_interval, seeds_difference, seeds_table, seeds_text, values_of
from .rows import Row, compare_errors, print_table, styled_columns, styled_table, table_columns
from .table import Evaluation, compute_logits, make_table, on_device, table_row, validate
from .teacher_contributions import Change, Contributions, Difference, bootstrap_changes, contributions, temperature_of

__all__ = [
    "Change",
    "ClassCheck",
    "Contributions",
    "Difference",
    "Evaluation",
    "Interval",
    "Latency",
    "Measured",
    "OnnxNetwork",
    "Prediction",
    "Predictions",
    "Row",
    "Runs",
    "balanced_sample",
    "block_agreement",
    "bootstrap_changes",
    "check_classes",
    "compare_errors",
    "compute_logits",
    "contributions",
    "data_for",
    "evaluate",
    "iter_predictions",
    "kernel_cka",
    "load_predictions",
    "make_predictions",
    "make_table",
    "measure",
    "measure_latency",
    "on_device",
    "paired_interval",
    "predict",
    "print_predictions",
    "print_table",
    "quantise",
    "save_predictions",
    "seeds_difference",
    "seeds_table",
    "seeds_text",
    "styled_columns",
    "styled_table",
    "table_columns",
    "table_row",
    "temperature_of",
    "torch_threads",
    "validate",
    "values_of",
    "vote",
]
