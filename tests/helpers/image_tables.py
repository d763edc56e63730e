"""Parquet files and tars of drawn images."""

import io
import tarfile
from pathlib import Path
from typing import Any

import datasets
from conftest import CLASSES, draw_image


def picture(label: int, seed: int = 0, mode: str = "RGB") -> bytes:
    """A drawn image as PNG."""
    file = io.BytesIO()
    draw_image(label, seed).convert(mode).save(file, "PNG")
    return file.getvalue()


def png(label: int, seed: int = 0, mode: str = "RGB") -> dict[str, Any]:
    """A drawn image as `datasets` stores it."""
    return {"bytes": picture(label, seed, mode), "path": None}


def parquet(
    folder: Path, labels: list[Any], kind: Any = None, name: str = "train", column: str = "label", **columns: Any
) -> Path:
    """One split as a parquet file with the columns image, `column` and others, each (kind, values)."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = kind or datasets.ClassLabel(names=list(CLASSES))
    rows: dict[str, Any] = {"image": [png(i % 3, i) for i in range(len(labels))], column: labels}
    features: dict[str, Any] = {"image": datasets.Image(), column: kind}
    for other, (other_kind, values) in columns.items():
        rows[other], features[other] = values, other_kind
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(folder / f"{name}.parquet")
    return folder


def tar(path: Path, **members: Any) -> Path:
    """A tar of text, bytes or pictures; `__` in a name stands for a dot, `___` for a slash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else str(content).encode()
            member = tarfile.TarInfo(name.replace("___", "/").replace("__", "."))
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path
