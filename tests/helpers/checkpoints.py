"""Checkpoints of small networks with random weights: there is no network in tests to download any."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2}  # for deit_tiny_patch16_224, which has one input size only


def network(name: str, classes: int, seed: int = 0, **args: Any) -> Any:
    """A timm network with random weights that keep a signal's size, so that other images have quite other logits.

    As timm initialises them, many untrained networks say the same of all images to five digits.
    """
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=classes, **args).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        if norms:
            size = args.get("img_size", 64)
            model(torch.randn(8, args.get("in_chans", 3), size, size))
    return model.eval()


def local_dir(
    folder: Path, model: nn.Module, names: list[str] | None = None, data_config: dict[str, Any] | None = None
) -> str:
    """The network as a timm checkpoint in `folder`, as a recipe names it."""
    config = {"label_names": names} if names else {}
    save_for_hf(model, str(folder), model_config=config, safe_serialization=True, data_config=data_config)
    return f"local-dir:{folder}"


def random_images(size: int, count: int = 2, seed: int = 0) -> Tensor:
    """Noise, uint8, count×3×size×size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
