"""Check the batches of a task: shapes, class numbers, normalisation."""

from torch import Tensor

from meco_timm.common import UserError, get_logger
from meco_timm.networks import Stream

logger = get_logger(__name__)

OUTSIDE = 0.05  # allowed share of values that no image can have: random erasing writes a few


def check_shapes(input: Tensor, target: Tensor, student: Stream) -> None:
    """Raises: UserError: the batch is not what the student takes; costs nothing on a GPU."""
    size, count = student.size, student.model.num_classes
    if not isinstance(input, Tensor):
        raise UserError(f"input: {type(input).__name__}, but a task takes images, one tensor B×3×H×W.")
    if input.ndim != 4 or input.shape[2:] != (size, size):
        raise UserError(
            f"input: {' × '.join(map(str, input.shape))}, but the student's images are {size} × {size}. Give the "
            "loader's data_config to EnsembleDistillation."
        )
    if len(target) != len(input):
        raise UserError(f"target: of {len(target)} images, but the input has {len(input)}.")
    if target.ndim == 2 and count and target.shape[1] != count:
        raise UserError(
            f"target: shares of {target.shape[1]} classes, but the student has {count}. Create it with "
            f"num_classes={target.shape[1]}."
        )


def check_labels(target: Tensor, student: Stream) -> None:
    """Raises: UserError: a class number that the student does not have; waits for a GPU."""
    count, highest = student.model.num_classes, int(target.max()) if target.ndim == 1 and len(target) else -1
    if highest >= count:
        raise UserError(
            f"target: class {highest}, but the student has {count} classes, 0 to {count - 1}. Create it with "
            "num_classes of the data set."
        )


def is_normalised(input: Tensor, student: Stream) -> bool:
    """Whether images normalised with the student's mean and std can have these values; warns if not. Reads the GPU."""
    mean, std = student.mean, student.std
    low, high = -mean / std, (1 - mean) / std
    slack = 1e-2 * (high - low)
    outside = ((input < low - slack) | (input > high + slack)).float().mean().item()
    smallest, largest = (x.item() for x in input.aminmax())
    raw = smallest >= 0 and largest <= 1 and low.min().item() < 0  # no pixel darker than the mean
    if outside <= OUTSIDE and not raw:
        return True
    found = f"its values are {smallest:.2f} to {largest:.2f}"
    numbers = [", ".join(f"{value:.3g}" for value in values.flatten().tolist()) for values in (mean, std)]
    announced = f"mean {numbers[0]} and std {numbers[1]} allow {low.min():.2f} to {high.max():.2f}"
    hint = "It looks as if it were not normalised." if raw or largest > 50 else "Is it normalised otherwise?"
    logger.warning(f"input: {found}, but {announced}. {hint} Give the loader's data_config to EnsembleDistillation.")
    return False
