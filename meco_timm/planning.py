"""The plan: what a run will do, on one screen, before it does it. Networks are looked at without their weights."""

import io
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_INCEPTION_MEAN, OPENAI_CLIP_MEAN

from meco_timm.classes import known_by_name, some
from meco_timm.data import DataSource, check_batch
from meco_timm.loop import total_steps
from meco_timm.recipe import Network, Recipe, Teacher
from meco_timm.store import layout
from meco_timm.streams import Stream, student_stream
from meco_timm.teachers import named_teachers, weightless_zoo

WIDTH = 118
Taps = list[tuple[str, list[int]]]  # (module, C×H×W) of each block


def make_plan(recipe: Recipe, data: DataSource, processes: int) -> str:
    """The plan as text.

    Raises:
        UserError: any network that cannot be made, does not fit the data, or cannot take its images; too large a batch.
    """
    for loop in (recipe.loop, *(teacher.loop for teacher in recipe.teachers if teacher.train)):
        check_batch(data.labelled, loop.batch_size, processes)  # the student alone and the teachers learn from these
    student = student_stream(
        recipe.student, recipe.alignment, len(data.classes), recipe.data.image_size, weightless=True
    )
    teachers = weightless_zoo(recipe, data.classes)
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, markup=False, emoji=False)
    console.print(_data_line(recipe, data))
    console.print(_networks(recipe, student, teachers, data.classes))
    tapped = {name: _tapped(stream) for name, stream in {"student": student, **teachers}.items()}
    console.print(_blocks(recipe, tapped))
    for line in (
        *_cost(recipe, student, teachers, data, processes),
        *_points(recipe, tapped),
        *_warnings(recipe, student, teachers, data.classes),
    ):
        console.print(line, highlight=False)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _data_line(recipe: Recipe, data: DataSource) -> str:
    return (
        f"data  {recipe.data.source}: {len(data.classes)} classes, {len(data.train)} training images "
        f"({len(data.labelled)} with labels), {len(data.validation)} validation, {len(data.test)} test, "
        f"at {recipe.data.image_size} px\n"
    )


def _plain_table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for i, head in enumerate(heads):
        table.add_column(
            head, justify="right" if head.endswith((" M", "MiB", " px")) else "left", no_wrap=i == 0, overflow="fold"
        )
    return table


def _networks(recipe: Recipe, student: Stream, teachers: dict[str, Stream], classes: list[str]) -> Table:
    table = _plain_table(
        "network", "params M", "MACs M", "MiB", "input px", "normalised", "classes", "weights", "licence"
    )
    table.add_row("student", *_network_cells(recipe.student, student, len(classes)))
    for (name, stream), teacher in zip(teachers.items(), named_teachers(recipe).values(), strict=True):
        table.add_row(name, *_network_cells(teacher, stream, len(classes)))
    return table


def _network_cells(network: Network, stream: Stream, classes: int) -> list[str]:
    return [
        f"{stream.parameter_count / 1e6:.2f}",
        f"{stream.multiply_adds() / 1e6:.1f}",
        f"{stream.parameter_count * 4 / 2**20:.1f}",
        str(stream.size),
        _normalisation(stream),
        _class_cell(stream, classes),
        _source(network, stream),
        str(stream.model.pretrained_cfg.get("license") or "–") if network.names_weights else "–",
    ]


def _normalisation(stream: Stream) -> str:
    mean, std = tuple(stream.data_config["mean"]), tuple(stream.data_config["std"])
    known = {
        IMAGENET_DEFAULT_MEAN: "ImageNet",
        IMAGENET_INCEPTION_MEAN: "0.5",
        OPENAI_CLIP_MEAN: "CLIP",
        (0.0,) * 3: "none",
    }
    return known.get(mean) or " / ".join(",".join(f"{v:.3g}" for v in values) for values in (mean, std))


def _class_cell(stream: Stream, classes: int) -> str:
    if not stream.has_logits:
        return "none: blocks only"
    own = stream.model.num_classes
    return f"{own}" if stream.class_map is None else f"{own} mapped to {classes}"


def _source(network: Network, stream: Stream) -> str:
    if isinstance(network, Teacher) and not network.train:
        tag = stream.model.pretrained_cfg.get("tag")
        return network.weights or (network.model if network.names_weights else f"timm tag {tag}")
    start = network.weights or network.model if network.names_weights else "random"
    return f"{start}, trained first" if isinstance(network, Teacher) else f"{start}, new head"


def _blocks(recipe: Recipe, tapped: dict[str, Taps]) -> Table:
    """`layer2 64×4×4 → 256` for each block of each network."""
    table = _plain_table("\nblocks", *(f"\n{i}" for i in range(recipe.alignment.blocks)))
    for name, taps in tapped.items():
        cells = [f"{module} {'×'.join(map(str, shape))} → {recipe.alignment.length}" for module, shape in taps]
        table.add_row(name, *(cells or ["none: logits only"]))
    return table


@torch.no_grad()
def _tapped(stream: Stream) -> Taps:
    if not stream.taps:
        return []
    image = stream.prepare(torch.zeros(1, 3, stream.size, stream.size, device=stream.mean.device))
    maps = stream.model.forward_intermediates(image, indices=stream.taps, output_fmt="NCHW", intermediates_only=True)
    names = [stream.model.feature_info[i].get("module", str(i)) for i in stream.taps]
    return [(name, list(m.shape[1:])) for name, m in zip(names, maps, strict=True)]


def _cost(recipe: Recipe, student: Stream, teachers: dict[str, Stream], data: DataSource, processes: int) -> list[str]:
    steps = total_steps(recipe.loop, len(data.train), processes)
    per_step = recipe.loop.batch_size * recipe.loop.accumulation * processes
    forward = [stream.multiply_adds() for stream in teachers.values()]
    of_teachers = sum(forward) / (len(forward) if recipe.zoo.sampling == "random" else 1)
    trained = [t for t in recipe.teachers if t.train]
    gib = _memory(recipe, student, teachers) / 2**30
    return [
        f"\nsteps   {steps} of {per_step} images ({steps * per_step / len(data.train):.1f} passes over the training "
        f"images); {len(trained)} teacher(s) and the student alone are trained on the labels first, unless in the zoo",
        f"cost    {3 * student.multiply_adds() / 1e6:.0f} M multiply-adds per image for the student, "
        f"{of_teachers / 1e6:.0f} M for the teachers ({recipe.zoo.sampling})",
        f"memory  about {gib:.2f} GiB per process in float32: weights, gradients, optimizer, activations and teachers",
        *_store(recipe, teachers, data, processes),
    ]


def _store(recipe: Recipe, teachers: dict[str, Stream], data: DataSource, processes: int) -> list[str]:
    """Size of a full store, and how long filling it takes at the speed that a convolution has here."""
    if recipe.store.folder is None:
        return []
    views = len(data.train) * data.repeats * (recipe.store.views or 0)
    size = sum(layout(recipe, stream, len(data.classes)).bytes_per_view for stream in teachers.values())
    work = views * sum(stream.multiply_adds() for stream in teachers.values())
    speed = multiply_adds_per_second() * processes
    return [
        f"store   {views * size / 1e9:.3g} GB when full: {views} views × {size} bytes ({recipe.store.folder}); filling "
        f"takes {_duration(work / speed)} or more: {work:.1e} multiply-adds, of which a convolution does {speed:.0e} a "
        "second here"
    ]


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


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def _memory(recipe: Recipe, student: Stream, teachers: dict[str, Stream]) -> float:
    """Bytes of float32 training: 16 per student parameter (Adam), its activations, 4 per teacher parameter."""
    activations = saved_bytes_per_image(student) * recipe.loop.batch_size
    frozen = sum(stream.parameter_count for stream in teachers.values())
    return 16 * student.parameter_count + activations + 4 * frozen


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


def _points(recipe: Recipe, tapped: dict[str, Taps]) -> list[str]:
    """Warnings of maps without extent where places are compared."""
    if recipe.alignment.method != "attention" or not any(recipe.block_weights):
        return []
    lines = []
    for name, taps in tapped.items():
        points = [str(i) for i, (_, shape) in enumerate(taps) if shape[1:] == [1, 1]]
        if points:
            lines.append(
                f"warning: block {', '.join(points)} of {name} is one point, and `attention` compares places: nothing "
                "is learnt there; `flatten`, or larger images, may serve better"
            )
    return lines


def _warnings(recipe: Recipe, student: Stream, teachers: dict[str, Stream], classes: list[str]) -> list[str]:
    lines = []
    for (name, stream), teacher in zip(teachers.items(), recipe.teachers, strict=True):
        licence = str(stream.model.pretrained_cfg.get("license") or "")
        if teacher.names_weights and "nc" in licence.split("-"):
            lines.append(f"warning: the weights of {name} are {licence}: a student of it may not be used commercially")
        if stream.size > 2 * student.size:
            lines.append(
                f"warning: {name} sees images of {student.size} px enlarged to {stream.size}: slow and blurred; "
                "a smaller `size`, or a larger data.image_size, may serve better"
            )
        told = teacher.train or teacher.classes or stream.class_map is not None
        if stream.has_logits and not told and not known_by_name(stream.model, classes):
            lines.append(f"note: {name} has as many classes as the data set; taken to be in the same order")
        if stream.unknown:
            names = some([classes[i] for i in stream.unknown], 5)
            lines.append(f"note: {name} never speaks of {len(stream.unknown)} class(es) that it lacks: {names}")
    return lines
