"""Files that are whole or not there: written beside their place, flushed, renamed."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from meco_timm.errors import UserError

DISK_FAULTS = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "EACCES", "EPERM")}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    _flush(beside)
    beside.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def move_into_place(beside: Path, folder: Path) -> None:
    """Rename a finished folder to its name, in place of an older one."""
    for file in beside.iterdir():
        _flush(file)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def digest_of(path: Path) -> str:
    """Sixteen hexadecimal digits of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=8)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def disk_faults_told(folder: Path) -> Iterator[None]:
    """A full or read-only disk is no bug: say where, and that nothing is lost.

    Raises:
        UserError: instead of the disk's error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        by_disk = error.errno in DISK_FAULTS if isinstance(error, OSError) else "os error" in str(error)
        if not by_disk:
            raise
        raise UserError(
            f"run: {getattr(error, 'filename', None) or folder} cannot be written: "
            f"{getattr(error, 'strerror', None) or error}. Make room or mend it; the same command goes on from the "
            "last checkpoint."
        ) from error
