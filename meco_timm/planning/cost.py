"""What a run costs before it is run: steps, multiply-adds, memory, disk. Networks are looked at without weights."""

import time
from typing import Any, NamedTuple

import torch

from meco_timm.data import DataSource
from meco_timm.networks import Stream
from meco_timm.recipe import Loop, Recipe
from meco_timm.training import total_steps
from meco_timm.zoo import layout, named_teachers

OPTIMIZER_BYTES = {"sgd": 4, "momentum": 4, "nesterov": 4, "lion": 4}  # of state per parameter; 8 for Adam and others


def cost_lines(
    recipe: Recipe,
    student: Stream,
    teachers: dict[str, Stream],
    data: DataSource,
    processes: int,
) -> list[str]:
    """The plan's lines: steps, multiply-adds per image, memory, store."""
    steps = total_steps(recipe.loop, len(data.train), processes)
    per_step = recipe.loop.batch_size * recipe.loop.accumulation * processes
    trained = [t for t in recipe.teachers if t.train]
    memory = {word: memory_of(recipe, student, teachers, word) / 2**30 for word in ("float32", "bf16")}
    return [
        f"\nsteps   {steps} of {per_step} images ({steps * per_step / len(data.train):.1f} passes over the training "
        f"images); {len(trained)} teacher(s) and the student alone are trained on the labels first, unless in the zoo",
        f"cost    {3 * student.multiply_adds() / 1e6:.0f} M multiply-adds per image for the student, "
        f"{_teachers_work(recipe, teachers) / 1e6:.0f} M for the teachers ({recipe.zoo.sampling})",
        f"memory  about {memory['float32']:.2f} GiB per process in float32, {memory['bf16']:.2f} in bf16: weights, "
        "gradients, optimizer, activations and teachers",
        *_store(recipe, teachers, data, processes),
    ]


def _teachers_work(recipe: Recipe, teachers: dict[str, Stream]) -> float:
    """Multiply-adds per image of what teaches a step."""
    forward = [stream.multiply_adds() for stream in teachers.values()]
    return sum(forward) / (1 if recipe.zoo.sampling == "average" else len(forward))


class Part(NamedTuple):
    """Multiply-adds of a part of a run, and the images that are read for it, by all processes together."""

    work: float
    images: float


def parts_of(
    recipe: Recipe, student: Stream, teachers: dict[str, Stream], data: DataSource, processes: int
) -> dict[str, Part]:
    """Parts by name; nothing taken from the zoo, or from a store that is full already.

    A backward pass counts twice its forward; gradient checkpointing is a forward more.
    """

    def training(stream: Stream, loop: Loop, images: int) -> Part:
        seen = total_steps(loop, images, processes) * loop.batch_size * loop.accumulation * processes
        looked_at = loop.validations * len(data.validation)
        work = ((4 if loop.gradient_checkpointing else 3) * seen + looked_at) * stream.multiply_adds()
        return Part(work, seen + looked_at)

    parts = {
        f"teacher {name}": training(teachers[name], teacher.loop, len(data.labelled))
        for name, teacher in named_teachers(recipe).items()
        if teacher.train
    }
    alone = parts["student alone"] = training(student, recipe.loop, len(data.train))
    teaching = alone.images * _teachers_work(recipe, teachers)
    if recipe.store.folder is not None:
        teaching = min(teaching, _views(recipe, data) * sum(stream.multiply_adds() for stream in teachers.values()))
    parts["student"] = Part(alone.work + teaching, alone.images)
    evaluated = [student, student, *teachers.values()]
    return parts | {"test": Part(len(data.test) * sum(s.multiply_adds() for s in evaluated), len(data.test))}


def _store(recipe: Recipe, teachers: dict[str, Stream], data: DataSource, processes: int) -> list[str]:
    """Size of a full store, and how long filling it takes at the speed that a convolution has here."""
    if recipe.store.folder is None:
        return []
    views = _views(recipe, data)
    size = sum(layout(recipe, stream, len(data.classes)).bytes_per_view for stream in teachers.values())
    work = views * sum(stream.multiply_adds() for stream in teachers.values())
    speed = multiply_adds_per_second() * processes
    return [
        f"store   {views * size / 1e9:.3g} GB when full: {views} views × {size} bytes ({recipe.store.folder}); filling "
        f"takes {duration(work / speed)} or more: {work:.1e} multiply-adds, of which a convolution does {speed:.0e} a "
        "second here"
    ]


def _views(recipe: Recipe, data: DataSource) -> int:
    """Views of all training images together."""
    return len(data.train) * data.repeats * (recipe.store.views or 0)


def multiply_adds_per_second() -> float:
    """Of a 3 × 3 convolution of 64 channels on this device, measured for a moment; few networks reach it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer, image = torch.nn.Conv2d(64, 64, 3, padding=1).to(device), torch.randn(16, 64, 28, 28, device=device)
    times = []
    with torch.no_grad():
        for _ in range(6):
            began = time.perf_counter()
            layer(image).sum().item()  # .item() waits for the device
            times.append(time.perf_counter() - began)
    return image.numel() * 9 * 64 / min(times)


def duration(seconds: float) -> str:
    """In the largest unit of which there are two or more."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def memory_of(recipe: Recipe, student: Stream, teachers: dict[str, Stream], precision: str) -> float:
    """Bytes of one process that trains in `precision`, "float32" or "bf16".

    Of a parameter: weight and gradient in float32, the optimizer's state, a moving average, and under autocast a copy
    in bf16. Activations, there, are half as large; so are teachers, by the default of `zoo.precision`.
    """
    low = precision == "bf16"
    state = OPTIMIZER_BYTES.get(recipe.loop.optimizer, 8)
    per_parameter = 8 + state + (4 if recipe.loop.ema else 0) + (2 if low else 0)
    activations = saved_bytes_per_image(student) * recipe.loop.batch_size / (2 if low else 1)
    here = sorted((stream.parameter_count for stream in teachers.values()), reverse=True)[: recipe.zoo.resident]
    frozen = sum(here) * (2 if low and recipe.zoo.precision != "no" else 4)
    return per_parameter * student.parameter_count + activations + frozen


def saved_bytes_per_image(stream: Stream) -> float:
    """Bytes that autograd keeps for the backward pass, per image, parameters not counted."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage()._cdata for p in stream.parameters()}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    stream.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = stream(torch.zeros(2, 3, stream.size, stream.size, device=stream.mean.device))
    stream.eval()
    del outputs
    return sum(kept.values()) / 2
