"""Make teachers faster for inference: merge branches, fold batch norms, lower the precision.

Branches are merged by timm. A batch norm is folded into the convolution before it if it alone reads that convolution's
output; such pairs are found with hooks during one forward, so it works for any network. Each change is undone if the
outputs on random images differ by more than `TOLERANCE`.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from meco_timm.common import first_line
from meco_timm.networks import Stream

TOLERANCE = 1e-4  # largest difference, as a share of an output's largest value
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def freeze(stream: Stream, device: torch.device, precision: str | None = None) -> str:
    """Prepare a teacher for inference on `device`, in place; returns a description of the changes.

    `precision`: of the weights; by default bf16 on a CUDA device that supports it, else float32.
    """
    stream.to(device).eval()
    if precision is None:
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
    changes = [_merge_branches(stream), _fold_norms(stream), _lower_precision(stream, precision)]
    stream.eval().requires_grad_(False).model.to(memory_format=torch.channels_last)
    return ", ".join(change for change in changes if change) or "as it is"


def _merge_branches(stream: Stream) -> str:
    """Bring RepVGG, MobileOne, FastViT, LeViT and similar networks into their form for inference."""
    words = ("fuse", "reparameterize", "switch_to_deploy")
    if not any(hasattr(module, word) for module in stream.model.modules() for word in words):
        return ""
    return _apply_if_equal(stream, reparameterize_model, "branches merged")


def _fold_norms(stream: Stream) -> str:
    if not any(isinstance(module, nn.BatchNorm2d) for module in stream.model.modules()):
        return ""
    pairs = _pairs(stream)

    def fold(model: nn.Module) -> nn.Module:
        model = deepcopy(model)
        for norm, convolution in pairs.items():
            _fold(model, norm, convolution)
        return model

    return _apply_if_equal(stream, fold, f"{len(pairs)} batch norms folded") if pairs else ""


def _lower_precision(stream: Stream, precision: str) -> str:
    """Convert the weights, unless the network then fails: some compute a part in float32 in any case."""
    if precision == "no":
        return ""
    plain, stream.dtype = stream.model, PRECISIONS[precision]
    stream.model = deepcopy(plain).to(stream.dtype)
    try:
        if all(output.isfinite().all() for output in _probe(stream)):
            return precision
        reason = "not finite"
    except RuntimeError as error:
        reason = first_line(error)
    stream.model, stream.dtype = plain, torch.float32
    return f"not {precision} ({reason})"


def _apply_if_equal(stream: Stream, change: Callable[[Any], Any], what: str) -> str:
    """Replace the network by the changed one if both give the same outputs; returns what happened."""
    plain, before = stream.model, _probe(stream)
    try:
        stream.model = change(plain)
        difference = max(_difference(a, b) for a, b in zip(_probe(stream), before, strict=True))
    except Exception as error:  # the network may not support the change; it then stays as it was
        reason = f"{type(error).__name__}: {error}"
    else:
        if difference <= TOLERANCE:
            return f"{what} ({difference:.0e} apart)"
        reason = f"{difference:.0e} apart"
    stream.model = plain
    return f"not {what} ({reason})"


@torch.no_grad()
def _probe(stream: Stream) -> list[Tensor]:
    """All outputs on two random images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, stream.size, stream.size), generator=generator, dtype=torch.uint8)
    blocks, embedding, logits = stream(images.to(stream.mean.device))
    return [*blocks, *(output for output in (embedding, logits) if output is not None)]


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a share of the largest wanted value; inf if not finite."""
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)).nan_to_num(torch.inf).item()


def _pairs(stream: Stream) -> dict[str, str]:
    """Batch norm → convolution whose output it reads, by name; both are called once in a forward."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors alive, so that each has its own id
    calls: list[str] = []
    pairs: dict[str, str] = {}

    def after_convolution(name: str, module: Any, inputs: Any, output: Tensor) -> None:
        calls.append(name)
        outputs[id(output)] = (name, output)

    def before_norm(name: str, module: Any, inputs: tuple[Tensor, ...]) -> None:
        calls.append(name)
        if id(inputs[0]) in outputs:
            pairs[name] = outputs[id(inputs[0])][0]

    hooks = []
    for name, module in stream.model.named_modules():
        if type(module) in (nn.Conv2d, Conv2dSame):
            hooks.append(module.register_forward_hook(partial(after_convolution, name)))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(partial(before_norm, name)))
    _probe(stream)
    for hook in hooks:
        hook.remove()
    return {norm: conv for norm, conv in pairs.items() if calls.count(norm) == calls.count(conv) == 1}


@torch.no_grad()
def _fold(model: nn.Module, name: str, of: str) -> None:
    """Fold the batch norm `name` into the convolution `of`; the norm's activation stays in its place."""
    norm: Any = model.get_submodule(name)
    conv: Any = model.get_submodule(of)
    dtype, device = conv.weight.dtype, conv.weight.device
    fused = fuse_conv_bn_eval(conv.cpu().double(), norm.cpu().double()).to(device, dtype)  # MPS has no float64
    conv.weight, conv.bias = fused.weight, fused.bias
    norm.to(device, dtype)
    rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    holder, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(holder), leaf, rest)
