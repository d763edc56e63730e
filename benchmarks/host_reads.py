"""Where would a step wait for a GPU? Counted on a CPU: tensors that would be on the GPU carry a mark, and every call
that hands a value of theirs to the host, or copies to them without pinned memory, is written down with its place.

A function mode sees what Python calls: methods and functions of torch, not the autograd engine's own work. On a real
GPU `torch.cuda.set_sync_debug_mode` sees more.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_iter

DEVICE = torch.device("cpu", 0)  # stands for a GPU; the host is "cpu" without a number
READS = {
    "item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__", "is_nonzero",
    "equal", "allclose", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount",
}  # fmt: skip  # by name: each needs a value of the GPU's before the host can go on


class HostReads(TorchFunctionMode):
    """While it is active, `found` collects "call at file:line" for each read of a marked tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def mark(self, *values: Any) -> None:
        """These tensors, and those of these modules, are on the GPU."""
        for value in values:
            tensors = [*value.parameters(), *value.buffers()] if isinstance(value, nn.Module) else tree_iter(value)
            for tensor in tensors:
                if isinstance(tensor, Tensor):
                    tensor.__dict__["_on_gpu"] = True  # where `_on_gpu` looks

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = (resolve_name(function) or getattr(function, "__name__", "")).rpartition(".")[2]
        if function == Tensor.device.__get__ and _on_gpu(args):
            return DEVICE
        asked = _asked(args, kwargs)
        here = _on_gpu((args, kwargs))
        asked = DEVICE if here and name == "to" and _within_torch() else asked
        if here and (name in READS or (name == "to" and asked == torch.device("cpu")) or _by_mask(name, args)):
            self._note(name)
        elif not here and asked == DEVICE and not kwargs.get("non_blocking") and name in ("to", "tensor", "as_tensor"):
            self._note(f"{name} (a copy that waits)")
        result = function(*args, **kwargs)
        goes = asked == torch.device("cpu") or name in READS - {"nonzero", "unique", "masked_select", "bincount"}
        if asked == DEVICE or (here and not goes):
            if any(result is argument for argument in args) and not here:
                result = result.view_as(result)  # a copy on a GPU; the host's tensor keeps no mark
            self.mark(result)
        return result

    def _note(self, name: str) -> None:
        caller = [frame for frame in _callers() if "/torch/" not in frame.filename][-1]
        self.found.append(f"{name} at {caller.filename.rpartition('/')[2]}:{caller.lineno}")


def _callers() -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_stack() if frame.filename != __file__]


def _within_torch() -> bool:
    """torch groups the tensors of a list by their true device, and moves results there."""
    return "/torch/" in _callers()[-1].filename


def _on_gpu(values: Any) -> bool:
    return any(isinstance(value, Tensor) and "_on_gpu" in value.__dict__ for value in tree_iter(values))


def _asked(args: Any, kwargs: Any) -> torch.device | None:
    """The device that a call names."""
    named = (kwargs.get("device"), *args)
    device = next((value for value in named if isinstance(value, torch.device | str)), None)
    if isinstance(device, str):
        return torch.device("cpu") if device == "cpu" else None
    return device


def _by_mask(name: str, args: Any) -> bool:
    """Indexing with booleans has to count them."""
    if name not in ("__getitem__", "__setitem__"):
        return False
    indices = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


@contextmanager
def counted(*on_gpu: Any) -> Iterator[list[str]]:
    """The reads within the block; `on_gpu`: modules and tensors that are on the GPU when it begins."""
    mode = HostReads()
    mode.mark(*on_gpu)
    with mode:
        yield mode.found
