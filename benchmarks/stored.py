"""A step that reads the teachers' outputs from the store, against plain supervised training; and filling the store.

labels  a supervised step of ours over the same student and images: the limit, since no teacher costs anything in it
logits  from the store, logits only
full    from the store, with the recipe's defaults: four blocks, a discriminator on each and on the logits
live    the same as `full` with the teacher computed

Filling is measured whole, images read from PNG files and augmented, outputs written to disk; the teacher alone, as timm
gives it, over images in memory, is the limit. The plan of a run says what its store takes.

    OMP_NUM_THREADS=1 python -m benchmarks.stored
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from benchmarks.form import Row, arguments, by_turns, ratio, report, spread
from benchmarks.step import CLASSES, Step, recipe, stepping, training_of, zoo_of
from meco_timm.data.loading import Batch, load_data
from meco_timm.networks.streams import Outputs
from meco_timm.recipe.recipe import Recipe
from meco_timm.zoo.output_shards import OutputShards
from meco_timm.zoo.store import Store, layout
from meco_timm.zoo.zoo import Zoo

VIEWS = 4
CPU = torch.device("cpu")


def with_store(zoo: Zoo, settings: Recipe, folder: Path, rows: int) -> Zoo:
    """The zoo over an empty store for so many rows."""
    plan = layout(settings.store, settings.losses.temperature, zoo.streams["0"], CLASSES)
    zoo.store = Store(folder, {"0": OutputShards(folder, plan, VIEWS, rows, check=True)}, CPU)
    return zoo


def stored_step(side: str, args: argparse.Namespace, folder: Path, images: torch.Tensor) -> Step:
    """A step of a side; where it reads, from a store of random outputs, at random rows and views."""
    torch.manual_seed(0)
    student, teacher = (timm.create_model(name, num_classes=CLASSES) for name in (args.student, args.teacher))
    changes: dict[str, Any] = {}
    if side == "logits":
        changes = {"alignment": {"blocks": 0}, "discriminators": {"adversary": "none"}}
    settings = recipe(args, changes)
    zoo = None if side == "labels" else zoo_of([teacher], settings)
    if zoo and side != "live":
        shards = with_store(zoo, settings, folder / side, args.rows).store.shards["0"]  # type: ignore[union-attr]
        for view in range(VIEWS):
            blocks = [torch.randn(args.rows, *shape) for shape in shards.layout.blocks]
            outputs = Outputs(blocks, None, torch.randn(args.rows, CLASSES))
            shards.add(torch.full((args.rows,), view), torch.arange(args.rows), shards.layout.pack(outputs))
            shards.flush()
        zoo.release()
    label = torch.arange(args.batch) % CLASSES
    batches = [
        Batch(image, label, torch.randint(args.rows, (args.batch,)), torch.randint(VIEWS, (args.batch,)))
        for image in images
    ]
    return stepping(training_of(student, zoo, settings), batches)


def random_images(source: Path, count: int, side: int) -> None:
    """Write PNG files of two classes."""
    for i in range(count):
        folder = source / "train" / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (side, side, 3)).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{i}.png")


def filling(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Step], int]:
    """(sides: fill the store with a batch, the same with images in memory, teacher alone; bytes per view)."""
    source = folder / "images"
    random_images(source, 8 * args.batch, args.size * 4 // 3)
    settings = recipe(args, {"data": {"source": str(source), "image_size": args.size, "workers": 0, "validation": 0.0}})
    data = load_data(settings.data, 0, VIEWS)
    plain, teacher = (timm.create_model(args.teacher, num_classes=CLASSES).eval() for _ in range(2))
    zoo = with_store(zoo_of([teacher], settings), settings, folder / "filled", len(data.train.split))
    image = torch.randint(0, 256, (args.batch, 3, args.size, args.size), dtype=torch.uint8)
    normal = image.float() / 255 - 0.5
    rows = torch.from_numpy(data.train.rows).long()[: args.batch]

    def emptied() -> Any:
        shards = zoo.store.shards["0"]  # type: ignore[union-attr]
        shards.place.fill_(-1)
        return shards

    def fill() -> None:
        shards = emptied()
        for batch in data.chosen(data.train, torch.zeros_like(rows), rows, args.batch, seed=0):
            zoo.precompute(batch)
        shards.flush()

    def fill_from_memory() -> None:
        shards = emptied()
        zoo.precompute(Batch(image, rows, rows, torch.zeros_like(rows)))
        shards.flush()

    @torch.no_grad()
    def alone() -> None:
        plain(normal)

    sides: dict[str, Step] = {"fill": fill, "fill, images in memory": fill_from_memory, "teacher alone": alone}
    return sides, layout(settings.store, settings.losses.temperature, zoo.streams["0"], CLASSES).bytes_per_view


def side_row(side: str, base: str, seconds: dict[str, list[float]], batch: int) -> Row:
    """CPU time of a side, and its ratio to the `base`."""
    ms = [1000 * s / batch for s in seconds[side]]
    over = [a / b for a, b in zip(seconds[side], seconds[base], strict=True)]
    return {"side": side, "CPU ms/image": median(ms), "over": base, "ratio": median(over), "min – max": spread(over)}


def options() -> argparse.Namespace:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--teacher", default="resnet34")
    parser.add_argument("--size", type=int, default=64, help="pixels (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images per step (default %(default)s)")
    parser.add_argument(
        "--rows", type=int, default=10_000, help="images in the store that is read (default %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=3, help="steps of each side in a round (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    args = options()
    with tempfile.TemporaryDirectory() as scratch:
        images = torch.randint(0, 256, (4, args.batch, 3, args.size, args.size), dtype=torch.uint8)
        sides = {side: stored_step(side, args, Path(scratch), images) for side in ("labels", "logits", "full", "live")}
        fills, bytes_per_view = filling(args, Path(scratch))
        seconds = by_turns(sides | fills, args.rounds, args.steps)
    rows = [side_row(side, "labels" if side in sides else "teacher alone", seconds, args.batch) for side in seconds]
    figures = {
        "ratio": ratio(seconds, "full", "labels"),
        "ratio_logits": ratio(seconds, "logits", "labels"),
        "fill_ratio": ratio(seconds, "teacher alone", "fill"),
        "fill_ratio_memory": ratio(seconds, "teacher alone", "fill, images in memory"),
        "bytes_per_view": float(bytes_per_view),
        "images_per_s": args.batch / median(seconds["fill"]),
    }
    report("stored", rows, figures, args.json)


if __name__ == "__main__":
    main()
