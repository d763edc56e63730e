"""What the number of teachers costs: one drawn per step, or the mean of all.

Equal teachers (resnet34, other weights), logits only; CPU time per image of a whole step, sides by turns. The physical
limits stand beside: the student alone learning from labels, and one teacher's forward.

    OMP_NUM_THREADS=1 python -m benchmarks.ensemble_size
"""

import argparse
from statistics import median
from typing import Any

import timm
import torch

from benchmarks.form import Row, arguments, by_turns, ratio, report, spread
from benchmarks.step import CLASSES, Step, ours, recipe, stream
from meco_timm.zoo.frozen import freeze

SIZES = (1, 2, 4, 8)


def make_step(sampling: str, teachers: int, args: argparse.Namespace) -> Step:
    """One step of a student with so many teachers."""
    torch.manual_seed(0)
    student = timm.create_model(args.student, num_classes=CLASSES)
    zoo = [timm.create_model(args.teacher, num_classes=CLASSES) for _ in range(teachers)]
    images = torch.randint(0, 256, (4, args.batch, 3, args.size, args.size), dtype=torch.uint8)
    changes: dict[str, Any] = {"alignment": {"blocks": 0}, "discriminators": {"adversary": "none"}}
    if teachers:
        changes |= {"zoo": {"sampling": sampling}, "teachers": [{"model": args.teacher}] * teachers}
    return ours(student, zoo, images, recipe(args, changes))


def teacher_only(args: argparse.Namespace) -> Step:
    settings = recipe(args, {"alignment": {"blocks": 0}})
    teacher = stream(timm.create_model(args.teacher, num_classes=CLASSES), settings)
    freeze(teacher, torch.device("cpu"))
    image = torch.randint(0, 256, (args.batch, 3, args.size, args.size), dtype=torch.uint8)

    @torch.no_grad()
    def step() -> None:
        teacher(image)

    return step


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--teacher", default="resnet34")
    parser.add_argument("--size", type=int, default=64, help="pixels (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images per step (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps of each side in a round (default %(default)s)")
    args = parser.parse_args()

    sides = {f"{sampling} of {n}": make_step(sampling, n, args) for sampling in ("random", "average") for n in SIZES}
    sides |= {"student only, labels": make_step("random", 0, args), "one teacher only": teacher_only(args)}
    seconds = by_turns(sides, args.rounds, args.steps)
    rows: list[Row] = []
    for side in sides:
        ms = [1000 * s / args.batch for s in seconds[side]]
        over = [a / b for a, b in zip(seconds[side], seconds["random of 1"], strict=True)]
        rows.append(
            {"side": side, "CPU ms/image": median(ms), "over random of 1": median(over), "min – max": spread(over)}
        )
    figures = {
        f"{sampling}_8_over_1": ratio(seconds, f"{sampling} of 8", f"{sampling} of 1")
        for sampling in ("random", "average")
    }
    report("ensemble_size", rows, figures, args.json)


if __name__ == "__main__":
    main()
