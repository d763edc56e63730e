"""The `accelerate.Accelerator` of a run: devices, processes, precision and trackers."""

from collections.abc import Sequence
from pathlib import Path

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
