"""What cannot work, found with networks that have no weights."""

import torch

from meco_timm.common import UserError, is_object
from meco_timm.networks import Stream
from meco_timm.recipe import Loop, Recipe


def check_function(recipe: Recipe) -> None:
    """Raises: UserError: the recipe names a function of a Python program, which is not there."""
    if is_object(recipe.losses.similarity) and recipe.losses.object is None:
        raise UserError(
            f"losses.similarity: {recipe.losses.similarity} is a function of a Python program. Give it to `distill` "
            "again, as `similarity`."
        )


def check_batch_norms(recipe: Recipe, student: Stream, teachers: dict[str, Stream]) -> None:
    """Refuse one image per step for a network with a batch norm that would have one value per channel to normalise.

    Raises:
        UserError: names the batch size that is too small.
    """
    _check_batch_norm(student, recipe.loop, "loop")
    for i, (teacher, stream) in enumerate(zip(recipe.teachers, teachers.values(), strict=True)):
        if teacher.train:
            _check_batch_norm(stream, teacher.loop, f"teachers.{i}.loop")


@torch.no_grad()
def _check_batch_norm(stream: Stream, loop: Loop, key: str) -> None:
    if loop.batch_size > 1:
        return
    try:
        stream.train()(torch.zeros(1, 3, stream.size, stream.size, device=stream.mean.device))
    except ValueError as error:
        if "value per channel" not in str(error):
            raise
        raise UserError(
            f"{key}.batch_size: 1 image of {stream.size} px gives a batch norm of {type(stream.model).__name__} one "
            "value per channel, which cannot be normalised. Write 2 or more."
        ) from None
    finally:
        stream.eval()
