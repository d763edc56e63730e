"""Save a network as a timm checkpoint, as `timm.create_model("local-dir:…", pretrained=True)` reads it."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf

from meco_timm.common import move_into_place, unfinished, write_content, write_json
from meco_timm.networks.streams import Stream
from meco_timm.recipe import Data

# Keys of timm's config that describe this checkpoint; the others are of the tag that the network was created from.
OWN_KEYS = {
    "tag", "custom_load", "num_classes", "input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode",
    "mean", "std", "pool_size", "first_conv", "classifier",
}  # fmt: skip

BACKGROUND = "transparent images on "  # in the `notes` of timm's config; white where there is none


def background_of(model: Any) -> tuple[int, ...]:
    """Red, green and blue of what a network has seen below transparent images."""
    notes = [note for note in model.pretrained_cfg.get("notes") or () if note.startswith(BACKGROUND)]
    return tuple(map(int, notes[0].removeprefix(BACKGROUND).split(","))) if notes else (255, 255, 255)


def export(stream: Stream, folder: Path, classes: list[str], data: Data, extra: dict[str, Any]) -> None:
    """Write the stream's network as a timm checkpoint in `folder`, atomically.

    classes: names of the K classes. data: interpolation and crop of the evaluation. extra: further files by name, with
    text, bytes or JSON values.

    Raises:
        OSError: the folder cannot be written.
    """
    beside = unfinished(folder)
    shutil.rmtree(beside, ignore_errors=True)
    model = deepcopy(stream.model).to(device="cpu", dtype=torch.float32).to(memory_format=torch.contiguous_format)
    channels = stream.mean.shape[1]
    data_config = {
        "input_size": (channels, stream.size, stream.size),
        "mean": stream.data_config["mean"],
        "std": stream.data_config["std"],
        "interpolation": data.interpolation,
        "crop_pct": data.crop_pct,
        "crop_mode": "center",
    }
    save_for_hf(
        model,
        beside,
        model_config={"label_names": classes, "pretrained_cfg": {"tag": "meco"}},
        safe_serialization=True,
        data_config=data_config,
    )
    config = json.loads((beside / "config.json").read_text())
    config["pretrained_cfg"] = {k: v for k, v in config["pretrained_cfg"].items() if k in OWN_KEYS}
    if data.background != [255, 255, 255]:
        config["pretrained_cfg"]["notes"] = [f"{BACKGROUND}{','.join(map(str, data.background))}"]
    write_json(beside / "config.json", config)
    for name, content in extra.items():
        write_content(beside / name, content)
    move_into_place(beside, folder)
