from .agreement import block_agreement, kernel_cka
from .backbone import Labelled, compute_embeddings, embedding_stream, evaluate_backbone, labelled_images, measure_knn
from .class_check import ClassCheck, balanced_sample, check_classes
from .embedding import Embeddings, embed, most_similar, write_embeddings
from .ensemble import vote
from .features import nearest, pca_colours
from .image_files import Prediction, iter_predictions, predict, print_predictions
from .latency import Latency, measure_latency, torch_threads
from .one_network import Measured, data_for, evaluate, measure
from .onnx_runtime import OnnxNetwork, quantise
from .pictures import Pictures, load_pictures, make_pictures, save_pictures
from .predictions import Predictions, load_predictions, make_predictions, save_predictions
from .repeats import Interval, Runs, paired_interval, seeds_difference, seeds_table, seeds_text, values_of
from .rows import (
    AnyRow,
    BackboneRow,
    Row,
    compare_errors,
    compare_features,
    print_table,
    read_rows,
    styled_columns,
    styled_table,
    table_columns,
)
from .table import Evaluation, compute_logits, make_table, on_device, table_row, validate
from .teacher_contributions import Change, Contributions, Difference, bootstrap_changes, contributions, temperature_of

__all__ = [
    "AnyRow",
    "BackboneRow",
    "Change",
    "ClassCheck",
    "Contributions",
    "Difference",
    "Embeddings",
    "Evaluation",
    "Interval",
    "Labelled",
    "Latency",
    "Measured",
    "OnnxNetwork",
    "Pictures",
    "Prediction",
    "Predictions",
    "Row",
    "Runs",
    "balanced_sample",
    "block_agreement",
    "bootstrap_changes",
    "check_classes",
    "compare_errors",
    "compare_features",
    "compute_embeddings",
    "compute_logits",
    "contributions",
    "data_for",
    "embed",
    "embedding_stream",
    "evaluate",
    "evaluate_backbone",
    "iter_predictions",
    "kernel_cka",
    "labelled_images",
    "load_pictures",
    "load_predictions",
    "make_pictures",
    "make_predictions",
    "make_table",
    "measure",
    "measure_knn",
    "measure_latency",
    "most_similar",
    "nearest",
    "on_device",
    "paired_interval",
    "pca_colours",
    "predict",
    "print_predictions",
    "print_table",
    "quantise",
    "read_rows",
    "save_pictures",
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
    "write_embeddings",
]
