"""Image classifiers of torchvision and transformers as teachers, by the conventions of their own library.

torchvision:resnet50@IMAGENET1K_V2     weights by their name; size, mean and std of the weights' transforms
transformers:owner/name or a folder    size, mean and std of its image processor; classes of `id2label`

Of both only the logits are used. A checkpoint of timm in transformers is the timm network in it, with blocks.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torchvision.models as vision
from torch import Tensor, nn

from meco_timm.common import UserError, did_you_mean, first_line
from meco_timm.networks.state_dicts import read_weights
from meco_timm.recipe import Network

TORCHVISION, TRANSFORMERS = "torchvision:", "transformers:"
IMAGENET = 1000  # classes, which are in ImageNet's order in every library
Made = tuple[Any, dict[str, Any]]  # the network, and keys of timm's data config


class LogitsOnly(nn.Module):
    """A module of which only `forward` is used, with the attributes that streams read from a timm network."""

    feature_info = ()

    def __init__(self, network: nn.Module, classes: int, config: dict[str, Any]):
        super().__init__()
        self.network, self.num_classes = network, classes
        self.pretrained_cfg = {"num_classes": classes, **config}

    def forward(self, x: Tensor) -> Tensor:
        """x B×3×H×W, normalised → logits B×K."""
        return logits_in(self.network(x))


def logits_in(output: Any) -> Any:
    """The logits of transformers' outputs; anything else as it is."""
    return getattr(output, "logits", output)


def is_foreign(name: str) -> bool:
    """Whether it names a network of another library."""
    return name.startswith((TORCHVISION, TRANSFORMERS))


def make_foreign(
    network: Network, pretrained: bool, size: int | None, role: str, weightless: bool = False
) -> tuple[Any, int]:
    """As `make_network`, of another library: (the network, its input size in pixels)."""
    library, _, name = network.model.partition(":")
    make = _from_torchvision if f"{library}:" == TORCHVISION else _from_transformers
    load = pretrained and not (network.weights or weightless)
    model, config = make(name, network.args, load, role, "meta" if weightless else "cpu")
    if network.weights and not weightless:
        _load(model, network, role)
    own = config["input_size"][-1]
    if hasattr(model, "forward_intermediates"):
        return model, size or own
    classes = config.pop("num_classes")
    return LogitsOnly(model, classes, config | {"input_size": (3, size or own, size or own)}), size or own


def adapt_module(module: nn.Module) -> Made:
    """A network that the caller has, and what its library knows of its input and classes."""
    library = sys.modules.get("transformers")
    if library is None or not isinstance(module, library.PreTrainedModel):
        return module, {}
    model, config = _opened(module)
    if "mean" not in config and (place := getattr(module, "name_or_path", "")):
        try:
            config = _processed(place, None) | config
        except (OSError, ValueError):  # it was not saved with an image processor, or cannot be reached
            return model, config
    return model, config


def _from_torchvision(name: str, args: dict[str, Any], load: bool, role: str, device: str) -> Made:
    architecture, _, tag = name.partition("@")
    known = vision.list_models(module=vision)
    if architecture not in known:
        raise UserError(f"{role}: torchvision has no classifier {architecture!r}.{did_you_mean(architecture, known)}")
    weights: Any = vision.get_model_weights(architecture)
    tags = list(weights.__members__)
    if tag not in tags:
        what = f"has no weights {tag!r}" if tag else "is named without its weights"
        hint = did_you_mean(tag, tags) or f" Write {TORCHVISION}{architecture}@{tags[0]}."
        raise UserError(f"{role}: torchvision's {architecture} {what}.{hint} It has {', '.join(tags)}.")
    try:
        with torch.device(device):
            model = vision.get_model(architecture, weights=weights[tag] if load else None, **args)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{role}: {TORCHVISION}{name} cannot be made: {first_line(error)}") from error
    transforms, names = weights[tag].transforms(), weights[tag].meta["categories"]
    side = transforms.crop_size[0]
    config = {
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "interpolation": transforms.interpolation.value,
    }
    return model.eval(), {**config, "input_size": (3, side, side), "num_classes": len(names), **_labels(names)}


def _from_transformers(name: str, args: dict[str, Any], load: bool, role: str, device: str) -> Made:
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError:
        raise UserError(
            f"{role}: {TRANSFORMERS}{name} needs a library that is not installed: pip install transformers"
        ) from None
    place, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        if load:
            module = AutoModelForImageClassification.from_pretrained(place, **options, **args)
        else:
            config = AutoConfig.from_pretrained(place, **options, **args)
            with torch.device(device):
                module = AutoModelForImageClassification.from_config(config)
        model, found = _opened(module.eval())
        return model, _processed(place, options) | found
    except (OSError, ValueError, ImportError, RuntimeError, TypeError) as error:
        raise UserError(f"{role}: {TRANSFORMERS}{name} cannot be loaded: {first_line(error)}") from error


def _opened(module: Any) -> Made:
    """A classifier of transformers, or the timm network in it, and its classes."""
    names = [module.config.id2label[i] for i in range(module.config.num_labels)]
    inner = getattr(module, "timm_model", None)
    if inner is None:
        return module, {"num_classes": len(names), **_labels(names)}
    inner.pretrained_cfg = {**inner.pretrained_cfg, **_labels(names)}
    _, side, _ = inner.pretrained_cfg["input_size"]
    return inner, {"mean": inner.pretrained_cfg["mean"], "input_size": (3, side, side)}


def _labels(names: list[str]) -> dict[str, Any]:
    """ImageNet's classes are found by timm's names for them, which have several words each."""
    return {} if len(names) == IMAGENET else {"label_names": names}


def _processed(place: str, options: dict[str, Any] | None) -> dict[str, Any]:
    """What an image processor does, as timm's data config.

    Raises:
        ValueError: it scales pixels otherwise than from 0 to 255 to 0 to 1, or names no size.
    """
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(place, **(options or {}))
    if not hasattr(processor, "image_mean"):  # of a timm checkpoint, whose network has it
        return {}
    scale = processor.rescale_factor * 255 if processor.do_rescale else 255
    if abs(scale - 1) > 1e-3 or getattr(processor, "rescale_offset", None):
        raise ValueError(f"its image processor scales pixels by {scale / 255:.4g}, not by 1/255")
    size = processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size
    sides = size if isinstance(size, dict) else vars(size)
    side = sides.get("height") or sides.get("shortest_edge")
    if not side or sides.get("width", side) not in (None, side):
        raise ValueError(f"its image processor has no square size, but {sides}")
    normalised = processor.do_normalize
    mean, std = (processor.image_mean, processor.image_std) if normalised else ([0.0] * 3, [1.0] * 3)
    return {"mean": tuple(mean), "std": tuple(std), "input_size": (3, side, side)}


def _load(model: nn.Module, network: Network, role: str) -> None:
    try:
        model.load_state_dict(read_weights(network.weights or "", role))
    except RuntimeError as error:
        raise UserError(f"{role}.weights: {network.weights} does not fit: {first_line(error)}") from error
