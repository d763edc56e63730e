"""The same distillation through this project, timm's LogitDistillationTask and torchdistill.

Same student and initial weights, same frozen teachers, same augmented images in the same batches, KL between logits at
temperature 4, no labels, fused AdamW, one cosine of rates. The peers have one teacher at a time; for three, theirs is a
module that gives the mean of three, as their users write it. Ours draws one per step, or reads the mean from the store.
All sides take a step by turns; CPU time of a step, then the accuracy of each student on the test split. The store is
filled before, which costs each teacher one pass per view.

    pip install -e '.[bench]'
    OMP_NUM_THREADS=1 python -m benchmarks.peers
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator
from torch import nn

from benchmarks.form import Row, arguments, in_own_process, peak_mib, report, spread
from benchmarks.peer_sides import SIDES, VIEWS, Side, batches_of, data_of, make_side, recipe_of, wrap_student
from benchmarks.step import training_of
from meco_timm.common import batch_seed
from meco_timm.data.loading import DataSource
from meco_timm.evaluation.measures import accuracy
from meco_timm.evaluation.table import compute_logits
from meco_timm.networks.streams import Stream
from meco_timm.pipeline import assemble_zoo
from meco_timm.zoo.precompute import precompute_outputs, use_store


def memory(name: str, args: argparse.Namespace) -> float:
    """MiB that a process of this side takes for three steps, less its imports."""
    torch.set_num_threads(1)
    imports = peak_mib()
    args.steps = 3
    side = make_side(name, args, batches_of(args, data_of(args)))
    for _ in range(3):
        side.step()
    return peak_mib() - imports


def fill_store(args: argparse.Namespace) -> float:
    """CPU seconds that filling the store for three teachers takes."""
    recipe, accelerator = recipe_of(args, 3, args.store), Accelerator(cpu=True)
    torch.set_num_threads(1)
    data = data_of(args)
    zoo = assemble_zoo(recipe, data, accelerator)
    use_store(zoo, recipe.store, recipe.data, data, batch_seed(recipe.seed), accelerator)
    began = time.process_time()
    precompute_outputs(zoo, data, recipe.loop.batch_size, batch_seed(recipe.seed), accelerator)
    return time.process_time() - began


@torch.no_grad()
def top1(student: nn.Module, stream: Stream, data: DataSource) -> float:
    student.eval()
    accelerator = Accelerator(cpu=True)
    logits, label = compute_logits({"": lambda image: student(stream.prepare(image))}, data, data.test, accelerator, 64)
    return accuracy(logits[""], label)


def main() -> None:
    parser = arguments(__doc__, rounds=10)
    parser.add_argument("--student", default="resnet10t")
    parser.add_argument("--teachers", nargs=3, default=["resnet18", "repvgg_a0", "mobilenetv3_large_100"])
    parser.add_argument("--size", type=int, default=48, help="pixels (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images per step (default %(default)s)")
    parser.add_argument("--steps", type=int, default=250, help="of each student (default %(default)s)")
    parser.add_argument("--teacher-steps", type=int, default=200, help="of each teacher (default %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--zoo", type=Path, help="folder of trained teachers; by default a temporary one")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, metavar="SIDE", help="only these")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        args.zoo, args.store = args.zoo or Path(scratch) / "zoo", Path(scratch) / "store"
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Measure the sides and print what they cost and what their students learned."""
    filled = in_own_process(fill_store, args)
    peaks = {name: in_own_process(memory, name, args) for name in args.sides}
    data = data_of(args)
    batches = batches_of(args, data)
    sides = {name: make_side(name, args, batches) for name in args.sides}
    seconds, losses = trained(sides, args)
    stream = training_of(wrap_student(args), None, recipe_of(args, 1, None)).state.student
    rows: list[Row] = []
    for name, side in sides.items():
        ms = [1000 * s / args.batch for s in seconds[name][5:]]
        row = {"side": name, "CPU ms/image": median(ms), "min – max": spread(ms), "peak MiB": peaks[name]}
        learned = name != "student only"
        row["last losses"] = sum(losses[name][-10:]) / 10 if learned else None
        rows.append(row | {"top-1 %": top1(side.student, stream, data) if learned else None})
    ours = [name for name in args.sides if name.startswith("ours")]
    figures = {name.replace("ours", "ratio").replace(" ", "_"): over(seconds, name, args) for name in ours}
    report("peers", rows, figures, args.json)
    views = len(data.train) * VIEWS
    print(f"\nThe store: {1000 * filled / views:.2f} CPU ms per view of {VIEWS} for all three teachers, once.")


def trained(sides: dict[str, Side], args: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """(CPU seconds, loss) of each step of each side, which take theirs by turns."""
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    for i in range(args.steps):
        for side in sides.values():
            for group in side.optimizer.param_groups:
                group["lr"] = args.lr * (1 + math.cos(math.pi * i / args.steps)) / 2
        for name in names[i % len(names) :] + names[: i % len(names)]:
            began = time.process_time()
            loss = sides[name].step()
            seconds[name].append(time.process_time() - began)
            losses[name].append(loss.item())
    return seconds, losses


def over(seconds: dict[str, list[float]], side: str, args: argparse.Namespace) -> float:
    """Median over parts of the run of ours over the better peer with as many teachers."""
    size = max(1, args.steps // args.rounds)
    parts = range(0, args.steps, size)
    peers = [f"{peer} {side.split()[1]}" for peer in ("timm", "torchdistill")]

    def middle(name: str, i: int) -> float:
        return median(seconds[name][i : i + size])

    better = min((name for name in peers if name in seconds), key=lambda name: median(seconds[name]))
    return median(middle(side, i) / middle(better, i) for i in parts)


if __name__ == "__main__":
    main()
