"""Weights that FSDP2 shards over the processes: gathered for validation and checkpoints.

Without FSDP2 every process has all weights, and `Shards` does nothing. Tested on CPUs only (gloo).
"""

from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from meco_timm.networks import Stream


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor of a sharded one, gathered from all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def same_buffers(stream: Stream) -> None:
    """Copy the main process's batch-norm statistics to all: the evaluated weights are then the saved ones."""
    for buffer in stream.buffers():
        torch.distributed.broadcast(buffer, 0)


def match_layouts(module: nn.Module) -> None:
    """Give each gradient the strides of its parameter, as the buckets of DistributedDataParallel have them.

    A depthwise convolution on a CPU gives others in its dimension of size 1, and DDP would warn of every step.
    """
    for parameter in module.parameters():
        if parameter.requires_grad and 1 in parameter.shape:
            parameter.register_hook(partial(_with_strides, parameter.stride()))


def _with_strides(strides: tuple[int, ...], gradient: Tensor) -> Tensor:
    if gradient.stride() == strides or not gradient.is_contiguous():
        return gradient
    return gradient.as_strided(gradient.shape, strides)


def _match_states(optimizer: Any) -> None:
    """Give each state the strides of its parameter: torch's fused kernels would mistake the places of numbers that were
    saved in another memory format."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class Shards:
    """The weights of an objective. `stream`: its student; with FSDP2 an unsharded copy for evaluation."""

    def __init__(self, objective: nn.Module, accelerator: Accelerator):
        self.spread = accelerator.is_fsdp2
        if self.spread:
            accelerator.state.fsdp_plugin.mixed_precision_policy = None  # autocast, as elsewhere: norms stay float32
        self.stream: Stream = deepcopy(objective.student) if self.spread else objective.student  # type: ignore

    def gather(self, objective: nn.Module) -> Stream:
        """The student with its current weights; every process must call this."""
        if self.spread:
            student: Any = objective.student
            self.stream.load_state_dict({name: whole(tensor) for name, tensor in student.state_dict().items()})
        return self.stream

    def states(self, objective: nn.Module, optimizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """State dicts of (objective, optimizer); with FSDP2 gathered on the main process's CPU, called by all."""
        if not self.spread:
            return objective.state_dict(), optimizer.state_dict()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_state_dict(objective, optimizer.optimizer, options=options)

    def load(self, objective: nn.Module, optimizer: Any, weights: dict[str, Any], state: dict[str, Any]) -> None:
        """Load the state dicts that `states` returned."""
        if not self.spread:
            objective.load_state_dict(weights)
            optimizer.load_state_dict(state)
            _match_states(optimizer)
            return
        options = StateDictOptions(full_state_dict=True)
        set_state_dict(
            objective, optimizer.optimizer, model_state_dict=weights, optim_state_dict=state, options=options
        )
