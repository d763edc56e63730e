"""What a run costs: steps, multiply-adds (MACs), memory and disk, computed from networks without weights."""

import os
import time
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import timm
import torch

from meco_timm.data import DataSource
from meco_timm.networks import Stream
from meco_timm.recipe import Loop, Recipe, named_teachers
from meco_timm.training import choose_speed, total_steps
from meco_timm.zoo import layout

ONE_MOMENT = ("sgd", "momentum", "nesterov", "lion")  # optimizers with 4 bytes of state per parameter; Adam has 8
_ACTIVATIONS: WeakKeyDictionary[Stream, float] = WeakKeyDictionary()  # what was counted
PROGRAM = 1060 * 2**20  # bytes of Python and its libraries at the end of a run on a CPU: LOG.md, 5f6e099


class Workload(NamedTuple):
    """A recipe, its data and its networks without weights. first: of the backbone that the student starts from."""

    recipe: Recipe
    data: DataSource
    student: Stream
    teachers: dict[str, Stream]
    processes: int = 1
    first: "Workload | None" = None

    @property
    def trained(self) -> dict[str, Loop]:
        """Names and loops of the teachers that are trained first."""
        return {name: teacher.loop for name, teacher in named_teachers(self.recipe.teachers).items() if teacher.train}

    @property
    def view_count(self) -> int:
        """Number of (view, image) pairs of all training images in a store."""
        return len(self.data.train) * self.data.repeats * (self.recipe.store.views or 0)


def cost_lines(work: Workload, cached: int = 0) -> list[str]:
    """The plan's lines on steps, multiply-adds per image, memory and store. cached: bytes of decoded images."""
    recipe = work.recipe
    return [
        f"{steps_line(work)}; {'no label is used' if recipe.is_backbone else _trained_first(work)}",
        f"cost    {3 * work.student.multiply_adds() / 1e6:.0f} M multiply-adds per image for the student, "
        f"{teacher_macs(recipe, work.teachers) / 1e6:.0f} M for the teachers ({recipe.zoo.sampling})",
        *([_backbone_line(work.first)] if work.first else []),
        _memory_line(work, cached),
        *([_store_line(work)] if recipe.store.folder is not None else []),
        *([speed_line(work)] if torch.cuda.is_available() else []),
    ]


def speed_line(work: Workload) -> str:
    """How a GPU computes the student's training: what `loop.channels_last` and `loop.compile` come to."""
    loop, model = work.recipe.loop, work.student.model
    assumed = "no" if torch.cuda.is_available() else "bf16"
    precision = work.recipe.precision or os.environ.get("ACCELERATE_MIXED_PRECISION") or assumed
    steps = total_steps(loop, len(work.data.train), work.processes)
    speed = choose_speed(loop, steps, model, "cuda", precision)
    layout = "channels_last" if speed.channels_last else "without channels_last"
    compiled = "compiled with its teachers" if speed.compiled else "not compiled"
    told = "not measured: time may be half or twice the plan's, and memory a third more"
    if precision == "bf16" and not (speed.channels_last or speed.compiled):
        told = "the time was within 25 % on an H100; memory and other cards were not measured"
    where = "float32" if precision == "no" else precision
    return f"speed   on a GPU in {where}: the student {layout}, {compiled}; {told}"


def _trained_first(work: Workload) -> str:
    return f"{len(work.trained)} teacher(s) and the student alone are trained on the labels first, unless in the zoo"


def _backbone_line(work: Workload) -> str:
    """Teachers with their licences, and steps, of the backbone that the student starts from."""
    models = [teacher.model for teacher in work.recipe.teachers]
    configs = {name: timm.get_pretrained_cfg(name) for name in models if ":" not in name}
    licences = {name: config.license for name, config in configs.items() if config and config.license}
    named = [name + (f" ({licences[name]})" if name in licences else "") for name in models]
    steps = total_steps(work.recipe.loop, len(work.data.train), work.processes)
    return (
        f"first   {', '.join(named)} train the student's backbone for {steps} steps, without labels, unless it is in "
        "the zoo"
    )


def steps_line(work: Workload) -> str:
    """Number of steps, and the effective batch with its parts."""
    loop, images = work.recipe.loop, len(work.data.train)
    steps, batch = total_steps(loop, images, work.processes), loop.batch_size * loop.accumulation * work.processes
    parts = [f"{work.processes} process{'es' * (work.processes > 1)}", str(loop.batch_size)]
    parts += [f"{loop.accumulation} accumulated"] if loop.accumulation > 1 else []
    passes = f"{steps * batch / images:.1f} passes over the training images"
    return f"steps   {steps} of the student, with {batch} images each ({' × '.join(parts)}), {passes}"


def least_seconds(work: Workload) -> float:
    """Lower bound of the time on this device, at the speed of a convolution."""
    macs = sum(part.training + part.forward for part in run_parts(work).values())
    return macs / multiply_adds_per_second() / work.processes


def memory_gib(work: Workload, precision: str, cached: int) -> float:
    """GiB of a process: on a GPU what training takes of its memory; on a CPU all of it. cached: bytes of images."""
    own = 0 if torch.cuda.is_available() or torch.backends.mps.is_available() else PROGRAM + cached
    return (run_memory(work, precision) + own) / 2**30


def teacher_macs(recipe: Recipe, teachers: dict[str, Stream]) -> float:
    """Multiply-adds per image and step of the teachers: of the mean of all, or of one that is drawn."""
    forward = [stream.multiply_adds() for stream in teachers.values()]
    return sum(forward) / (1 if recipe.zoo.sampling == "average" else len(forward))


class Part(NamedTuple):
    """A part of a run, of all processes together: multiply-adds of forward and backward passes in training, of forward
    passes alone, and the number of images read."""

    training: float
    forward: float
    images: float


def run_parts(work: Workload) -> dict[str, Part]:
    """The parts of a run by name, assuming an empty zoo and an empty store."""
    recipe, data = work.recipe, work.data
    parts = {"backbone": run_parts(work.first)["student"]} if work.first else {}
    parts |= {
        f"teacher {name}": _training_part(work.teachers[name], loop, len(data.labelled), work)
        for name, loop in work.trained.items()
    }
    alone = _training_part(work.student, recipe.loop, len(data.train), work)
    if not recipe.is_backbone:
        parts["student alone"] = alone
    targets = alone.images * teacher_macs(recipe, work.teachers)
    all_teachers = sum(stream.multiply_adds() for stream in work.teachers.values())
    if recipe.store.folder is not None:
        targets = min(targets, work.view_count * all_teachers)
    parts["student"] = alone._replace(forward=alone.forward + targets)
    evaluated = 2 * work.student.multiply_adds() + all_teachers
    return parts | {"test": Part(0, len(data.test) * evaluated, len(data.test))}


def _training_part(stream: Stream, loop: Loop, images: int, work: Workload) -> Part:
    """A backward pass costs two forward passes; gradient checkpointing costs one more forward pass."""
    steps = total_steps(loop, images, work.processes)
    trained = steps * loop.batch_size * loop.accumulation * work.processes
    validated = loop.validations * len(work.data.validation)
    passes = 4 if loop.gradient_checkpointing else 3
    each = stream.multiply_adds()
    return Part(passes * trained * each, validated * each, trained + validated)


def _memory_line(work: Workload, cached: int) -> str:
    """On a GPU what training takes of its memory; on a CPU what the process takes in all."""
    used = {dtype: memory_gib(work, dtype, cached) for dtype in ("float32", "bf16")}
    parts = "weights, gradients, optimizer, activations and teachers"
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        parts = f"{PROGRAM / 2**30:.2f} for Python and its libraries; cached images, {parts}"
    return f"memory  about {used['float32']:.2f} GiB per process in float32, {used['bf16']:.2f} in bf16: {parts}"


def _store_line(work: Workload) -> str:
    """Size of a complete store, and a lower bound of the time to precompute it on this device."""
    recipe, views, streams = work.recipe, work.view_count, work.teachers.values()
    temperature, classes = recipe.losses.temperature, len(recipe.classes(work.data.classes))
    size = sum(layout(recipe.store, temperature, stream, classes).bytes_per_view for stream in streams)
    macs = views * sum(stream.multiply_adds() for stream in streams)
    speed = multiply_adds_per_second() * work.processes
    return (
        f"store   {views * size / 1e9:.3g} GB when complete: {views} views × {size} bytes ({recipe.store.folder}); "
        f"precomputing it takes at least {format_duration(macs / speed)}: {macs:.1e} multiply-adds at {speed:.0e} per "
        "second, the measured speed of a convolution on this device"
    )


def multiply_adds_per_second() -> float:
    """Measured speed of a 3 × 3 convolution with 64 channels on this device; few networks reach it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer, image = torch.nn.Conv2d(64, 64, 3, padding=1).to(device), torch.randn(16, 64, 28, 28, device=device)
    times = []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            layer(image).sum().item()  # .item() waits for the device
            times.append(time.perf_counter() - start)
    return image.numel() * 9 * 64 / min(times)


def format_duration(seconds: float) -> str:
    """`3 days`, `5 hours`, `12 minutes` or `40 s`: in the largest unit that gives at least 2."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def run_memory(work: Workload, precision: str) -> float:
    """Estimated bytes of one process in the training that takes most: of the student, its backbone or a teacher."""
    trained = [_optimized(work.teachers[name], loop, precision) for name, loop in work.trained.items()]
    first = run_memory(work.first, precision) if work.first else 0
    return max(training_memory(work.recipe, work.student, work.teachers, precision), first, *trained)


def training_memory(recipe: Recipe, student: Stream, teachers: dict[str, Stream], precision: str) -> float:
    """Estimated bytes of one process that distils in `precision`, "float32" or "bf16": the student and the teachers.

    Autocast to bf16 halves (by the default of `zoo.precision`) the teachers.
    """
    on_device = sorted((stream.parameter_count for stream in teachers.values()), reverse=True)[: recipe.zoo.resident]
    frozen = sum(on_device) * (2 if precision == "bf16" and recipe.zoo.precision != "no" else 4)
    return _optimized(student, recipe.loop, precision) + frozen


def _optimized(stream: Stream, loop: Loop, precision: str) -> float:
    """Estimated bytes of a network that is trained: weights and gradients in float32, the optimizer's state, the EMA of
    the weights, activations. Autocast to bf16 adds a copy of the weights and halves the activations."""
    bf16 = precision == "bf16"
    state = 4 if loop.optimizer in ONE_MOMENT else 8
    per_parameter = 8 + state + (4 if loop.ema else 0) + (2 if bf16 else 0)
    activations = activation_bytes_per_image(stream) * loop.batch_size / (2 if bf16 else 1)
    return per_parameter * stream.parameter_count + activations


def activation_bytes_per_image(stream: Stream) -> float:
    """Bytes per image that autograd saves for the backward pass, parameters not included; counted once per stream."""
    if stream in _ACTIVATIONS:
        return _ACTIVATIONS[stream]
    saved: dict[int, int] = {}
    parameters = {p.untyped_storage()._cdata for p in stream.parameters()}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    stream.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = stream(torch.zeros(2, 3, stream.size, stream.size, device=stream.mean.device))
    stream.eval()
    del outputs
    _ACTIVATIONS[stream] = sum(saved.values()) / 2
    return _ACTIVATIONS[stream]
