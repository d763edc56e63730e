"""Rank teachers before a day of training."""

from collections.abc import Sequence
from pathlib import Path

import torch

from meco_timm.common import Status
from meco_timm.data import load_data
from meco_timm.recipe import Recipe, Teacher, named_teachers
from meco_timm.selection import Ranking, load_rankable, measure_teachers, rank, validation_sample
from meco_timm.training import LabelTraining, make_accelerator, trained_teacher


def rank_teachers(recipe: Recipe, images: int | None = None, candidates: Sequence[str] = ()) -> Ranking:
    """Rank the recipe's teachers, and candidates beside them, on the validation split; trains nothing.

    Every teacher runs once over the images, and its logits are kept in the folder `.logits` of `zoo.folder`. Teachers
    that are not trained yet or give no logits are left out. One process, one device.

    images: at most so many, evenly spread; by default all of the validation split. candidates: timm names with a tag,
    `hf-hub:` or `local-dir:`; their weights are downloaded.

    Raises:
        UserError: there is nothing to rank, no labelled validation image, a class that no teacher knows, or a network
            or the data cannot be loaded.
    """
    accelerator = make_accelerator(recipe.precision)
    with Status("reading the data"):
        data = load_data(recipe.data, recipe.seed)
    sample = validation_sample(data, images)
    teachers = named_teachers([*recipe.teachers, *(Teacher(model=name) for name in candidates)])
    training = LabelTraining(data, recipe.data, recipe.seed, Path(recipe.zoo.folder), accelerator)
    ready = {name: trained_teacher(name, teacher, training) for name, teacher in teachers.items()}
    streams, notes = load_rankable(ready, recipe.alignment, data.classes, len(recipe.teachers))
    measured = measure_teachers(streams, data, recipe.data, sample, recipe.zoo.folder, accelerator.device)
    label = torch.from_numpy(sample.labels[sample.rows]).long()
    return rank(streams, measured, label, data.classes, teachers, recipe.zoo, notes)
