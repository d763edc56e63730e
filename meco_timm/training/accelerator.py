"""The `accelerate.Accelerator` of a run: devices, processes, precision and trackers."""

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from meco_timm.common import UserError
from meco_timm.recipe import Recipe


def make_accelerator(recipe: Recipe) -> Accelerator:
    """An accelerator as the launcher configured it, with the recipe's precision, accumulation and trackers.

    Raises:
        UserError: a tracker is not installed, or the device does not support the precision.
    """
    # Our data loaders are not prepared by accelerate, so the end of a loader must not end an accumulation early.
    accumulation = GradientAccumulationPlugin(num_steps=recipe.loop.accumulation, sync_with_dataloader=False)
    try:
        accelerator = Accelerator(
            mixed_precision=recipe.precision,
            gradient_accumulation_plugin=accumulation,
            log_with=list(recipe.trackers) or None,
            project_dir=Path(recipe.run or "run") / "trackers" if recipe.trackers else None,
        )
    except (ValueError, ImportError) as error:  # an unknown tracker, an unsupported precision, DeepSpeed not installed
        raise UserError(f"trackers, precision: {error}") from error
    if accelerator.mixed_precision == "fp16" and not accelerator.native_amp:
        raise UserError("precision: fp16 needs a GPU; on this device it would be ignored. Write bf16 or no.")
    if missing := [name for name in recipe.trackers if name not in {str(t) for t in accelerator.log_with}]:
        raise UserError(f"trackers: {', '.join(missing)} cannot be used; is it installed? pip install {missing[0]}")
    return accelerator
