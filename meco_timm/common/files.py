"""Files that are whole or not there: written beside their place, flushed, renamed."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    flush(beside)
    beside.replace(path)
    flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_content(path: Path, content: Any) -> None:
    """Text, bytes, or else a JSON value; folders are made on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        write_text(path, content)
    else:
        write_json(path, content)


def move_into_place(beside: Path, folder: Path) -> None:
    """Rename a finished folder to its name, in place of an older one."""
    for file in beside.rglob("*"):
        flush(file)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    flush(folder.parent)


def digest_of(path: Path) -> str:
    """Sixteen hexadecimal digits of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()  # of those that processors have instructions for: twice as fast as blake2
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
