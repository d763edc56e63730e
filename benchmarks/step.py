"""What a step of ours costs over the least that distillation can cost.

bare    a loop by hand over the same networks: frozen teacher, KL between logits, AdamW; images come normalised
logits  our step, logits only: alignment.blocks=0, no adversary
full    our step in MEAL's form: four projected blocks, a discriminator by position on each, clipping
task    the same in a loop by hand over timm's task (EnsembleDistillation); images come normalised
plain   a loop by hand that trains a backbone: four blocks and the embedding of one encoder, through a projection each
backbone    our step of a backbone: the same

    OMP_NUM_THREADS=1 python -m benchmarks.step
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2

from benchmarks.form import Row, arguments, by_turns, in_own_process, peak_mib, ratio, report, spread
from meco_timm.data.loading import Batch
from meco_timm.distillation import Distiller, Objective, Supervised
from meco_timm.networks.streams import Stream
from meco_timm.recipe.recipe import Recipe
from meco_timm.task import EnsembleDistillation
from meco_timm.training import Job, Teaching, Training
from meco_timm.zoo.zoo import Zoo

SIDES = ("bare", "logits", "full", "task", "plain", "backbone")
CLASSES = 100
Step = Callable[[], object]


def make_step(side: str, args: argparse.Namespace) -> Step:
    """One step of a side over four batches in memory, round and round. Every side has the same initial weights."""
    torch.manual_seed(0)
    classes = 0 if side in ("plain", "backbone") else CLASSES
    student, teacher = (timm.create_model(name, num_classes=classes) for name in (args.student, args.teacher))
    images = torch.randint(0, 256, (4, args.batch, 3, args.size, args.size), dtype=torch.uint8)
    if side == "bare":
        return bare(student, teacher, images)
    if side == "task":
        return task(student, teacher, images, recipe(args, {}))
    if side == "plain":
        return plain_backbone(student, teacher, images)
    if side == "backbone":
        return ours(student, [teacher], images, recipe(args, {"task": "backbone"}))
    changes: dict[str, Any] = {} if side == "full" else {"alignment": {"blocks": 0}}
    changes |= {} if side == "full" else {"discriminators": {"adversary": "none"}}
    return ours(student, [teacher], images, recipe(args, changes))


def recipe(args: argparse.Namespace, changes: dict[str, Any]) -> Recipe:
    settings = {
        "data": {"source": "memory", "image_size": args.size},
        "teachers": [{"model": args.teacher}],
        "student": args.student,
        "zoo": {"sampling": "random"},
        "losses": {"similarity": "kl"},
        "loop": {"steps": 1_000_000, "warmup": 0.0, "batch_size": args.batch},
    }
    return Recipe.model_validate(settings | changes)


def stream(model: Any, settings: Recipe, as_teacher: bool = False) -> Stream:
    config = resolve_data_config(model=model)
    gives = "blocks" if settings.is_backbone else "all"
    return Stream(model, settings.alignment, settings.data.image_size, config, gives, as_teacher=as_teacher)


def zoo_of(teachers: Iterable[Any], settings: Recipe, accelerator: Accelerator | None = None) -> Zoo:
    streams = {str(i): stream(teacher, settings, as_teacher=True) for i, teacher in enumerate(teachers)}
    context = accelerator or Accelerator(cpu=True)
    return Zoo(streams, settings.zoo, settings.seed, settings.losses.temperature, context)


def training_of(student: Any, zoo: Zoo | None, settings: Recipe) -> Training:
    """The package's own training, as it is before its first step; without a zoo on labels."""
    student_stream = stream(student, settings)
    data: Any = SimpleNamespace(classes=range(student.num_classes), max_bad=0)  # batches in memory stand in for it
    objective: Objective = Supervised(student_stream)
    if zoo:
        count = student.num_classes
        objective = Distiller(student_stream, settings.method, count, zoo.block_shapes, zoo.embedding_sizes)
    job = Job(
        title="student",
        folder=Path(tempfile.gettempdir()),  # nothing is written
        loop=settings.loop,
        data=data,
        images=cast(Any, None),
        steps=settings.loop.steps or 0,
        seed=settings.seed,
    )
    if zoo is None:
        return Training(objective, job, Accelerator(cpu=True))
    return Training(objective, job, zoo.context, Teaching(zoo.targets, compile=zoo.compile))


def ours(student: Any, teachers: list[Any], images: torch.Tensor, settings: Recipe) -> Step:
    """A step of the package's over batches in memory; with no teachers it learns from labels."""
    rows = torch.arange(images.shape[1])
    batches = [Batch(image, rows % CLASSES, rows, rows - rows) for image in images]
    return stepping(training_of(student, zoo_of(teachers, settings) if teachers else None, settings), batches)


def stepping(training: Training, batches: Iterable[Batch]) -> Step:
    """A step of this training over the batches, round and round."""
    endless: Iterator[Batch] = itertools.cycle(batches)

    def step() -> object:
        return training.take_step(endless)

    return step


def bare(student: Any, teacher: Any, images: torch.Tensor) -> Step:
    """Written by hand, nothing but the networks, KL and the optimizer."""
    batches = itertools.cycle(images.float() / 255 - 0.5)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.05, fused=True)  # as ours
    student.train()
    teacher.eval().requires_grad_(False)

    def step() -> None:
        image = next(batches)
        with torch.no_grad():
            of_teacher = teacher(image).log_softmax(1)
        of_student = student(image).log_softmax(1)
        F.kl_div(of_student, of_teacher, reduction="batchmean", log_target=True).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_backbone(student: Any, teacher: Any, images: torch.Tensor) -> Step:
    """Written by hand: maps pooled to 4 × 4 and at most 64 channels, 1 × 1 convolutions, squares of standardised maps;
    a linear layer, cosine and smooth L1 of pooled features; AdamW and clipping."""
    batches = itertools.cycle(images.float() / 255 - 0.5)
    widths = [info["num_chs"] for info in teacher.feature_info][-4:]
    own = [info["num_chs"] for info in student.feature_info][-4:]
    bases = [torch.linalg.qr(torch.randn(width, width))[0][:64] for width in widths]
    layers = torch.nn.ModuleList(torch.nn.Conv2d(a, min(b, 64), 1) for a, b in zip(own, widths, strict=True))
    layers.append(torch.nn.Linear(student.num_features, teacher.num_features))
    parameters = [*student.parameters(), *layers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, fused=True)
    student.train()
    teacher.eval().requires_grad_(False)

    def outputs(network: Any, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        final, maps = network.forward_intermediates(image, indices=4)
        pooled = [F.adaptive_avg_pool2d(block, min(block.shape[-1], 4)) for block in maps]
        return pooled, network.forward_head(final, pre_logits=True)

    def standard(block: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(block, block.shape[1:])

    def step() -> None:
        image = next(batches)
        with torch.no_grad():
            maps, target = outputs(teacher, image)
            targets = [standard(torch.einsum("oc,bchw->bohw", b, m)) for b, m in zip(bases, maps, strict=True)]
        blocks, embedding = outputs(student, image)
        found = [standard(layer(standard(block))) for layer, block in zip(layers, blocks, strict=False)]
        projected = layers[-1](embedding)
        loss = 3 * sum(F.mse_loss(a, b) for a, b in zip(found, targets, strict=True))
        loss = loss + 3 * (1 - F.cosine_similarity(projected, target).mean() + F.smooth_l1_loss(projected, target))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def task(student: Any, teacher: Any, images: torch.Tensor, settings: Recipe) -> Step:
    """The loop that a user of the task writes, with the optimizer and the clipping of ours."""
    size = settings.data.image_size
    config = resolve_data_config({"input_size": (3, size, size)}, model=student)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    made = EnsembleDistillation(student, {"model": teacher, "size": size}, recipe=settings, data_config=config)
    optimizer = create_optimizer_v2(made, settings.loop.optimizer, lr=1e-3, weight_decay=0.05, fused=True)
    batches = itertools.cycle((images.float() / 255 - mean) / std)
    label = torch.arange(images.shape[1]) % CLASSES
    made.train()

    def step() -> None:
        made(next(batches), label)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(made.get_clip_parameters(), settings.loop.clip_grad or 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def memory(side: str, args: argparse.Namespace) -> tuple[float, float]:
    """(peak of a process that takes three steps, peak without its imports), MiB."""
    imports = peak_mib()
    step = make_step(side, args)
    for _ in range(3):
        step()
    return peak_mib(), peak_mib() - imports


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--teacher", default="resnet34")
    parser.add_argument("--size", type=int, default=64, help="pixels (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images per step (default %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps of each side in a round (default %(default)s)")
    args = parser.parse_args()

    peaks = {side: in_own_process(memory, side, args) for side in SIDES}
    steps = {side: make_step(side, args) for side in SIDES}
    seconds = by_turns(steps, args.rounds, args.steps)
    rows: list[Row] = []
    for side in SIDES:
        ms = [1000 * s / args.batch for s in seconds[side]]
        over = [a / b for a, b in zip(seconds[side], seconds["bare"], strict=True)]
        row = {"side": side, "CPU ms/image": median(ms), "min – max": spread(ms)}
        row |= {"over bare": median(over), "ratio min – max": spread(over)}
        rows.append(row | {"peak MiB": peaks[side][0], "peak less imports": peaks[side][1]})
    figures = {f"ratio_{side}": ratio(seconds, side, "bare") for side in ("logits", "full")}
    figures["ratio_task"] = ratio(seconds, "task", "full")
    figures["ratio_backbone"] = ratio(seconds, "backbone", "plain")
    figures["memory_ratio"] = peaks["full"][1] / peaks["bare"][1]
    report("step", rows, figures, args.json)


if __name__ == "__main__":
    main()
