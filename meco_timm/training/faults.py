"""Faults of the machinery that are no bugs, told in words: a full disk, a dead loader, a lost process."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from meco_timm.common import UserError

DISK_FAULTS = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "EACCES", "EPERM")}
GO_ON = "the same command goes on from the last checkpoint."


@contextmanager
def faults_told(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Say what a fault means and that nothing is lost; what is not known here stays as it is.

    Raises:
        UserError: instead of the disk's, the loaders' or the network's error.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        told = _of_disk(error, folder) or _of_loader(error) or _of_process(error, accelerator.num_processes)
        if told is None:
            raise
        raise UserError(told) from error


def _of_disk(error: Exception, folder: Path) -> str | None:
    of_safetensors = isinstance(error, SafetensorError) and "os error" in str(error)
    if not of_safetensors and getattr(error, "errno", None) not in DISK_FAULTS:
        return None
    where, why = getattr(error, "filename", None) or folder, getattr(error, "strerror", None) or error
    return f"run: {where} cannot be written: {why}. Make room or mend it; {GO_ON}"


def _of_loader(error: Exception) -> str | None:
    if "DataLoader worker" not in str(error):
        return None
    return f"data.workers: a loader process died ({_first_line(error)}). Was it out of memory? Write fewer; {GO_ON}"


def _of_process(error: Exception, processes: int) -> str | None:
    """A process that waits for one that died gets a message of the network's."""
    if processes == 1 or not any(word in str(error).lower() for word in ("peer", "nccl", "gloo")):
        return None
    return f"run: another process was lost ({_first_line(error)}). The first message says why; {GO_ON}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
