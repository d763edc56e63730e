"""List the trained networks in a zoo folder, with their accuracy."""

import json
from pathlib import Path
from typing import NamedTuple

from meco_timm.common import UserError, is_unfinished, located


class TrainedNetwork(NamedTuple):
    """A network in the zoo, trained on labels. `top1`: best accuracy on the validation split in per cent, None if it
    was never validated; `data`: hash of the images, labels and splits that it was trained on."""

    folder: str
    model: str
    role: str
    top1: float | None
    steps: int
    image_size: int
    data: str
    seed: int
    megabytes: float


def list_teachers(folder: str | Path = "zoo") -> list[TrainedNetwork]:
    """The trained networks in a zoo folder: per data set, the most accurate first.

    Raises:
        UserError: the folder does not exist.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(
            f"teachers: there is no folder {located(path)}. Name a recipe's zoo.folder; the default is `zoo`."
        )
    folders = [folder for folder in sorted(path.iterdir()) if not is_unfinished(folder)]
    found = [_read(folder) for folder in folders if (folder / "made_by.json").is_file()]
    return sorted((network for network in found if network), key=lambda n: (n.data, -(n.top1 or 0), n.folder))


def _read(folder: Path) -> TrainedNetwork | None:
    """One network's entry; None if its files cannot be read."""
    try:
        made = json.loads((folder / "made_by.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        top1 = [value for line in lines if (value := json.loads(line).get("validation/top1")) is not None]
        return TrainedNetwork(
            folder=folder.name,
            model=made["network"]["model"],
            role="student alone" if made["role"] == "student" else "teacher",
            top1=max(top1, default=None),
            steps=made["loop"]["steps"],
            image_size=made["views"]["image_size"],
            data=made["data"],
            seed=made["seed"],
            megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def print_teachers(teachers: list[TrainedNetwork], folder: Path) -> None:
    """Print the list as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Trained networks in {folder}", title_justify="left", box=None, header_style="bold")
    for head in ("network", "as", "folder", "data"):
        table.add_column(head, no_wrap=head in ("network", "folder"))
    for head in ("top-1 %", "steps", "px", "seed", "MB"):
        table.add_column(head, justify="right")
    for network in teachers:
        top1 = "–" if network.top1 is None else f"{network.top1:.2f}"
        sizes = (network.steps, network.image_size, network.seed)
        cells = [network.model, network.role, network.folder, network.data, top1, *map(str, sizes)]
        table.add_row(*cells, f"{network.megabytes:.1f}")
    console = Console(width=None if Console().is_terminal else 150, markup=False)
    console.print(table if teachers else f"There are no trained networks in {folder}.")
    if teachers:
        console.print("top-1: best accuracy on the validation split, which selected the weights.")
