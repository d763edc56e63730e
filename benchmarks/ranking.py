"""What ranking teachers costs: one pass over each, and the choice among many.

`pass_ratio`: CPU time in which `meco-timm zoo` gets the logits of eight teachers, over that of their forward passes
on the same batches in memory (goal: 1.05; decoding is counted apart, as `decoding_share`). `selection_seconds`,
`selection_gib`: greedy selection, leave-one-out and intervals for `--candidates` teachers on `--votes` images of
`--classes` classes, from float16 memory maps, and the memory beside the imports (goals: 60 s, 4 GiB).

    OMP_NUM_THREADS=1 python -m benchmarks.ranking
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from benchmarks.form import Row, arguments, in_own_process, peak_mib, report
from meco_timm.data.loading import load_data
from meco_timm.evaluation.teacher_contributions import contributions
from meco_timm.networks.streams import student_stream
from meco_timm.recipe.recipe import Network, Recipe
from meco_timm.selection.kept_logits import BATCH, measure_teachers

PASSES = [
    "resnet10t", "resnet18", "mobilenetv3_small_100", "efficientnet_lite0", "repvgg_a0", "resnet14t", "regnetx_002",
    "mobilenetv3_large_100",
]  # fmt: skip


def draw(folder: Path, images: int, size: int) -> None:
    for i in range(images):
        place = folder / str(i % 10)
        place.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(i).integers(0, 256, (size // 8, size // 8, 3)).astype("uint8")
        Image.fromarray(coarse).resize((size, size)).save(place / f"{i}.jpg", quality=90)


def passes(args: argparse.Namespace) -> tuple[Row, dict[str, float]]:
    """One pass of `measure_teachers`, and the forward passes alone."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        draw(Path(scratch) / "all", args.images, args.size)
        recipe = Recipe.model_validate(
            {
                "data": {"source": f"{scratch}/all", "image_size": args.size, "workers": 0, "validation": 0.5,
                         "test_fraction": 0.01},
                "teachers": [{"train": name} for name in PASSES],
                "student": "resnet10t",
                "zoo": {"folder": f"{scratch}/zoo"},
            }
        )  # fmt: skip
        data = load_data(recipe.data, 0)
        streams = {
            name: student_stream(Network(model=name), recipe.alignment, len(data.classes), args.size, seed=0).eval()
            for name in PASSES
        }
        began = time.process_time()
        batches = [batch.image for batch in data.in_order(data.validation, BATCH)]
        decoding = time.process_time() - began
        began = time.process_time()
        with torch.no_grad():
            for stream in streams.values():
                for image in batches:
                    stream(image)
        bare = time.process_time() - began
        began = time.process_time()
        measure_teachers(streams, recipe, data, data.validation, Accelerator(cpu=True).device)
        whole = time.process_time() - began
    row = {"what": f"{len(PASSES)} teachers, {len(data.validation)} images", "CPU s": whole, "forward passes": bare}
    return row, {"pass_ratio": (whole - decoding) / bare, "decoding_share": decoding / whole}


def selection(args: argparse.Namespace) -> tuple[Row, dict[str, float]]:
    """Choose among candidates of different accuracy."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        draw = np.random.default_rng(0)
        label = draw.integers(0, args.classes, args.votes)
        for i in range(args.candidates):
            shape = args.votes, args.classes
            written = np.lib.format.open_memmap(f"{scratch}/{i}.npy", "w+", np.float16, shape)
            for first in range(0, args.votes, 1000):
                part = draw.standard_normal((min(1000, args.votes - first), args.classes), np.float32)
                part[np.arange(len(part)), label[first : first + len(part)]] += 2 + i / args.candidates
                written[first : first + len(part)] = part
            written.flush()
        imports = peak_mib()
        logits = [np.load(f"{scratch}/{i}.npy", mmap_mode="r") for i in range(args.candidates)]
        began = time.process_time()
        contributions(logits, torch.from_numpy(label))
        spent = time.process_time() - began
        peak = (peak_mib() - imports) / 1024
    row = {
        "what": f"{args.candidates} candidates, {args.votes} × {args.classes}",
        "CPU s": spent,
        "forward passes": None,
    }
    return row, {"selection_seconds": spent, "selection_gib": peak}


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--images", type=int, default=1000, help="half of them are ranked on (default %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels (default %(default)s)")
    parser.add_argument("--candidates", type=int, default=30, help="(default %(default)s)")
    parser.add_argument("--votes", type=int, default=50_000, help="images of the choice (default %(default)s)")
    parser.add_argument("--classes", type=int, default=1000, help="(default %(default)s)")
    args = parser.parse_args()
    parts = [in_own_process(part, args) for part in (passes, selection)]
    report("ranking", [row for row, _ in parts], {k: v for _, figures in parts for k, v in figures.items()}, args.json)


if __name__ == "__main__":
    main()
