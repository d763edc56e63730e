"""Rehearsal: run all parts of a recipe for a few steps, with random weights and few images, in a temporary folder.

Nothing is downloaded; the recipe's zoo, store, trackers and Hub repository are not used.
"""

import io
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from timm.models import save_for_hf

from meco_timm.common import RESULT, get_logger, write_text
from meco_timm.data import NO_LABEL, Split, known_data, read_source
from meco_timm.networks import LogitsOnly, make_network
from meco_timm.recipe import Network, Recipe, load_recipe, to_yaml

logger = get_logger(RESULT)

SUFFIX = ".rehearsal"
JUDGES = ("meco_timm.training.metrics", "meco_timm.selection")
HELD_OUT = 4  # images of the validation split, and of the test split
DISTINCT = 16  # synthetic images that differ
Rows = tuple[list[dict[str, Any]], list[int]]  # stored images and labels


def is_rehearsal(recipe: Recipe) -> bool:
    """Whether the recipe is one of `rehearsal`, whose results say nothing."""
    return any(folder.suffix == SUFFIX for folder in Path(recipe.run or "run").parents)


@contextmanager
def rehearsal(recipe: Recipe, steps: int, accelerator: Accelerator) -> Iterator[Recipe]:
    """The recipe to run as a rehearsal, with `steps` steps per training, in a folder that is deleted at the end.

    Batch sizes stay the same, so that memory use is rehearsed too.

    Raises:
        UserError: the data set cannot be opened, or a network cannot be made.
    """
    main, folder = accelerator.is_main_process, Path(f"{recipe.run}{SUFFIX}")
    try:
        if main:
            shutil.rmtree(folder, ignore_errors=True)  # a rehearsal that was killed leaves it
            write_text(folder / "recipe.yaml", to_yaml(_shortened(recipe, steps, folder, accelerator.num_processes)))
        accelerator.wait_for_everyone()
        with _cached_in(folder / "cache"), _without_judgements():
            yield _with_objects(load_recipe(folder / "recipe.yaml"), recipe)
        images = "synthetic images" if known_data(recipe.data) else f"some images of {recipe.data.source}"
        message = (
            "\nThis was a rehearsal: all parts ran, %d step(s) per training, on %s. No result was compared or saved."
        )
        logger.info(message, steps, images)
    finally:
        if main:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _without_judgements() -> Iterator[None]:
    """Hide warnings about teachers, losses and discriminators, which a few steps on a few images cannot judge."""
    loggers = [logging.getLogger(name) for name in JUDGES]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


@contextmanager
def _cached_in(folder: Path) -> Iterator[None]:
    """Have `datasets` write its cache into `folder`."""
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


def _shortened(recipe: Recipe, steps: int, folder: Path, processes: int) -> Recipe:
    """The recipe of the rehearsal; writes its images and weights."""
    short = {"steps": steps, "epochs": None, "min_steps": 0, "validations": 1, "patience": None}

    def shortened(section: Any) -> Any:
        return section.model_copy(update={"loop": section.loop.model_copy(update=short)})

    changes: dict[str, Any] = {
        "run": str(folder / "run"),
        "trackers": [],
        "publish": None,
        "zoo": shortened(recipe.zoo).model_copy(update={"folder": str(folder / "zoo")}),
        # Nobody knows the classes of synthetic images, and random weights know none.
        "teachers": [shortened(teacher).model_copy(update={"trust": True}) for teacher in recipe.teachers],
        "data": recipe.data.model_copy(update=_few_images(recipe, folder / "data", processes)),
    }
    if recipe.data.validation and not changes["data"].validation:  # too few images to fit anything on
        fitted = {"calibrate": False} | ({"weights": "uniform"} if recipe.zoo.weights == "validation" else {})
        changes["zoo"] = changes["zoo"].model_copy(update=fitted)
    if (made := recipe.student.backbone) is not None:
        changes["student"] = recipe.student.model_copy(update={"backbone": shortened(made)})
    if recipe.store.folder is not None:
        changes["store"] = recipe.store.model_copy(update={"folder": str(folder / "store")})
    return random_weights(shortened(recipe).model_copy(update=changes), folder / "weights")


def random_weights(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with random weights, written below `folder`, in place of those from timm or the Hub.

    Raises:
        UserError: a network cannot be made.
    """

    def randomised(network: Network, role: str) -> Any:
        here = network.weights or network.object or network.model.startswith("local-dir:")
        if here or not network.names_weights:
            return network
        path = folder / network.model.split("/")[-1]
        if path.exists():
            return network.model_copy(update={"model": f"local-dir:{path}"})
        model, _ = make_network(Network(model=network.model), {}, pretrained=False, size=None, role=role)
        if isinstance(model, LogitsOnly):
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(model.network.state_dict(), f"{path}.pth")
            return network.model_copy(update={"weights": f"{path}.pth"})
        save_for_hf(model.half(), path, safe_serialization=True)
        return network.model_copy(update={"model": f"local-dir:{path}"})

    teachers = [randomised(teacher, f"teachers.{i}") for i, teacher in enumerate(recipe.teachers)]
    student = randomised(recipe.student, "student")
    if (made := recipe.student.backbone) is not None:
        encoders = [randomised(teacher, f"student.backbone.teachers.{i}") for i, teacher in enumerate(made.teachers)]
        student = student.model_copy(update={"backbone": made.model_copy(update={"teachers": encoders})})
    return recipe.model_copy(update={"teachers": teachers, "student": student})


def _with_objects(short: Recipe, recipe: Recipe) -> Recipe:
    """The rehearsal's recipe with the networks and the function that `recipe` holds, and a file cannot."""
    pairs = zip(short.teachers, recipe.teachers, strict=True)
    held = {
        "teachers": [own.with_object(given.object) for own, given in pairs],
        "student": short.student.with_object(recipe.student.object),
        "losses": short.losses.with_object(recipe.losses.object),
    }
    return short.model_copy(update=held)


def _few_images(recipe: Recipe, folder: Path, processes: int) -> dict[str, Any]:
    """Write some images of each class for all splits; returns the changes of the recipe's `data`."""
    settings = recipe.data
    loops = [recipe.loop, *(teacher.loop for teacher in recipe.teachers)]
    loops += [recipe.student.backbone.loop] if recipe.student.backbone else []
    largest = processes * max(loop.batch_size for loop in loops)
    classes, parts = _few_rows(recipe, largest)
    folder.mkdir(parents=True)
    datasets.disable_progress_bars()
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes))
    for name, (stored, labels) in zip(("train", "test"), parts, strict=True):
        split = datasets.Dataset.from_dict({"image": stored, "label": labels}, features)
        split.to_parquet(str(folder / f"{name}.parquet"))
    count = len(parts[0][0])
    return {
        **{"source": str(folder), "subset": None, "image_column": None, "label_column": None},
        **{"train_split": "train", "test_split": None},
        "validation": HELD_OUT / count if settings.validation and count > 2 * HELD_OUT else 0.0,
        "images": min(settings.images, max(len(classes), largest)) if settings.images else None,
        "labelled": _fewer(settings.labelled, max(len(classes), largest)),
    }


def _fewer(labelled: int | str | None, most: int) -> int | str | None:
    return min(labelled, most) if isinstance(labelled, int) else labelled


def _few_rows(recipe: Recipe, largest: int) -> tuple[list[str], list[Rows]]:
    """(classes, rows of the training and of the test split): some of the source's, or synthetic images."""

    def count(classes: list[str]) -> int:
        return 2 * max(len(classes), largest) + HELD_OUT  # half of them may be unlabelled

    if (listed := known_data(recipe.data)) is not None:
        jpegs, classes = [_random_jpeg(i, recipe.data.image_size) for i in range(DISTINCT)], listed.classes
        return classes, [_synthetic(jpegs, n, len(classes)) for n in (count(classes), HELD_OUT)]
    found = read_source(recipe.data)
    train, test = found.train, found.test or found.train
    names = found.classes.names
    return names, [_balanced(train, count(names)), _balanced(test, HELD_OUT)]


def _random_jpeg(seed: int, side: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype("uint8")
    file = io.BytesIO()
    Image.fromarray(coarse).resize((side, side)).save(file, "JPEG")
    return file.getvalue()


def _synthetic(jpegs: list[bytes], count: int, classes: int) -> Rows:
    images = [{"bytes": jpegs[i % len(jpegs)], "path": None} for i in range(count)]
    return images, [i % classes for i in range(count)]


def _balanced(split: Split, count: int) -> Rows:
    """At most `count` images and labels of a split, with equal numbers per class as far as possible."""
    by_class = np.argsort(split.labels, kind="stable")
    by_class = by_class[split.labels[by_class] != NO_LABEL]
    first = np.searchsorted(split.labels[by_class], split.labels[by_class])
    rank = np.full(len(split.labels), len(by_class))
    rank[by_class] = np.arange(len(by_class)) - first
    rows = np.argsort(rank, kind="stable")[: min(count, len(by_class))]
    stored = split.images.read(rows)
    images = [{"bytes": s["bytes"] or Path(s["path"]).read_bytes(), "path": s["path"]} for s in stored]
    return images, split.labels[rows].tolist()
