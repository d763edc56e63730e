"""5 · Frozen means faster: what a network does without that is never trained again.

Branches that timm can merge are merged, and each batch norm that reads a convolution's output, and nothing else, is
folded into its weights: found by watching one forward, so any network will do. What comes out must be what came out
before, to `TOLERANCE` on random images, or the network stays as it was.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.utils import reparameterize_model
from torch import Tensor, nn

from meco_timm.networks import Stream

TOLERANCE = 1e-4  # largest difference, as a share of an output's largest value
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def freeze(stream: Stream, device: torch.device, precision: str | None = None) -> str:
    """Prepare a teacher for inference on `device`, in place, and say what was done to it.

    `precision`: of its weights; by default bf16 on a CUDA device that has it, else float32.
    """
    stream.to(device).eval()
    if precision is None:
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
    told = [_merged(stream), _folded(stream), _lowered(stream, precision)]
    stream.eval().requires_grad_(False).model.to(memory_format=torch.channels_last)
    return ", ".join(word for word in told if word) or "as it is"


def _merged(stream: Stream) -> str:
    """RepVGG, MobileOne, FastViT, LeViT and their like, in the form for inference."""
    words = ("fuse", "reparameterize", "switch_to_deploy")
    if not any(hasattr(module, word) for module in stream.model.modules() for word in words):
        return ""
    return _if_the_same(stream, reparameterize_model, "branches merged")


def _folded(stream: Stream) -> str:
    if not any(isinstance(module, nn.BatchNorm2d) for module in stream.model.modules()):
        return ""
    pairs = _pairs(stream)

    def fold(model: nn.Module) -> nn.Module:
        model = deepcopy(model)
        for norm, convolution in pairs.items():
            _fold(model, norm, convolution)
        return model

    return _if_the_same(stream, fold, f"{len(pairs)} batch norms folded") if pairs else ""


def _lowered(stream: Stream, precision: str) -> str:
    """Some networks compute a part in float32, whatever their weights are."""
    if precision == "no":
        return ""
    plain, stream.dtype = stream.model, PRECISIONS[precision]
    stream.model = deepcopy(plain).to(stream.dtype)
    try:
        if all(output.isfinite().all() for output in _on_probe(stream)):
            return precision
        told = "not finite"
    except RuntimeError as error:
        told = str(error).splitlines()[0]
    stream.model, stream.dtype = plain, torch.float32
    return f"not {precision} ({told})"


def _if_the_same(stream: Stream, change: Callable[[Any], Any], what: str) -> str:
    """Put the network, changed, in its place if it gives the same outputs."""
    plain, before = stream.model, _on_probe(stream)
    try:
        stream.model = change(plain)
        apart = max(_apart(a, b) for a, b in zip(_on_probe(stream), before, strict=True))
    except Exception as error:  # a network may lack what the change takes for granted; it then stays as it was
        told = f"{type(error).__name__}: {error}"
    else:
        if apart <= TOLERANCE:
            return f"{what} ({apart:.0e} apart)"
        told = f"{apart:.0e} apart"
    stream.model = plain
    return f"not {what} ({told})"


@torch.no_grad()
def _on_probe(stream: Stream) -> list[Tensor]:
    """All outputs on two random images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, stream.size, stream.size), generator=generator, dtype=torch.uint8)
    blocks, logits = stream(images.to(stream.mean.device))
    return [*blocks, *([] if logits is None else [logits])]


def _apart(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)).nan_to_num(torch.inf).item()


def _pairs(stream: Stream) -> dict[str, str]:
    """Names of batch norms, and of the convolutions whose output they read, both called once in a forward."""
    made: dict[int, tuple[str, Tensor]] = {}  # holds the outputs, so that no two have one id
    calls: list[str] = []
    pairs: dict[str, str] = {}

    def after_convolution(name: str, module: Any, inputs: Any, output: Tensor) -> None:
        calls.append(name)
        made[id(output)] = (name, output)

    def before_norm(name: str, module: Any, inputs: tuple[Tensor, ...]) -> None:
        calls.append(name)
        if id(inputs[0]) in made:
            pairs[name] = made[id(inputs[0])][0]

    hooks = []
    for name, module in stream.model.named_modules():
        if type(module) in (nn.Conv2d, Conv2dSame):
            hooks.append(module.register_forward_hook(partial(after_convolution, name)))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(partial(before_norm, name)))
    _on_probe(stream)
    for hook in hooks:
        hook.remove()
    return {norm: conv for norm, conv in pairs.items() if calls.count(norm) == calls.count(conv) == 1}


@torch.no_grad()
def _fold(model: nn.Module, name: str, of: str) -> None:
    """(w∗x + b − μ) · γ/√(σ² + ε) + β is one convolution; the norm's activation stays in its place."""
    norm: Any = model.get_submodule(name)
    convolution: Any = model.get_submodule(of)
    one = torch.ones_like(norm.running_mean)
    gain, shift = (one if norm.weight is None else norm.weight, 0 * one if norm.bias is None else norm.bias)
    scale = gain.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = -norm.running_mean.double() + (0 if convolution.bias is None else convolution.bias.double())
    weight = convolution.weight.double() * scale.view(-1, 1, 1, 1)
    convolution.weight = nn.Parameter(weight.to(convolution.weight.dtype), requires_grad=False)
    convolution.bias = nn.Parameter((bias * scale + shift).to(convolution.weight.dtype), requires_grad=False)
    rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    holder, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(holder), leaf, rest)
