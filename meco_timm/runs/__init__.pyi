from .arguments import AnyRecipe, Similarity, as_recipe, check_same
from .finished import finished_run, show_finished, show_results
from .repeating import PlainRun, repeat, run_all
from .stages import (
    assemble_zoo,
    backbone_recipe,
    begin,
    evaluate_all,
    finish_backbone,
    label_training,
    load_pretrained,
    run_accelerator,
    train_alone_and_compare,
    train_student,
)

__all__ = [
    "AnyRecipe",
    "PlainRun",
    "Similarity",
    "as_recipe",
    "assemble_zoo",
    "backbone_recipe",
    "begin",
    "check_same",
    "evaluate_all",
    "finish_backbone",
    "finished_run",
    "label_training",
    "load_pretrained",
    "repeat",
    "run_accelerator",
    "run_all",
    "show_finished",
    "show_results",
    "train_alone_and_compare",
    "train_student",
]
