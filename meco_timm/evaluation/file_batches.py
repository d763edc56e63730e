"""Run a timm network on image files, as its own transform shows them."""

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from meco_timm.common import UserError, expand, located
from meco_timm.data import decode_file, image_files
from meco_timm.evaluation.own_run import find_network
from meco_timm.networks import background_of, data_config, make_network
from meco_timm.recipe import Network


class FileNetwork(NamedTuple):
    """A network on its device, its transform, the channels of its images, and what lies below transparent ones."""

    model: Any
    transform: Any
    channels: int
    background: tuple[int, ...]


def load_file_network(model: str, command: str) -> FileNetwork:
    """Load a network by a timm name, `hf-hub:`, `local-dir:` or the folder of a run. command: for messages.

    Raises:
        UserError: it cannot be loaded.
    """
    name, _ = find_network(model, command)
    network, size = make_network(Network(model=name), {}, True, None, command)
    config = data_config(network, command)
    channels = len(config["mean"])
    transform = create_transform(**config | {"input_size": (channels, size, size)}, is_training=False)
    background = background_of(network)
    return FileNetwork(network.to(PartialState().device).eval(), transform, channels, background)


def list_files(paths: list[str], command: str) -> list[str]:
    """The image files, and all images in folders; `-` stands for a list on standard input, one path a line.

    Raises:
        UserError: a path is not there, or a folder holds no images.
    """
    files = []
    for path in paths:
        given = [line for line in sys.stdin.read().splitlines() if line] if path == "-" else [path]
        files += [file for one in given for file in _list_one(Path(expand(one)), command)]
    return files


def _list_one(place: Path, command: str) -> list[str]:
    if place.is_file():
        return [str(place)]
    if not place.is_dir():
        raise UserError(f"{command}: there is no file or folder {located(place)}.")
    found = image_files(place)
    if not found:
        raise UserError(f"{command}: the folder {place} holds no images.")
    return found


@torch.no_grad()
def outputs_of_files(
    network: FileNetwork, function: Callable[[Tensor], Tensor], files: list[str], batch_size: int
) -> Iterator[tuple[str, Tensor | str]]:
    """Yield each file with the function's output for it, float32 on the CPU, or with why it cannot be read.

    function: of a batch of images as the transform gives them; one output for each.
    """
    waiting, device = iter(files), PartialState().device
    while batch := list(islice(waiting, batch_size)):
        images = {file: _read_image(file, network) for file in batch}
        readable = [image for image in images.values() if isinstance(image, Tensor)]
        outputs: Iterator[Tensor] = iter(function(torch.stack(readable).to(device)).float().cpu() if readable else [])
        for file, image in images.items():
            yield file, next(outputs) if isinstance(image, Tensor) else image


def _read_image(file: str, network: FileNetwork) -> Tensor | str:
    """The image as the network takes it, or why it cannot be read."""
    try:
        image = decode_file(file, network.background)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error).rstrip(".")
    return network.transform(image.convert("L") if network.channels == 1 else image)
