"""Atomic writing of files and folders: written under another name, flushed, renamed."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

UNFINISHED = ".tmp"  # end of the name of what is not whole yet


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically.

    Raises:
        OSError: it cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, atomically."""
    beside = unfinished(path)
    beside.write_bytes(content)
    flush(beside)
    beside.replace(path)
    flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_content(path: Path, content: Any) -> None:
    """Write text, bytes or a JSON value; makes the parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        write_bytes(path, content)
    elif isinstance(content, str):
        write_text(path, content)
    else:
        write_json(path, content)


def unfinished(path: Path) -> Path:
    """Where a file or folder is written until it is whole; a killed run leaves it there."""
    return path.with_name(path.name + UNFINISHED)


def is_unfinished(path: Path) -> bool:
    return path.suffix == UNFINISHED


def move_into_place(beside: Path, folder: Path) -> None:
    """Flush the finished folder `beside` and rename it to `folder`, which it replaces."""
    for file in beside.rglob("*"):
        flush(file)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    flush(folder.parent)


def digest_of(path: Path) -> str:
    """SHA-256 of a file: its first 16 hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()  # processors have instructions for it: twice as fast as blake2
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
