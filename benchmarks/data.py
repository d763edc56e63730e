"""Images per second of our loader against torchvision's ImageFolder with the same transforms, no loader processes.

JPEG files, drawn at random, decoded, augmented and collated into batches; ours also seeds each image's augmentation, so
that it is a function of (seed, view, image): `seeding` is what that costs. `decoded` is the limit: the files opened and
decoded, nothing more; `verified` is the check of images before a training. `--walk N` also counts N empty image files.

Small images, PNG of 28 (grey), 32 and 64 pixels, are read without the cache, by timm's transform from the cache, and a
batch at a time; these three take turns, and `cached_ratio` is the third over the first.

    OMP_NUM_THREADS=1 python -m benchmarks.data --walk 200000
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder

from benchmarks.form import Row, arguments, by_turns, ratio, report, spread
from meco_timm.common.randomness import reseed
from meco_timm.data.caching import cache_images
from meco_timm.data.folders import read_folder
from meco_timm.data.loading import load_data
from meco_timm.data.stored import FilesShard, StoredImages
from meco_timm.data.verification import Content
from meco_timm.data.views import Steps, numbered
from meco_timm.recipe.sections import Data


def draw(folder: Path, images: int, side: int) -> Path:
    """Smooth noise, which compresses as photographs do."""
    for i in range(images):
        place = folder / "train" / str(i % 4)
        place.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(i).integers(0, 256, (side // 8, side * 4 // 3 // 8, 3)).astype("uint8")
        Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(
            place / f"{i}.jpg", quality=90
        )
    return folder


SMALL = {
    "28 grey": (28, "L", 32),
    "32": (32, "RGB", 32),
    "64": (64, "RGB", 64),
}  # stored pixels and mode, pixels of a view
WAYS = {"decoded": {"cache": "none"}, "cached": {"augment_on": "loader"}, "batched": {}}


def small_sides(kind: str, folder: Path, batch: int) -> dict[str, Callable[[], object]]:
    """What gives a batch of small images, by the way in which it does."""
    stored, mode, size = SMALL[kind]
    for i in range(512):
        place = folder / kind / "all" / str(i % 4)
        place.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(i).integers(0, 256, (stored // 4, stored // 4, 3)).astype("uint8")
        image = Image.fromarray(coarse).resize((stored, stored), Image.Resampling.BICUBIC).convert(mode)
        image.save(place / f"{i}.png")
    sides = {}
    for way, keys in WAYS.items():
        settings = Data.model_validate(
            {
                "source": str(folder / kind / "all"),
                "image_size": size,
                "workers": 0,
                "augmentation": {"scale": [0.85, 1.0]},
            }
            | keys
        )
        data = load_data(settings, seed=0)
        cache_images(data, settings, folder / kind, Accelerator(cpu=True))
        sides[f"{kind} {way}"] = next_of(data.batches(data.train, Steps(batch, 0, 0, 10**6)))
    return sides


def next_of(batches: Iterator[Any]) -> Callable[[], object]:
    return lambda: next(batches)


def sides_over(folder: Path, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """What gives a batch of the images in `folder`: our loader, torchvision's; and two parts of ours by themselves."""
    settings = {
        "source": str(folder),
        "image_size": args.size,
        "workers": 0,
        "validation": 0.0,
        "test_fraction": 0.01,
    }
    data = load_data(Data.model_validate(settings), seed=0)
    a = Data(source="").augmentation
    transform = create_transform(
        args.size, is_training=True, scale=tuple(a.scale), ratio=tuple(a.ratio), hflip=a.hflip, color_jitter=None,
        interpolation="bicubic", normalize=False,
    )  # fmt: skip
    theirs = ImageFolder(str(folder / "train"), transform)
    sampler = RandomSampler(theirs, num_samples=10**9, replacement=True)
    endless = iter(DataLoader(theirs, args.batch, sampler=sampler))
    paths = [path for path, _ in theirs.samples][: args.batch]

    def decoded() -> None:
        for path in paths:
            Image.open(path).convert("RGB")

    def seeding() -> None:
        for row in range(args.batch):
            reseed(numbered(0, 0).seed, row)

    content = Content(StoredImages([FilesShard(str(folder), paths)]))

    def verified() -> None:
        assert not any(one.fault for _, one in content.__getitems__(list(range(len(paths)))))

    return {
        "ours": next_of(data.batches(data.train, Steps(args.batch, 0, 0, 10**6))),
        "ImageFolder": next_of(endless),
        "decoded": decoded,
        "seeding": seeding,
        "verified": verified,
    }


def seconds_to_walk(folder: Path, files: int, classes: int = 1000) -> float:
    """CPU seconds to find and count so many image files in class folders; they are hard links to empty files."""
    for number in range(files):
        place = folder / f"class {number % classes}"
        if number < classes:
            place.mkdir(parents=True)
            first = place / "0.jpg"  # a file of its own per folder: file systems limit the links to one
            first.touch()
        else:
            os.link(place / "0.jpg", place / f"{number}.jpg")
    began = time.process_time()
    assert len(read_folder(folder).splits["train"].files) == files
    return time.process_time() - began


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--images", type=int, default=400, help="files (default %(default)s)")
    parser.add_argument("--side", type=int, default=256, help="shorter side of a file, pixels (default %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels of the batch (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images per batch (default %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="batches of each side in a round (default %(default)s)")
    parser.add_argument("--walk", type=int, default=0, help="also find and count so many files (default %(default)s)")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        sides = sides_over(draw(Path(scratch), args.images, args.side), args)
        torch.manual_seed(0)
        seconds = by_turns(sides, args.rounds, args.steps)
        walked = {"walk_seconds": seconds_to_walk(Path(scratch) / "many", args.walk)} if args.walk else {}
        torch.manual_seed(0)
        small = {kind: by_turns(small_sides(kind, Path(scratch), 64), args.rounds, 5) for kind in SMALL}
    rows: list[Row] = []
    for side in sides:
        speed = [args.batch / s for s in seconds[side]]
        rows.append({"side": side, "images per CPU s": median(speed), "min – max": spread(speed)})
    for times in small.values():
        for side, spent in times.items():
            speed = [64 / s for s in spent]
            rows.append({"side": side, "images per CPU s": median(speed), "min – max": spread(speed)})
    figures = {"ratio": ratio(seconds, "ImageFolder", "ours"), "seeding_share": ratio(seconds, "seeding", "ours")}
    figures |= {"verify_ratio": ratio(seconds, "decoded", "verified"), **walked}
    for kind, times in small.items():
        name = kind.replace(" ", "_")
        figures[f"cached_ms_{name}"] = 1000 * median(times[f"{kind} batched"]) / 64
        figures[f"cached_ratio_{name}"] = ratio(times, f"{kind} batched", f"{kind} decoded")
    report("data", rows, figures, args.json)


if __name__ == "__main__":
    main()
