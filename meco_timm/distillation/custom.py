"""A similarity of logits that a Python caller gives as a function, in place of `losses.similarity`."""

import hashlib
import inspect
from typing import Any

import torch

from meco_timm.common import UserError, object_name


def similarity_name(function: Any) -> str:
    """`object:NAME@DIGEST` of a function: a digest of its source, else of its code or of what it prints.

    Functions that it calls are not part of the digest.
    """
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        text = f"{code.co_code.hex()} {code.co_names}" if code else repr(function)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return object_name(getattr(function, "__name__", type(function).__name__), digest)


def check_similarity(function: Any) -> None:
    """Raises: UserError: it does not make one number with a gradient out of the teacher's and the student's logits."""
    teacher, student = torch.randn(2, 3), torch.randn(2, 3, requires_grad=True)
    how = "Write a function of the teacher's and the student's logits, B×K each, that returns the batch's mean."
    try:
        found = function(teacher, student)
    except Exception as error:  # whatever a function of the caller's raises
        raise UserError(f"similarity: it fails for logits 2×3: {type(error).__name__}: {error}. {how}") from error
    if not isinstance(found, torch.Tensor) or found.ndim:
        what = f"a tensor {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise UserError(f"similarity: it gives {what}, not one number. {how}")
    if not found.requires_grad:
        raise UserError(f"similarity: its number has no gradient to the student's logits. {how}")
