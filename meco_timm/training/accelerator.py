"""The `accelerate.Accelerator` of a run: devices, processes, precision and trackers."""

import os
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin

from meco_timm.common import UserError


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
    return accelerator


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
