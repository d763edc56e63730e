"""Failures of the environment as messages for the user: a full disk, a dead loader process, a lost process."""

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError
from torch.utils.data._utils import signal_handling

from meco_timm.common import UserError, first_line

DISK_FAULTS = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "EACCES", "EPERM")}
CONTINUE = "the same command continues from the last checkpoint."


@contextmanager
def explain_faults(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Turn known failures into messages that say what to do; other exceptions are raised unchanged.

    Raises:
        UserError: instead of the exception of the disk, the data loader or the network.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        message = _of_disk(error, folder) or _of_loader(error) or _of_process(error, accelerator.num_processes)
        if message is None:
            raise
        if _of_loader(error):
            _ignore_dead_loaders()
        raise UserError(message) from error


def _ignore_dead_loaders() -> None:
    """torch's handler raises at any moment for each loader process that dies, also while the message is printed. The
    next `DataLoader` installs it again."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal_handling._SIGCHLD_handler_set = False


def _of_disk(error: Exception, folder: Path) -> str | None:
    of_safetensors = isinstance(error, SafetensorError) and "os error" in str(error)
    if not of_safetensors and getattr(error, "errno", None) not in DISK_FAULTS:
        return None
    where, why = getattr(error, "filename", None) or folder, getattr(error, "strerror", None) or error
    return f"run: {where} cannot be written: {why}. Free disk space or fix the permissions; {CONTINUE}"


def _of_loader(error: Exception) -> str | None:
    if "DataLoader worker" not in str(error):
        return None
    reason = first_line(error)
    return f"data.workers: a loader process died ({reason}). If memory ran out, write a smaller number; {CONTINUE}"


def _of_process(error: Exception, processes: int) -> str | None:
    """A process that waits for a dead one gets an exception of the communication library."""
    if processes == 1 or not any(word in str(error).lower() for word in ("peer", "nccl", "gloo")):
        return None
    return f"run: another process was lost ({first_line(error)}). Its own message has the cause; {CONTINUE}"
