"""The `accelerate.Accelerator` of a run: devices, processes, precision and trackers."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend, GradientAccumulationPlugin
from torch import nn

from meco_timm.common import UserError, first_line, get_logger
from meco_timm.recipe import Loop

logger = get_logger(__name__)

COMPILE_STEPS = 10_000  # of a run on a GPU, from which it is longer than the minutes that compiling takes


def make_accelerator(
    precision: str | None = None, accumulation: int = 1, trackers: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """An accelerator as the launcher configured it. folder: of the trackers' files.

    Raises:
        UserError: a tracker is not installed, or the device does not support the precision.
    """
    # Our data loaders are not prepared by accelerate, so the end of a loader must not end an accumulation early.
    plugin = GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False)
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            gradient_accumulation_plugin=plugin,
            log_with=list(trackers) or None,
            project_dir=folder if trackers else None,
        )
    except (ValueError, ImportError) as error:  # an unknown tracker, an unsupported precision, DeepSpeed not installed
        raise UserError(f"trackers, precision: {error}") from error
    if accelerator.mixed_precision == "fp16" and not accelerator.native_amp:
        raise UserError("precision: fp16 needs a GPU; on this device it would be ignored. Write bf16 or no.")
    if missing := [name for name in trackers if name not in {str(t) for t in accelerator.log_with}]:
        raise UserError(f"trackers: {', '.join(missing)} cannot be used; is it installed? pip install {missing[0]}")
    _use_tensor_cores(accelerator)
    return accelerator


def _use_tensor_cores(accelerator: Accelerator) -> None:
    """On a CUDA device in mixed precision what stays float32 is multiplied in TF32, and cuDNN tries its algorithms. A
    run in float32 has torch's defaults."""
    if accelerator.device.type == "cuda":
        mixed = accelerator.mixed_precision != "no"
        torch.set_float32_matmul_precision("high" if mixed else "highest")
        torch.backends.cudnn.benchmark = mixed and not torch.are_deterministic_algorithms_enabled()


class Speed(NamedTuple):
    """What the rounding of a training depends on besides its recipe; a resumed training keeps it."""

    device: str
    precision: str
    channels_last: bool
    compiled: bool


def choose_speed(loop: Loop, steps: int, model: nn.Module, device: str, precision: str) -> Speed:
    """What `auto` means for a network: a function of these alone, never of a clock, so that runs repeat."""
    cuda = device == "cuda"
    layout, compiled = loop.channels_last, loop.compile
    if layout == "auto":
        layout = cuda and precision != "no" and is_convolutional(model)
    return Speed(device, precision, layout, cuda and steps >= COMPILE_STEPS if compiled == "auto" else compiled)


def is_convolutional(model: nn.Module) -> bool:
    """Whether convolutions look at neighbours, rather than only cut patches."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return any(k > s for layer in layers for k, s in zip(layer.kernel_size, layer.stride, strict=True))


def why_not_compiled(accelerator: Accelerator, backend: str) -> str:
    """Why this backend of `torch.compile` cannot be used here; nothing if it can: it then compiles a sum."""
    if accelerator.is_fsdp2:
        return "FSDP2 shards the network"
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        return "accelerate compiles the network itself"
    try:
        torch.compile(lambda x: x + x, backend=backend)(torch.ones(2, device=accelerator.device))
    except Exception as error:  # of torch, Triton or the compiler that is missing
        return first_line(error)
    return ""


def describe_processes(accelerator: Accelerator) -> str:
    """Number of processes and their device, and how to have more where a launcher was asked for more."""
    count, cuda = accelerator.num_processes, accelerator.device.type == "cuda"
    device = torch.cuda.get_device_name() if cuda else accelerator.device.type.upper()
    line = f"{count} process{'es' * (count > 1)} on {device}, {torch.get_num_threads()} thread(s) each"
    asked = _processes_asked_for()
    if count == 1 and asked > 1:
        line += (
            f". accelerate was asked for {asked} and started one: add --multi_gpu, also on a CPU, as in "
            f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {asked} train.py RECIPE"
        )
    return line


def _processes_asked_for() -> int:
    """The number after --num_processes in the command of `accelerate launch` that started this process, else 1."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return 1
    if not any("accelerate" in word for word in words) or "--num_processes" not in words[:-1]:
        return 1
    number = words[words.index("--num_processes") + 1]
    return int(number) if number.isdigit() else 1


def check_launch(accelerator: Accelerator, moving_average: bool) -> None:
    """Refuse launches with which only parts of the weights would be saved or evaluated.

    Raises:
        UserError: launched with DeepSpeed, Megatron or the first FSDP, or with FSDP2 and a moving average of weights.
    """
    kind = accelerator.distributed_type
    first = kind == DistributedType.FSDP and not accelerator.is_fsdp2
    if first or kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UserError(
            f"accelerate: {kind.value}{' 1' if first else ''} is not supported. Use DDP (recipes/launch/ddp.yaml), or "
            "FSDP2 (recipes/launch/fsdp2.yaml) for a student too large for one device."
        )
    if accelerator.is_fsdp2 and moving_average:
        raise UserError("loop.ema: not supported with FSDP2. Write 0.")
