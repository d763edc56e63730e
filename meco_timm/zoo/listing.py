"""5 · What is in the zoo's folder, and how good it is."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from meco_timm.common import UserError


class Trained(NamedTuple):
    """A network that was trained on labels. top1: its best on the validation split, per cent; data: a hash of the
    images, labels and splits that it was trained on."""

    folder: str
    model: str
    role: str
    top1: float | None
    steps: int
    image_size: int
    data: str
    seed: int
    megabytes: float


def list_teachers(folder: str | Path = "zoo") -> list[Trained]:
    """The trained networks in a zoo's folder, best first.

    Raises:
        UserError: there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"teachers: there is no folder {path}. Name the zoo.folder of a recipe; `zoo` is the default.")
    found = [_read(place) for place in sorted(path.iterdir()) if (place / "made_by.json").is_file()]
    return sorted((one for one in found if one), key=lambda one: (one.data, -(one.top1 or 0), one.folder))


def _read(place: Path) -> Trained | None:
    """What the files of one network say; None of files that cannot be read."""
    try:
        made = json.loads((place / "made_by.json").read_text(encoding="utf-8"))
        lines = (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        top1 = [value for line in lines if (value := json.loads(line).get("validation/top1")) is not None]
        return Trained(
            folder=place.name,
            model=made["network"]["model"],
            role="student alone" if made["role"] == "student" else "teacher",
            top1=max(top1, default=None),
            steps=made["loop"]["steps"],
            image_size=made["views"]["image_size"],
            data=made["data"],
            seed=made["seed"],
            megabytes=(place / "model.safetensors").stat().st_size / 1e6,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def print_teachers(teachers: list[Trained], folder: Path) -> None:
    """The list for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Trained networks in {folder}", title_justify="left", box=None, header_style="bold")
    for head in ("network", "as", "folder", "data"):
        table.add_column(head, no_wrap=head in ("network", "folder"))
    for head in ("top-1 %", "steps", "px", "seed", "MB"):
        table.add_column(head, justify="right")
    for one in teachers:
        table.add_row(*map(str, _cells(one)))
    console = Console(width=None if Console().is_terminal else 150, markup=False)
    console.print(table if teachers else f"Nothing has been trained in {folder} yet.")
    if teachers:
        console.print("top-1 is the best on the validation split, by which the weights were chosen.")


def _cells(one: Trained) -> list[Any]:
    top1 = "–" if one.top1 is None else f"{one.top1:.2f}"
    return [
        one.model,
        one.role,
        one.folder,
        one.data,
        top1,
        one.steps,
        one.image_size,
        one.seed,
        f"{one.megabytes:.1f}",
    ]
