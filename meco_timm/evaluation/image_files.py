"""From image files to class names, with any timm network."""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import PartialState
from PIL import Image
from timm.data import create_transform

from meco_timm.common import UserError, expand, located, read_class_names
from meco_timm.data import decode_file, image_files
from meco_timm.evaluation.own_run import find_network
from meco_timm.networks import background_of, data_config, make_network, readable_names
from meco_timm.recipe import Network

NAMED = 20  # unreadable images in a message
Form = Literal["text", "csv", "json"]


class Prediction(NamedTuple):
    """The most probable classes of an image, best first, with their probabilities; `fault`: why it cannot be read."""

    file: str
    classes: list[str]
    probabilities: list[float]
    fault: str | None = None


def predict(
    model: str,
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    top: int = 3,
    classes: str | None = None,
    batch_size: int = 64,
) -> list[Prediction]:
    """Classify image files, or all images in folders, with the network's own timm transform.

    model: a timm name, `hf-hub:owner/name`, `local-dir:path` or the folder of a run. top: classes of each image.
    classes: a file with the network's class names, one a line, where its config has none.

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
    """Classify images as `predict` does, and yield each prediction once its batch is computed."""
    waiting = iter([file for path in _expand_list(paths) for file in _list_images(path)])
    name, _ = find_network(model, "predict")
    network, size = make_network(Network(model=name), {}, True, None, "predict")
    if not network.num_classes:
        raise UserError(f"predict: {model} has no head, so it gives no classes.")
    names = _class_names(network, classes)
    config = data_config(network, "predict")
    channels, device = len(config["mean"]), PartialState().device
    transform = create_transform(**config | {"input_size": (channels, size, size)}, is_training=False)
    background = background_of(network)
    network.to(device).eval()
    while batch := list(islice(waiting, batch_size)):
        images = {file: _read_image(file, transform, channels, background) for file in batch}
        readable = [image for image in images.values() if not isinstance(image, str)]
        probabilities = iter(network(torch.stack(readable).to(device)).float().softmax(1).cpu() if readable else [])
        for file, image in images.items():
            if isinstance(image, str):
                yield Prediction(file, [], [], image)
                continue
            best = next(probabilities).topk(min(top, len(names)))
            yield Prediction(file, [names[i] for i in best.indices.tolist()], best.values.tolist())


def _expand_list(paths: list[str]) -> Iterator[str]:
    """The paths, with those on standard input, one a line, in the place of `-`."""
    for path in paths:
        if path == "-":
            yield from filter(None, sys.stdin.read().splitlines())
        else:
            yield path


def _list_images(path: str) -> list[str]:
    place = Path(expand(path))
    if place.is_file():
        return [str(place)]
    if not place.is_dir():
        raise UserError(f"predict: there is no file or folder {located(place)}.")
    found = image_files(place)
    if not found:
        raise UserError(f"predict: the folder {place} holds no images.")
    return found


def _class_names(network: Any, file: str | None) -> list[str]:
    """Names from the file, else from the network's config; the classes' numbers where nothing names them."""
    if file is None:
        return readable_names(network) or [str(i) for i in range(network.num_classes)]
    names = read_class_names(Path(expand(file)), "--classes")
    if len(names) != network.num_classes:
        raise UserError(f"--classes: {file} has {len(names)} names, the network {network.num_classes} classes.")
    return names


def _read_image(file: str, transform: Any, channels: int, background: tuple[int, ...]) -> Any:
    """The image as the network takes it, or why it cannot be read."""
    try:
        image = decode_file(file, background)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error).rstrip(".")
    return transform(image.convert("L") if channels == 1 else image)


def print_predictions(predictions: Iterable[Prediction], form: Form = "text") -> None:
    """Print a line for each image. csv: the columns file, class, share, class_2, share_2, …; json: an object a line,
    with file, classes and probabilities, or file and fault.

    Raises:
        UserError: at the end, if images could not be read; names them.
    """
    faults, writer, head = [], csv.writer(sys.stdout, lineterminator="\n"), False
    for one in predictions:
        best = list(zip(one.classes, one.probabilities, strict=True))
        if one.fault:
            faults.append(f"{one.file}: {one.fault}")
        if form == "json":
            fault = {"file": one.file, "fault": one.fault}
            print(json.dumps(fault if one.fault else {**one._asdict(), "fault": None}))
        elif one.fault:
            continue
        elif form == "csv":
            if not head:
                later = [f"{word}_{n}" for n in range(2, len(best) + 1) for word in ("class", "share")]
                writer.writerow(["file", "class", "share", *later])
                head = True
            writer.writerow([one.file, *(cell for name, p in best for cell in (name, f"{p:.6f}"))])
        else:
            print(f"{one.file}: {', '.join(f'{name} {p:.1%}' for name, p in best)}")
    if faults:
        raise UserError("\n".join([f"predict: {len(faults)} image(s) cannot be read:", *faults[:NAMED]]))
