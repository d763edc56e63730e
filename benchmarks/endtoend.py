"""A whole small job, from the command to the student: this project, timm's task in a plain loop, torchdistill.

The same class folders of image files, trained teachers, student and initial weights, steps, batches of 64,
augmentation, KL between logits at temperature 4, fused AdamW with a cosine of rates, one loader process, and the
accuracy on the test split at the end. The peers read the folder by torchvision's ImageFolder, with timm's transforms;
for three teachers theirs is a module that gives the mean of three. Ours draws one per step; its command also writes
table, card and report, and checks and caches the images. Its student alone is in the zoo, as the teachers are. Sides
take turns, each a process.

    pip install -e '.[bench]'
    OMP_NUM_THREADS=1 python -m benchmarks.endtoend --jobs digits fashion jpegs [--fashion FOLDER]
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import yaml
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from benchmarks.form import Row, arguments, report, spread
from benchmarks.others import Mean, Peer, Renormalised, timm_peer, torchdistill_peer

BATCH, LR, SCALE, RATIO = 64, 2e-3, (0.85, 1.0), (0.9, 1.1)


class Job(NamedTuple):
    """size: pixels of a view. steps: of the student. hflip: probability."""

    size: int
    steps: int
    hflip: float
    student: dict[str, Any]
    teachers: list[str]


SMALL = {"channels": [16, 24, 32, 48], "stem_width": 8}
JOBS = {
    "digits": Job(32, 1000, 0.0, {"model": "test_mambaout"}, ["test_resnet", "test_efficientnet", "test_vit"]),
    "fashion": Job(
        32, 2000, 0.5, {"model": "test_resnet", "args": SMALL}, ["test_resnet", "test_efficientnet", "test_byobnet"]
    ),
    "jpegs": Job(
        64, 500, 0.0, {"model": "test_resnet", "args": SMALL}, ["test_resnet", "test_efficientnet", "test_byobnet"]
    ),
}
PEERS = {"timm": timm_peer, "torchdistill": torchdistill_peer}


# The data: class folders of files


def write_split(folder: Path, images: Any) -> None:
    """images: pairs of an image and its class, a number."""
    for i, (image, label) in enumerate(images):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{i:05}.{'jpg' if image.width > 64 else 'png'}", quality=90)


def stored(source: str, limit: int) -> dict[str, Any]:
    """Splits of pairs, of a folder of parquet files."""
    import datasets  # not at the top: the peers do not need it

    found = datasets.load_dataset(source)
    splits = {name: found[name].select(range(min(limit, len(found[name])))) for name in ("train", "test")}
    return {name: ((row["image"], row["label"]) for row in split) for name, split in splits.items()}


def drawn(count: int) -> dict[str, Any]:
    """JPEGs of 200 × 150 pixels: noise, with a square whose place is the class (so they must not be flipped)."""

    def one(i: int) -> tuple[Image.Image, int]:
        pixels = np.random.default_rng(i).integers(0, 256, (15, 20, 3))
        label = i % 10
        pixels[3 + label % 2 * 5 : 7 + label % 2 * 5, 4 * (label // 2) : 4 * (label // 2) + 3] //= 4
        return Image.fromarray(pixels.astype("uint8")).resize((200, 150), Image.Resampling.BICUBIC), label

    return {"train": map(one, range(count)), "test": map(one, range(count, count + count // 4))}


def write_data(name: str, folder: Path, fashion: str) -> None:
    splits = {
        "digits": lambda: stored("recipes/data/digits", 2000),
        "fashion": lambda: stored(fashion, 20_000),
        "jpegs": lambda: drawn(2000),
    }[name]()
    for split, images in splits.items():
        write_split(folder / split, images)


# The sides


def recipe_of(name: str, work: Path, run: str, teachers: list[Any], steps: int) -> dict[str, Any]:
    job = JOBS[name]
    return {
        "run": str(work / run),
        "data": {
            "source": str(work / name), "image_size": job.size, "crop_pct": 1.0, "validation": 0.05, "workers": 1,
            "augmentation": {"scale": list(SCALE), "ratio": list(RATIO), "hflip": job.hflip},
        },
        "teachers": teachers,
        "student": job.student,
        "zoo": {"folder": str(work / f"{name}-zoo"), "loop": {"steps": 400, "lr": 1e-3}},
        "alignment": {"blocks": 0},
        "losses": {"similarity": "kl", "temperature": 4.0, "blocks": 0},
        "discriminators": {"adversary": "none"},
        "loop": {"steps": steps, "batch_size": BATCH, "lr": LR, "weight_decay": 0.0, "clip_grad": None,
                 "validations": 1, "warmup": 0.0},
    }  # fmt: skip


def ours(name: str, work: Path, teachers: list[Path], steps: int, run: str) -> list[str]:
    """The command. The images that were checked and cached before are forgotten."""
    file = work / f"{name}-{len(teachers)}.yaml"
    models = [{"model": f"local-dir:{folder}"} for folder in teachers]
    file.write_text(yaml.safe_dump(recipe_of(name, work, run, models, steps)))
    subprocess.run(["rm", "-rf", str(work / f"{name}-zoo/.images")], check=True)
    return [sys.executable, "train.py", str(file)]


def peer(kind: str, name: str, work: Path, teachers: list[Path], steps: int) -> float:
    """Train the student as the peer's users do; returns its accuracy in per cent."""
    job = JOBS[name]
    torch.manual_seed(0)
    student = timm.create_model(job.student["model"], num_classes=10, **job.student.get("args", {}))
    models = [
        timm.create_model(f"local-dir:{folder}", pretrained=True).eval().requires_grad_(False) for folder in teachers
    ]
    config = resolve_model_data_config(student)
    teaching: list[nn.Module] = [Renormalised(model, config) for model in models]
    common = {"mean": config["mean"], "std": config["std"], "interpolation": "bicubic"}
    view = create_transform(
        job.size, is_training=True, scale=SCALE, ratio=RATIO, hflip=job.hflip, color_jitter=None, **common
    )
    plain = create_transform(job.size, crop_pct=1.0, **common)
    train, test = ImageFolder(str(work / name / "train"), view), ImageFolder(str(work / name / "test"), plain)
    loader = DataLoader(train, BATCH, shuffle=True, drop_last=True, num_workers=1, persistent_workers=True)
    side: Peer = PEERS[kind](student, teaching[0] if len(teaching) == 1 else Mean(teaching), LR)
    schedule = CosineLRScheduler(side.optimizer, t_initial=steps, t_in_epochs=False)
    done = 0
    while done < steps:
        for image, label in loader:
            schedule.step_update(done)
            side.step(image, label)
            done += 1
            if done == steps:
                break
    torch.save(student.state_dict(), work / f"{kind}.pt")
    return accuracy(student.eval(), DataLoader(test, BATCH, num_workers=0))


@torch.no_grad()
def accuracy(student: nn.Module, loader: DataLoader) -> float:
    right = [(student(image).argmax(1) == label).float() for image, label in loader]
    return 100 * torch.cat(right).mean().item()


# The measurement


class Spent(NamedTuple):
    """CPU and wall seconds of a command and its processes; top1: per cent; steps: share of its wall time in training
    steps, as it says itself."""

    cpu: float
    wall: float
    top1: float
    steps: float = math.nan


def run(command: list[str]) -> tuple[float, float, str]:
    """CPU and wall seconds, with those of its processes; what it printed."""
    before, began = os.times(), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall, after = time.monotonic() - began, os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent, wall, done.stdout + done.stderr


def one(side: str, name: str, work: Path, teachers: list[Path], steps: int, turn: int) -> Spent:
    if side == "ours":
        place = f"runs/{name}-{len(teachers)}-{turn}"
        cpu, wall, printed = run(ours(name, work, teachers, steps, place))
        share = re.search(r"(\d+) % of it in training steps", printed)
        assert share is not None
        rows = json.loads((work / place / "table.json").read_text())["rows"]
        student = next(row["top1"] for row in rows if row["name"] == "student")
        return Spent(cpu, wall, student, int(share[1]) / 100)
    own = ["--peer", side, "--work", work, "--jobs", name, "--steps", steps, "--teachers", *teachers]
    cpu, wall, printed = run([sys.executable, "-m", "benchmarks.endtoend", *map(str, own)])
    found = re.search(r"top-1 ([\d.]+)", printed)
    assert found is not None
    return Spent(cpu, wall, float(found[1]))


def trained(name: str, work: Path, steps: int) -> list[Path]:
    """The teachers, and the student alone, in the zoo of the job; the folders of the teachers."""
    file = work / f"{name}-zoo.yaml"
    names = JOBS[name].teachers
    models: list[Any] = [{"train": model} for model in names]
    file.write_text(yaml.safe_dump(recipe_of(name, work, f"runs/{name}-teachers", models, steps)))
    run([sys.executable, "train.py", str(file), "--quiet"])
    found = {}
    for made in (work / f"{name}-zoo").glob("*/made_by.json"):
        network = json.loads(made.read_text())["network"]
        if not network["args"] and network["model"] in names:  # else the student alone
            found[network["model"]] = made.parent
    return [found[model] for model in names]


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=["digits", "jpegs"])
    parser.add_argument("--fashion", default="zalando-datasets/fashion_mnist", help="folder or Hub id")
    parser.add_argument("--steps", type=int, help="of the student (default: the job's)")
    parser.add_argument("--work", type=Path, help="folder of data and teachers; by default a temporary one")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--teachers", nargs="+", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peer:
        print("top-1", peer(args.peer, args.jobs[0], args.work, args.teachers, args.steps))
        return
    with tempfile.TemporaryDirectory() as scratch:
        args.work = args.work or Path(scratch)
        compare(args)


def compare(args: argparse.Namespace) -> None:
    rows: list[Row] = []
    figures: dict[str, float] = {}
    for name in args.jobs:
        steps = args.steps or JOBS[name].steps
        if not (args.work / name).exists():
            write_data(name, args.work / name, args.fashion)
        teachers = trained(name, args.work, steps)
        for count in (1, 3):
            sides: dict[str, list[Spent]] = {side: [] for side in ("ours", *PEERS)}
            for turn in range(args.rounds):
                for side in sides:
                    sides[side].append(one(side, name, args.work, teachers[:count], steps, turn))
                    print(name, count, side, *map(round, sides[side][-1][:3]), file=sys.stderr)
            figures[f"{name}_not_steps_{count}"] = 1 - median(spent.steps for spent in sides["ours"])
            rows += [_row(f"{name} {side} {count}", spent) for side, spent in sides.items()]
            best = min(PEERS, key=lambda side: median(s.cpu for s in sides[side]))
            for kind in ("cpu", "wall"):
                ratios = [getattr(a, kind) / getattr(b, kind) for a, b in zip(sides["ours"], sides[best], strict=True)]
                figures[f"{name}_{kind}_{count}"] = median(ratios)
    report("endtoend", rows, figures, args.json)


def _row(side: str, spent: list[Spent]) -> Row:
    cpu, wall, top1, _ = zip(*spent, strict=True)
    return {
        "side": side,
        "CPU s": median(cpu),
        "min – max": spread(list(cpu)),
        "wall s": median(wall),
        "top-1 %": median(top1),
    }


if __name__ == "__main__":
    main()
