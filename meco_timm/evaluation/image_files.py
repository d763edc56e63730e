"""From image files to class names, with any timm network."""

import csv
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from PIL import Image
from timm.data import create_transform

from meco_timm.common import UserError, expand, located, read_class_names
from meco_timm.data import decode_file, image_files
from meco_timm.networks import data_config, make_network, readable_names
from meco_timm.recipe import Network

NAMED = 20  # unreadable images in a message


class Prediction(NamedTuple):
    """The most probable classes of an image, best first, with their probabilities; `fault`: why it cannot be read."""

    file: str
    classes: list[str]
    shares: list[float]
    fault: str | None = None


def predict(
    model: str,
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    top: int = 3,
    classes: str | None = None,
    batch_size: int = 64,
) -> list[Prediction]:
    """The classes of image files, or of all images in folders, as the network's own timm transform shows them.

    model: a timm name, `hf-hub:owner/name` or `local-dir:path`. top: classes of each image. classes: a file with the
    network's class names, one a line, where its config has none.

    Raises:
        UserError: the network cannot be loaded or has no head, a path is not there, a folder holds no images, or the
            file of class names does not fit.
    """
    paths = [files] if isinstance(files, str | os.PathLike) else files
    return list(iter_predictions(model, [str(path) for path in paths], top, classes, batch_size))


@torch.no_grad()
def iter_predictions(
    model: str, paths: list[str], top: int = 3, classes: str | None = None, batch_size: int = 64
) -> Iterator[Prediction]:
    """As `predict`, one by one."""
    found = [file for path in paths for file in _files(path)]
    network, size = make_network(Network(model=model), {}, True, None, "predict")
    if not network.num_classes:
        raise UserError(f"predict: {model} has no head, so it gives no classes.")
    names = _names(network, classes)
    config = data_config(network, "predict")
    channels, device = len(config["mean"]), PartialState().device
    transform = create_transform(**config | {"input_size": (channels, size, size)}, is_training=False)
    network.to(device).eval()
    waiting = iter(found)
    while batch := list(islice(waiting, batch_size)):
        images = {file: _read(file, transform, channels) for file in batch}
        readable = [image for image in images.values() if not isinstance(image, str)]
        shares = iter(network(torch.stack(readable).to(device)).float().softmax(1).cpu() if readable else [])
        for file, image in images.items():
            yield Prediction(file, [], [], image) if isinstance(image, str) else _best(file, next(shares), names, top)


def _files(path: str) -> list[str]:
    place = Path(expand(path))
    if place.is_file():
        return [str(place)]
    if not place.is_dir():
        raise UserError(f"predict: there is no file or folder {located(place)}.")
    found = image_files(place)
    if not found:
        raise UserError(f"predict: the folder {place} holds no images.")
    return found


def _names(network: Any, file: str | None) -> list[str]:
    """Of the network's classes; their numbers where nothing names them."""
    if file is None:
        return readable_names(network) or [str(i) for i in range(network.num_classes)]
    names = read_class_names(Path(expand(file)), "--classes")
    if len(names) != network.num_classes:
        raise UserError(f"--classes: {file} has {len(names)} names, the network {network.num_classes} classes.")
    return names


def _read(file: str, transform: Any, channels: int) -> Any:
    """The image as the network takes it, or why it cannot be read."""
    try:
        image = decode_file(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error).rstrip(".")
    return transform(image.convert("L") if channels == 1 else image)


def _best(file: str, shares: torch.Tensor, names: list[str], top: int) -> Prediction:
    values, places = shares.topk(min(top, len(names)))
    return Prediction(file, [names[i] for i in places.tolist()], values.tolist())


def print_predictions(found: Iterable[Prediction], as_csv: bool = False) -> None:
    """A line for each image on standard output; of CSV the columns file, class, share, class_2, share_2, ….

    Raises:
        UserError: at the end, if images could not be read; names them.
    """
    faults, writer = [], csv.writer(sys.stdout, lineterminator="\n")
    for i, one in enumerate(found):
        if one.fault:
            faults.append(f"{one.file}: {one.fault}")
        elif as_csv:
            if i == len(faults):  # the first that can be read
                later = [f"{word}_{n}" for n in range(2, len(one.classes) + 1) for word in ("class", "share")]
                writer.writerow(["file", "class", "share", *later])
            cells = [
                cell for name, share in zip(one.classes, one.shares, strict=True) for cell in (name, f"{share:.6f}")
            ]
            writer.writerow([one.file, *cells])
        else:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in zip(one.classes, one.shares, strict=True))
            print(f"{one.file}: {shares}")
    if faults:
        raise UserError("\n".join([f"predict: {len(faults)} image(s) cannot be read:", *faults[:NAMED]]))
