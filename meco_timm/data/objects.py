"""Data sets that a Python caller has: of the library `datasets`, or of torch."""

import io
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torchvision.datasets import DatasetFolder

from meco_timm.common import UserError, get_logger, object_name
from meco_timm.data.decoding import to_rgb
from meco_timm.data.labels import NO_LABEL
from meco_timm.data.sources import read_source
from meco_timm.recipe import Data, fingerprint

logger = get_logger(__name__)

IMAGE = "image"
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def data_of(settings: Data, given: Any) -> Data:
    """The settings with the data set `given` in place of a source: a `DatasetDict`, a `Dataset`, a torch data set of
    pairs (image, label), or a dict of these by split. One split alone is `train`, of which a part is held out.

    Raises:
        UserError: it is something else, or its columns or labels are not what the settings say.
    """
    parts = dict(given) if isinstance(given, Mapping) else {settings.train_split: given}
    splits = {str(name): _split(part, f"data.{name}") for name, part in parts.items()}
    draft = settings.with_object(splits, source=object_name(type(given).__name__, "0"))
    found = read_source(draft)
    opened = [part for part in (found.train, found.validation, found.test) if part is not None]
    digest = fingerprint([found.classes.names, *([part.labels.tolist(), part.images.stamp()] for part in opened)])
    return draft.with_object(splits, source=object_name(type(given).__name__, digest))


def _split(given: Any, role: str) -> datasets.Dataset:
    """One split as the library `datasets` has it."""
    if isinstance(given, datasets.Dataset):
        return given.with_format(None)
    if isinstance(given, (datasets.IterableDataset, torch.utils.data.IterableDataset)):
        raise UserError(
            f"{role}: {type(given).__name__} can only be read from its start; images are read in random order. Give a "
            "`datasets.Dataset`, or the files' folder."
        )
    if isinstance(given, (str, bytes)) or not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        raise UserError(
            f"{role}: {type(given).__name__} is no data set. Give a `DatasetDict`, a `Dataset`, a torch data set of "
            "pairs (image, label), or a folder."
        )
    return _from_torch(given, role)


def _from_torch(given: Any, role: str) -> datasets.Dataset:
    """Files by their paths where the data set has them, else a copy of the images in memory."""
    if isinstance(given, DatasetFolder):
        images: list[Any] = [{"bytes": None, "path": path} for path, _ in given.samples]
        labels = [label for _, label in given.samples]
        if given.transform is not None:
            logger.info("%s: its transform is not used; data.augmentation of the recipe is", role)
    else:
        pairs = [_pair(given[i], f"{role}: item {i}") for i in range(len(given))]
        images, labels = [image for image, _ in pairs], [label for _, label in pairs]
        size = sum(len(image["bytes"]) for image in images) / 2**20
        logger.info("%s: %d images copied into memory, %.1f MiB", role, len(images), size)
    names = getattr(given, "classes", None)
    if names and (wrong := [i for i, label in enumerate(labels) if not NO_LABEL <= label < len(names)]):
        raise UserError(
            f"{role}: item {wrong[0]}: its label is {labels[wrong[0]]}, but its `classes` are {len(names)}: 0 to "
            f"{len(names) - 1}."
        )
    kind = datasets.ClassLabel(names=list(map(str, names))) if names else datasets.Value("int64")
    features = datasets.Features({IMAGE: datasets.Image(), "label": kind})
    return datasets.Dataset.from_dict({IMAGE: images, "label": labels}, features)


def _pair(item: Any, role: str) -> tuple[dict[str, Any], int]:
    """An item (image, label) as stored image and class number."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise UserError(f"{role}: {type(item).__name__} is no pair (image, label).")
    image, label = item
    if isinstance(label, (torch.Tensor, np.ndarray)) and label.ndim == 0:
        label = label.item()
    if label is None:
        label = NO_LABEL
    if not isinstance(label, (int, np.integer)):
        raise UserError(f"{role}: its label is {type(label).__name__}, not the number of a class.")
    return {"bytes": _encoded(image, role), "path": None}, int(label)


def _encoded(image: Any, role: str) -> bytes:
    """As PNG, which loses nothing. image: of Pillow, or uint8, as a tensor C×H×W or an array H×W×C."""
    kind = f"{type(image).__name__} of {image.dtype}" if hasattr(image, "dtype") else type(image).__name__
    if isinstance(image, torch.Tensor) and image.ndim == 3:
        image = image.permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        image = Image.fromarray(image.squeeze(-1) if image.ndim == 3 and image.shape[2] == 1 else image)
    if not isinstance(image, Image.Image):
        raise UserError(
            f"{role}: its image is {kind}, not of Pillow or uint8. Give the data set without a transform: "
            "every network normalises for itself."
        )
    if image.mode not in PNG_MODES:
        try:
            image = image.convert("RGBA") if image.has_transparency_data else to_rgb(image)
        except ValueError as error:
            raise UserError(f"{role}: its image cannot be read: {error}") from None
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
