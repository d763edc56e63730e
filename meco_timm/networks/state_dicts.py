"""Read state dicts without running code."""

import re
from pathlib import Path

from timm.models import load_state_dict
from torch import Tensor

from meco_timm.common import UserError, first_line, located


def read_weights(file: str, role: str) -> dict[str, Tensor]:
    """The tensors in a file.

    Raises:
        UserError: there is no such file, or it holds something else than a state dict.
    """
    if not Path(file).is_file():
        raise UserError(f"{role}.weights: there is no file {located(file)}.")
    try:
        state = load_state_dict(file, weights_only=True)
        if not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise TypeError
    except (TypeError, AttributeError):
        raise UserError(f"{role}.weights: {file} holds no state dict. Save the network's state_dict().") from None
    except Exception as error:
        if "weights_only" in str(error):
            named = re.search(r"(?:Unsupported globals: |GLOBAL )(\S+)", str(error))
            what = f" ({named[1].rstrip('.,')})" if named else ""
            reason = f"holds more than tensors{what}, and loading it could run code. Save its state_dict() alone."
        else:
            reason = f"cannot be read: it is damaged, or not a state dict ({first_line(error)})."
        raise UserError(f"{role}.weights: {file} {reason}") from error
    return state
