"""The same distillation through this project, timm's LogitDistillationTask and torchdistill.

Same student and initial weights, same frozen teachers, same augmented images in the same batches, KL between logits at
temperature 4, no labels, fused AdamW, one cosine of rates. The peers have one teacher at a time; for three, theirs is a
module that gives the mean of three, as their users write it. Ours draws one per step, or reads the mean from the store.
All sides take a step by turns; CPU time of a step, then the accuracy of each student on the test split. The store is
filled before, which costs each teacher one pass per view. `bf16` are sides whose teachers compute in it, which pays
where the processor has it. `--profile` shows instead where a step with one teacher spends its time, by operator.

    pip install -e '.[bench]'
    OMP_NUM_THREADS=1 python -m benchmarks.peers
"""

import argparse
import logging
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.task import LogitDistillationTask
from torch import Tensor, nn
from torch.utils.data import SequentialSampler, TensorDataset

from benchmarks.form import Row, arguments, in_own_process, peak_mib, report, spread
from benchmarks.step import stepping, training_of
from meco_timm.data import Batch, DataSource, load_data
from meco_timm.evaluation import accuracy, predict
from meco_timm.filling import fill, use_store
from meco_timm.pipeline import _seed_of_views
from meco_timm.recipe import Recipe
from meco_timm.streams import Stream
from meco_timm.teachers import assemble_zoo

TEMPERATURE, VIEWS = 4.0, 3
OUTPUT = {"path": ".", "io": "output"}  # of the whole network, in torchdistill's words
SIDES = (
    "timm 1", "torchdistill 1", "ours 1", "ours 1 bf16", "timm 3", "torchdistill 3", "ours 3", "ours 3 bf16",
    "ours 3 stored", "student only",
)  # fmt: skip


class Side(NamedTuple):
    """A step that gives the loss, the student that it trains, over normalised images, and its optimizer."""

    step: Callable[[], Tensor]
    student: nn.Module
    optimizer: torch.optim.Optimizer


def recipe_of(args: argparse.Namespace, teachers: int, store: Path | None, precision: str = "no") -> Recipe:
    told = {
        "data": {
            "source": "recipes/data/digits", "image_size": args.size, "crop_pct": 1.0, "labelled": 300, "workers": 0,
            "augmentation": {"scale": [0.85, 1.0], "ratio": [0.9, 1.1], "hflip": 0},
        },
        "teachers": [{"train": name} for name in args.teachers[:teachers]],
        "student": args.student,
        "zoo": {
            "folder": str(args.zoo), "precision": precision, "sampling": "average" if store else "random",
            "loop": {"steps": args.teacher_steps, "lr": 1e-3, "weight_decay": 0.05},
        },
        "alignment": {"blocks": 0},
        "discriminators": {"adversary": "none"},
        "losses": {"similarity": "kl", "temperature": TEMPERATURE},
        "loop": {"steps": args.steps, "batch_size": args.batch, "lr": args.lr, "schedule": "none", "clip_grad": None,
                 "weight_decay": 0.0},
        "store": {"folder": str(store) if store else None, "views": VIEWS},
    }  # fmt: skip
    return Recipe.model_validate(told)


def student_of(args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(args.student, num_classes=10)


class Mean(nn.Module):
    """Three teachers as one, for peers that have one: logits whose softmax is the mean of theirs, as ours."""

    def __init__(self, models: list[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)
        first: Any = models[0]
        self.pretrained_cfg, self.num_classes = first.pretrained_cfg, first.num_classes

    def forward(self, x: Tensor) -> Tensor:
        p = torch.stack([(model(x) / TEMPERATURE).softmax(1) for model in self.models]).mean(0)
        return TEMPERATURE * p.log()


def timm_side(student: nn.Module, teacher: nn.Module, batches: list[Batch], stream: Stream, lr: float) -> Side:
    task = LogitDistillationTask(
        student, teacher, criterion=nn.CrossEntropyLoss(), task_loss_weight=0.0, distill_loss_weight=1.0,
        temperature=TEMPERATURE, device=torch.device("cpu"), verbose=False,
    )  # fmt: skip
    task.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0, fused=True)
    images = iter(batches)

    def step() -> Tensor:
        batch = next(images)
        loss = task(stream.prepare(batch.image), batch.label.clamp(min=0))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Side(step, student, optimizer)


def torchdistill_side(student: nn.Module, teacher: nn.Module, batches: list[Batch], stream: Stream, lr: float) -> Side:
    from torchdistill.core.distillation import get_distillation_box

    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    whole = {"forward_hook": {"input": [], "output": []}, "forward_proc": "forward_batch_only"}
    loader = {"dataset_id": "train", "sampler": {"class_or_func": SequentialSampler}, "kwargs": {"batch_size": 1}}
    sides = {f"{side}_module_{key}": value for side in ("student", "teacher") for key, value in OUTPUT.items()}
    kd = {**sides, "temperature": TEMPERATURE, "alpha": 0.0}
    config = {
        "num_epochs": 1,
        "train_data_loader": loader,
        "teacher": {**whole, "requires_grad": False},
        "student": {**whole, "requires_grad": True},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": lr, "weight_decay": 0.0, "fused": True}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": TEMPERATURE**2}}},
        },
    }
    data = {"train": TensorDataset(torch.zeros(1))}
    box = get_distillation_box(teacher, student, data, config, torch.device("cpu"), None, False, 1.0)
    box.pre_epoch_process(epoch=0)
    box.teacher_model.eval()  # it leaves that to its users; else the teacher's batch norms would learn
    images = iter(batches)

    def step() -> Tensor:
        batch = next(images)
        loss = box.forward_process(stream.prepare(batch.image), targets=batch.label.clamp(min=0))
        box.post_forward_process(loss)
        return loss.detach()

    return Side(step, student, box.optimizer)


def our_side(args: argparse.Namespace, batches: list[Batch], teachers: int, word: str) -> Side:
    store = args.store if word == "stored" else None
    recipe, accelerator = recipe_of(args, teachers, store, "bf16" if word == "bf16" else "no"), Accelerator(cpu=True)
    data = data_of(args)
    zoo = assemble_zoo(recipe, data, accelerator)
    if store:
        use_store(zoo, recipe, data, _seed_of_views(recipe), accelerator)
        assert not zoo.streams  # all is there
    training = training_of(student_of(args), zoo, recipe)
    step = stepping(training, batches)
    return Side(lambda: step()["total"].detach(), training.student.model, training.optimizer)  # type: ignore[index]


def student_only(student: nn.Module, batches: list[Batch], stream: Stream, lr: float) -> Side:
    """The limit: forward, backward and optimizer of the student, on stand-in labels."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0, fused=True)
    images = iter(batches)

    def step() -> Tensor:
        batch = next(images)
        loss = F.cross_entropy(student(stream.prepare(batch.image)), batch.row % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Side(step, student.train(), optimizer)


def data_of(args: argparse.Namespace) -> DataSource:
    return load_data(recipe_of(args, 1, None).data, 0, VIEWS)


def make_side(name: str, args: argparse.Namespace, batches: list[Batch]) -> Side:
    kind, _, rest = name.partition(" ")
    if kind == "ours":
        return our_side(args, batches, int(rest[0]), rest[2:])
    recipe = recipe_of(args, 3, None)
    stream = training_of(student_of(args), None, recipe).student  # only for its `prepare`
    if kind == "student":
        return student_only(student_of(args), batches, stream, args.lr)
    loaded = assemble_zoo(recipe, data_of(args), Accelerator(cpu=True)).plain()  # trained, not frozen by us
    models = [stream.model.requires_grad_(False) for stream in loaded.values()]
    teacher = models[0] if rest == "1" else Mean(models)
    make = timm_side if kind == "timm" else torchdistill_side
    return make(student_of(args), teacher, batches, stream, args.lr)


def batches_of(args: argparse.Namespace, data: DataSource) -> list[Batch]:
    seed = _seed_of_views(recipe_of(args, 1, None))
    return list(data.batches(data.train, args.batch, seed, 0, args.steps))


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
    use_store(zoo, recipe, data, _seed_of_views(recipe), accelerator)
    began = time.process_time()
    fill(zoo, recipe, data, _seed_of_views(recipe), accelerator)
    return time.process_time() - began


@torch.no_grad()
def top1(student: nn.Module, stream: Stream, data: DataSource) -> float:
    student.eval()
    accelerator = Accelerator(cpu=True)
    logits, label = predict({"": lambda image: student(stream.prepare(image))}, data, data.test, accelerator, 64)
    return accuracy(logits[""], label)


def profiled(args: argparse.Namespace) -> list[Row]:
    """One row per operator: CPU ms per image in it alone, of each side with one teacher, and without any; the least of
    `--rounds` rounds of four steps, the sides by turns, since what others do on the machine only adds."""
    names, size = ("timm 1", "ours 1", "student only"), 4
    args.steps = size * (args.rounds + 1)
    batches = batches_of(args, data_of(args))
    sides = {name: make_side(name, args, batches) for name in names}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for i in range(args.rounds + 1):
        for name in names[i % 3 :] + names[: i % 3]:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                for _ in range(size):
                    sides[name].step()
            per_image = 1000 * size * args.batch  # from µs to ms an image
            rounds[name].append({e.key: e.self_cpu_time_total / per_image for e in profile.key_averages()})
    keys = {key for column in rounds.values() for key in column[0]}
    least = {n: {key: min(r.get(key, 0.0) for r in column[1:]) for key in keys} for n, column in rounds.items()}
    ordered = sorted(keys, key=lambda key: -max(column[key] for column in least.values()))
    rows: list[Row] = [{"operator": key, **{n: least[n][key] for n in names}} for key in ordered[:12]]
    others = {n: sum(least[n][key] for key in ordered[12:]) for n in names}
    return [
        *rows,
        {"operator": "all others", **others},
        {"operator": "all", **{n: sum(least[n].values()) for n in names}},
    ]


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
    parser.add_argument("--profile", action="store_true", help="where the time goes, in place of the comparison")
    args = parser.parse_args()

    names = list(args.sides)
    with tempfile.TemporaryDirectory() as scratch:
        args.zoo, args.store = args.zoo or Path(scratch) / "zoo", Path(scratch) / "store"
        if args.profile:
            report("peers", profiled(args), {}, args.json)
            return
        filled = in_own_process(fill_store, args)
        peaks = {name: in_own_process(memory, name, args) for name in names}
        data = data_of(args)
        batches = batches_of(args, data)
        sides = {name: make_side(name, args, batches) for name in names}
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
        stream = training_of(student_of(args), None, recipe_of(args, 1, None)).student
        rows: list[Row] = []
        for name in names:
            ms = [1000 * s / args.batch for s in seconds[name][5:]]
            row = {"side": name, "CPU ms/image": median(ms), "min – max": spread(ms), "peak MiB": peaks[name]}
            last = None if name == "student only" else sum(losses[name][-10:]) / 10
            right = None if name == "student only" else top1(sides[name].student, stream, data)
            rows.append(row | {"last losses": last, "top-1 %": right})
    ours = [name for name in names if name.startswith("ours")]
    figures = {name.replace("ours", "ratio").replace(" ", "_"): over(seconds, name, args) for name in ours}
    report("peers", rows, figures, args.json)
    views = len(data.train) * VIEWS
    print(f"\nThe store: {1000 * filled / views:.2f} CPU ms per view of {VIEWS} for all three teachers, once.")


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
