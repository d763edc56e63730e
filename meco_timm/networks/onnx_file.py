"""Write a network as an ONNX file."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meco_timm.common import UserError, first_line, require_extra, unfinished
from meco_timm.networks.streams import Stream

IMAGE, LOGITS = "pixel_values", "logits"  # names of the input and output, as transformers.js wants them
LARGEST = 2**31  # bytes of a protobuf file


class WithPreprocessing(nn.Module):
    """A network whose input is an RGB image in [0, 1] of its own size, B×3×H×W."""

    def __init__(self, stream: Stream):
        super().__init__()
        self.stream = stream

    def forward(self, image: Tensor) -> Tensor:
        return self.stream.model(self.stream.prepare(image))


def write_onnx(stream: Stream, file: Path, classes: list[str] | None, preprocess: bool = False) -> None:
    """Write the stream's network as an ONNX file with a dynamic batch size.

    Input `pixel_values`: float B×C×H×W, normalised; with `preprocess` RGB in [0, 1]. Output `logits`: B×K.
    Size, crop, interpolation, mean, std and the class names are metadata of the file.

    Raises:
        UserError: the extra `export` is not installed, or torch cannot export this network.
    """
    require_extra("export", "onnx", "onnxscript")
    if stream.parameter_count * 4 > LARGEST:
        raise UserError(f"export: a network of {stream.parameter_count / 1e6:.0f} M parameters exceeds 2 GiB.")
    stream = stream.cpu().float().eval()
    channels = 3 if preprocess else stream.mean.shape[1]
    network: Any = WithPreprocessing(stream) if preprocess else stream.model
    example = torch.rand(2, channels, stream.size, stream.size)
    try:
        program = _export(network, example)
    except Exception as error:
        raise UserError(
            f"export: torch cannot export {type(stream.model).__name__} to ONNX: {_reason(error)}"
        ) from error
    program.model.metadata_props.update(_metadata(stream, classes, preprocess))
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = unfinished(file)
    program.save(beside)
    beside.replace(file)


def _export(network: nn.Module, example: Tensor) -> Any:
    """Export; where the exporter fails at a fused attention, as that of Hiera's 5 dimensions, again without it."""
    fused = [module for module in network.modules() if getattr(module, "fused_attn", False)]
    try:
        return _export_as_it_is(network, example)
    except Exception:
        if not fused:
            raise
    for module in fused:
        module.fused_attn = False  # type: ignore[assignment]
    return _export_as_it_is(network, example)


@torch.no_grad()
def _export_as_it_is(network: nn.Module, example: Tensor) -> Any:
    """Export with a dynamic batch; the exporter's own messages are not shown."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network, (example,), dynamo=True, verbose=False, input_names=[IMAGE], output_names=[LOGITS],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    assert program is not None
    return program


def _reason(error: Exception) -> str:
    """The first line of the exporter's innermost error that says what is wrong."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"


def _metadata(stream: Stream, classes: list[str] | None, preprocess: bool) -> dict[str, str]:
    """What the caller needs to prepare images and to name classes, as JSON values."""
    config = stream.data_config
    values = {
        "input_size": [3 if preprocess else stream.mean.shape[1], stream.size, stream.size],
        "interpolation": config["interpolation"],
        "crop_pct": config["crop_pct"],
        "crop_mode": config.get("crop_mode", "center"),
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "normalised_inside": preprocess,
        "classes": classes,
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
