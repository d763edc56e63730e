"""The files of a finished run: predictions, the student with its card, the table."""

from typing import Any

import numpy as np

from meco_timm.data import DataSource
from meco_timm.evaluation import Evaluation, make_predictions, save_predictions
from meco_timm.hub.card import card_files
from meco_timm.networks import Stream, export
from meco_timm.recipe import Recipe, named_teachers
from meco_timm.reporting import Results, read_metrics
from meco_timm.selection import kept_combination, read_measured
from meco_timm.training import RunFolder


def finish_run(
    folder: RunFolder,
    recipe: Recipe,
    data: DataSource,
    student: Stream,
    evaluated: Evaluation,
    agreement: dict[str, np.ndarray],
    about: dict[str, Any],
) -> None:
    """Write the predictions, the student with its model card, and the table last: it marks the run as finished.

    agreement: similarity of blocks by pair of networks (`block_agreement`). about: facts of the run (`about_run`).
    """
    measured = read_measured(folder.path)
    weights = kept_combination(folder.path, named_teachers(recipe.teachers), recipe.zoo).weights
    predictions = make_predictions(evaluated, data, agreement, measured["choices"] if measured else [], weights)
    metrics = read_metrics(folder.path / "metrics.jsonl")
    results = Results(folder, recipe, evaluated.rows, about, metrics, predictions)
    save_predictions(predictions, folder.predictions)
    export(student, folder.student, data.classes, recipe.data, card_files(results, data.classes))
    folder.finish(evaluated.rows, about)
