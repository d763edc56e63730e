"""How a network wants its images: timm's data config."""

from typing import Any

from timm.data import resolve_data_config
from timm.models import get_model_input_config

from meco_timm.common import UserError


def data_config(model: Any, role: str, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """timm's data config; with one mean and std for a network of grey images. `given`: its keys that differ."""
    config = resolve_data_config(given, pretrained_cfg=model.pretrained_cfg, model=model)
    channels = get_model_input_config(model)["input_size"][0]
    if channels not in (1, 3):
        raise UserError(f"{role}: the network takes images of {channels} channels; they can have 3, or 1 (grey).")
    for key in ("mean", "std"):
        if len(config[key]) != channels:
            config[key] = (sum(config[key]) / len(config[key]),) * channels
    return config
