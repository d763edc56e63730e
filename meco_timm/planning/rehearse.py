"""A rehearsal: all parts of a recipe in a few steps, with random weights and few images, in a folder of its own.

No weights and no data set are downloaded; zoo, store, trackers and the Hub are left alone.
"""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator
from PIL import Image
from timm.models import save_for_hf

from meco_timm.common import RESULT, get_logger, write_text
from meco_timm.data import Split, known_data, read_source
from meco_timm.networks import make_network
from meco_timm.recipe import Network, Recipe, load_recipe, to_yaml

logger = get_logger(RESULT)

FEW = 4  # images to validate with, and to test on
PICTURES = 16  # made-up images that are not the same
Rows = tuple[list[dict[str, Any]], list[int]]  # stored images and labels


@contextmanager
def rehearsal(recipe: Recipe, steps: int, accelerator: Accelerator) -> Iterator[Recipe]:
    """The recipe as it is rehearsed, with trainings of `steps` steps, in a folder that goes at the end.

    Batches stay as large as they are, so that memory is rehearsed too.

    Raises:
        UserError: the data set cannot be opened and is not known, or a network cannot be made.
    """
    main, folder = accelerator.is_main_process, Path(f"{recipe.run}.rehearsal")
    try:
        if main:
            shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
            write_text(folder / "recipe.yaml", to_yaml(_shortened(recipe, steps, folder, accelerator.num_processes)))
        accelerator.wait_for_everyone()
        with _cached_in(folder / "cache"):
            yield load_recipe(folder / "recipe.yaml")
        what = "made-up images" if known_data(recipe.data) else f"some images of {recipe.data.source}"
        message = "\nrehearsed: all parts ran, each training %d step(s), on %s; nothing of it is kept."
        logger.info(message, steps, what)
    finally:
        if main:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _cached_in(folder: Path) -> Iterator[None]:
    """What `datasets` keeps of the few images lies in `folder`."""
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


def _shortened(recipe: Recipe, steps: int, folder: Path, processes: int) -> Recipe:
    """The recipe of the rehearsal; writes the images and the weights that it needs."""
    few = {"steps": steps, "epochs": None, "validations": 1, "patience": None}

    def shortened(section: Any) -> Any:
        return section.model_copy(update={"loop": section.loop.model_copy(update=few)})

    changes: dict[str, Any] = {
        "run": str(folder / "run"),
        "trackers": [],
        "publish": None,
        "zoo": shortened(recipe.zoo).model_copy(update={"folder": str(folder / "zoo")}),
        "teachers": [shortened(teacher) for teacher in recipe.teachers],
        "data": recipe.data.model_copy(update=_few_images(recipe, folder / "data", processes)),
    }
    if recipe.store.folder is not None:
        changes["store"] = recipe.store.model_copy(update={"folder": str(folder / "store")})
    return random_weights(shortened(recipe).model_copy(update=changes), folder / "weights")


def random_weights(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with random weights for those that timm or the Hub would give, written below `folder`.

    Raises:
        UserError: a network cannot be made.
    """

    def made(network: Network, role: str) -> Any:
        if not network.names_weights or network.weights or network.model.startswith("local-dir:"):
            return network
        place = folder / network.model.split("/")[-1]
        if not place.exists():
            model, _ = make_network(Network(model=network.model), {}, pretrained=False, size=None, role=role)
            save_for_hf(model.half(), place, safe_serialization=True)
        return network.model_copy(update={"model": f"local-dir:{place}"})

    teachers = [made(teacher, f"teachers.{i}") for i, teacher in enumerate(recipe.teachers)]
    return recipe.model_copy(update={"teachers": teachers, "student": made(recipe.student, "student")})


def _few_images(recipe: Recipe, folder: Path, processes: int) -> dict[str, Any]:
    """Write some images, of each class, for all splits; returns what the section `data` then says of them."""
    settings = recipe.data
    largest = processes * max(loop.batch_size for loop in (recipe.loop, *(t.loop for t in recipe.teachers)))
    classes, parts = _few_rows(recipe, largest)
    folder.mkdir(parents=True)
    datasets.disable_progress_bars()
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes))
    for name, (images, labels) in zip(("train", "test"), parts, strict=True):
        split = datasets.Dataset.from_dict({"image": images, "label": labels}, features)
        split.to_parquet(str(folder / f"{name}.parquet"))
    count = len(parts[0][0])
    return {
        **{"source": str(folder), "subset": None, "image_column": None, "label_column": None},
        **{"train_split": "train", "test_split": None},
        "validation": FEW / count if settings.validation and count > 2 * FEW else 0.0,
        "labelled": min(settings.labelled, max(len(classes), largest)) if settings.labelled else None,
    }


def _few_rows(recipe: Recipe, largest: int) -> tuple[list[str], list[Rows]]:
    """(classes, images and labels to train on and to test on): some of the source's, or made-up ones."""

    def count(classes: list[str]) -> int:
        return 2 * max(len(classes), largest) + FEW  # as many again, for those whose labels are hidden

    if (known := known_data(recipe.data)) is not None:
        pictures, classes = [_picture(i, recipe.data.image_size) for i in range(PICTURES)], known.classes
        return classes, [_made_up(pictures, n, len(classes)) for n in (count(classes), FEW)]
    found = read_source(recipe.data)
    return found.classes, [_some(found.train, count(found.classes)), _some(found.test or found.train, FEW)]


def _picture(seed: int, side: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype("uint8")
    file = io.BytesIO()
    Image.fromarray(coarse).resize((side, side)).save(file, "JPEG")
    return file.getvalue()


def _made_up(pictures: list[bytes], count: int, classes: int) -> Rows:
    images = [{"bytes": pictures[i % len(pictures)], "path": None} for i in range(count)]
    return images, [i % classes for i in range(count)]


def _some(split: Split, count: int) -> Rows:
    """`count` rows of a split, or all: one of each class, then a second of each, and so on."""
    by_class = np.argsort(split.labels, kind="stable")
    first = np.searchsorted(split.labels[by_class], split.labels[by_class])
    rank = np.empty(len(by_class), dtype=np.int64)
    rank[by_class] = np.arange(len(by_class)) - first
    rows = np.argsort(rank, kind="stable")[:count]
    stored = split.images[rows.tolist()]["image"]
    images = [{"bytes": s["bytes"] or Path(s["path"]).read_bytes(), "path": s["path"]} for s in stored]
    return images, split.labels[rows].tolist()
