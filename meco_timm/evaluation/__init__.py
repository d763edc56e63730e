"""Evaluation of any network on any split.

In: streams and a data source. Out: table rows, predictions, similarity of blocks (CKA).
Never: changes weights, or selects weights on the test split.
"""

from meco_timm.evaluation.agreement import block_agreement, evenly_spread, kernel_cka
from meco_timm.evaluation.class_check import ClassCheck, balanced_sample, check_classes
from meco_timm.evaluation.contributions import (
    Change,
    Contributions,
    Difference,
    bootstrap_changes,
    contributions,
    temperature_of,
)
from meco_timm.evaluation.ensemble import Combination
from meco_timm.evaluation.image_files import Prediction, iter_predictions, predict, print_predictions
from meco_timm.evaluation.one_network import evaluate
from meco_timm.evaluation.predictions import Predictions, load_predictions, make_predictions, save_predictions
from meco_timm.evaluation.table import (
    Evaluation,
    Row,
    make_table,
    on_device,
    predict_logits,
    print_table,
    styled_table,
    table_columns,
    validate,
)
from meco_timm.evaluation.verdict import verdict

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
    "contributions",
    "evaluate",
    "evenly_spread",
    "iter_predictions",
    "kernel_cka",
    "load_predictions",
    "make_predictions",
    "make_table",
    "on_device",
    "predict",
    "predict_logits",
    "print_predictions",
    "print_table",
    "save_predictions",
    "styled_table",
    "table_columns",
    "temperature_of",
    "validate",
    "verdict",
]
