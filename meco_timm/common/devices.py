"""Copies to an accelerator that do not wait for it. torch is not imported here: tensors bring their methods along."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def upload(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """A CPU tensor on `device`. A GPU copies it from pinned memory while both go on; a plain `.to` would wait."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
