"""9 · Weights that FSDP2 spreads over the processes: gathered where they are judged, kept and saved.

Elsewhere they lie whole in every process, and `Shards` does nothing. Run on CPUs only (gloo), never on GPUs.
"""

from copy import deepcopy
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from meco_timm.common import UserError
from meco_timm.networks import Stream
from meco_timm.recipe import Recipe


def check_launch(accelerator: Accelerator, recipe: Recipe) -> None:
    """Refuse what would save or judge parts of the weights for the whole.

    Raises:
        UserError: launched with DeepSpeed, Megatron or the first FSDP, or with FSDP2 and a moving average.
    """
    kind = accelerator.distributed_type
    first = kind == DistributedType.FSDP and not accelerator.is_fsdp2
    if first or kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UserError(
            f"accelerate: {kind.value}{' 1' if first else ''} is not supported. Use DDP (recipes/launch/ddp.yaml), or "
            "FSDP2 (recipes/launch/fsdp2.yaml) for a student too large for one device."
        )

    if accelerator.is_fsdp2 and (recipe.loop.ema or any(t.train and t.loop.ema for t in recipe.teachers)):
        raise UserError("loop.ema: is not there for weights spread by FSDP2. Write 0.")


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its parts."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def same_buffers(stream: Stream) -> None:
    """Give all processes the main one's batch-norm statistics: what is judged is then what is kept."""
    for buffer in stream.buffers():
        torch.distributed.broadcast(buffer, 0)


class Shards:
    """Weights of an objective, if sharded: `stream` is a whole copy of its student for evaluation."""

    def __init__(self, objective: nn.Module, accelerator: Accelerator):
        self.spread = accelerator.is_fsdp2
        if self.spread:
            accelerator.state.fsdp_plugin.mixed_precision_policy = None  # autocast, as elsewhere: norms stay float32
        self.stream: Stream = deepcopy(objective.student) if self.spread else objective.student  # type: ignore

    def gather(self, objective: nn.Module) -> Stream:
        """The student with the weights of now; every process must call it."""
        if self.spread:
            student: Any = objective.student
            self.stream.load_state_dict({name: whole(tensor) for name, tensor in student.state_dict().items()})
        return self.stream

    def states(self, objective: nn.Module, optimizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """(weights, optimizer) on the CPU, whole in the main process; every process must call it if sharded."""
        if not self.spread:
            return objective.state_dict(), optimizer.state_dict()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_state_dict(objective, optimizer.optimizer, options=options)

    def load(self, objective: nn.Module, optimizer: Any, weights: dict[str, Any], state: dict[str, Any]) -> None:
        """Put back what `states` gave."""
        if not self.spread:
            objective.load_state_dict(weights)
            optimizer.load_state_dict(state)
            return
        options = StateDictOptions(full_state_dict=True)
        set_state_dict(
            objective, optimizer.optimizer, model_state_dict=weights, optim_state_dict=state, options=options
        )
