"""The plan of a run on one screen: data, networks, blocks, cost, memory and warnings. No weights are loaded."""

import io
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_INCEPTION_MEAN, OPENAI_CLIP_MEAN

from meco_timm.common import join_names
from meco_timm.data import DataSource, check_batch, plan_cache
from meco_timm.networks import Stream, is_place, known_by_name, student_stream
from meco_timm.planning.checks import check_batch_norms, check_function
from meco_timm.planning.cost import cost_lines
from meco_timm.planning.data_section import DataSection, data_section
from meco_timm.recipe import Network, Recipe, Teacher
from meco_timm.selection import check_combination, combination_lines
from meco_timm.zoo import named_teachers, untrained_teachers

WIDTH = 118
BlockShapes = list[tuple[str, list[int], tuple[int, ...]]]  # (module, C×H×W, aligned shape) of each
ExtraLines = Callable[[Stream, dict[str, Stream]], list[str]]


def make_plan(recipe: Recipe, data: DataSource, processes: int, extra_lines: ExtraLines = lambda *_: []) -> str:
    """The plan as text. `extra_lines`: gives more lines from the streams of student and teachers.

    Raises:
        UserError: a network cannot be made or does not fit the data or its images; the batch is too large.
    """
    check_function(recipe)
    check_batch(data.alone, recipe.loop.batch_size, processes)
    for teacher in recipe.teachers:
        if teacher.train:
            check_batch(data.labelled, teacher.loop.batch_size, processes)
    student = student_stream(
        recipe.student, recipe.alignment, len(data.classes), recipe.data.image_size, weightless=True
    )
    teachers = untrained_teachers(recipe, data.classes)
    check_combination(recipe, data, teachers)
    check_batch_norms(recipe, student, teachers)
    shapes = {name: _block_shapes(stream) for name, stream in {"student": student, **teachers}.items()}
    cache = plan_cache(data, recipe.data) if data.identity else None  # of data of the Hub that was not opened: unknown
    return _render(
        *_data_parts(data_section(recipe, data)),
        _networks_table(recipe, student, teachers, data.classes),
        *([_blocks_table(recipe, shapes)] if recipe.alignment.blocks else []),
        *cost_lines(recipe, student, teachers, data, processes, cache.bytes if cache and cache.used else 0),
        *([str(cache)] if cache else []),
        *combination_lines(recipe, data),
        *extra_lines(student, teachers),
        *_one_location_warnings(recipe, shapes),
        *_warnings(recipe, student, teachers, data.classes),
    )


def _render(*parts: str | Table) -> str:
    plain = {"color_system": None, "markup": False, "emoji": False, "force_jupyter": False}  # else it draws in the cell
    console = Console(file=io.StringIO(), width=WIDTH, **plain)  # type: ignore[arg-type]
    for part in parts:
        console.print(part, highlight=False)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _data_parts(section: DataSection) -> list[str | Table]:
    """The data's lines and table of classes, each block followed by an empty line."""
    table: list[str | Table] = [section.classes, ""] if section.classes else []
    lines = [*section.lines, ""] if section.lines else []
    return [f"{section.title}\n", *table, *lines]


def _plain_table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for i, head in enumerate(heads):
        table.add_column(
            head, justify="right" if head.endswith((" M", "MiB", " px")) else "left", no_wrap=i == 0, overflow="fold"
        )
    return table


def _networks_table(recipe: Recipe, student: Stream, teachers: dict[str, Stream], classes: list[str]) -> Table:
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
        _weights_cell(network, stream, classes),
        str(stream.model.pretrained_cfg.get("license") or "–") if network.names_weights else "–",
    ]


def _normalisation(stream: Stream) -> str:
    mean, std = tuple(stream.data_config["mean"]), tuple(stream.data_config["std"])
    names = {
        IMAGENET_DEFAULT_MEAN: "ImageNet",
        IMAGENET_INCEPTION_MEAN: "0.5",
        OPENAI_CLIP_MEAN: "CLIP",
        (0.0,) * 3: "none",
    }
    return names.get(mean) or " / ".join(",".join(f"{v:.3g}" for v in values) for values in (mean, std))


def _class_cell(stream: Stream, classes: int) -> str:
    if not stream.has_logits:
        return "none: blocks only"
    own = stream.model.num_classes
    return f"{own}" if stream.class_map is None else f"{own} mapped to {classes}"


def _weights_cell(network: Network, stream: Stream, classes: int) -> str:
    """Where the weights come from, and whether they are trained first."""
    cfg, is_teacher = stream.model.pretrained_cfg, isinstance(network, Teacher)
    if network.object is not None:
        return _live_cell(network, classes)
    own = (
        "its own" if is_teacher and not is_place(network.model) else network.model
    )  # the tag stands in the first column
    parts = [network.weights or (own if network.names_weights else "random")]
    if isinstance(network, Teacher) and not network.train:
        return parts[0] if network.names_weights else f"timm tag {cfg.get('tag')}"
    if network.names_weights and not network.weights and cfg.get("num_classes") != classes:
        parts.append("new head")
    if is_teacher:
        parts.append("fine-tuned first" if network.names_weights else "trained first")
    return ", ".join(parts)


def _live_cell(network: Network, classes: int) -> str:
    """The same of a network of the Python program."""
    if isinstance(network, Teacher) and not network.train:
        return "as given"
    head = ["new head"] if network.object.module.num_classes != classes else []
    return ", ".join(["as given", *head, *(["trained first"] if isinstance(network, Teacher) else [])])


def _blocks_table(recipe: Recipe, shapes: dict[str, BlockShapes]) -> Table:
    """`layer2 64×8×8 → 16×4×4` for each block of each network."""
    table = _plain_table("\nblocks", *(f"\n{i}" for i in range(recipe.alignment.blocks)))
    for name, blocks in shapes.items():
        cells = [f"{module} {'×'.join(map(str, shape))} → {'×'.join(map(str, to))}" for module, shape, to in blocks]
        table.add_row(name, *(cells or ["none: logits only"]))
    return table


@torch.no_grad()
def _block_shapes(stream: Stream) -> BlockShapes:
    if not stream.taps:
        return []
    image = stream.prepare(torch.zeros(1, 3, stream.size, stream.size, device=stream.mean.device))
    maps = stream.model.forward_intermediates(image, indices=stream.taps, output_fmt="NCHW", intermediates_only=True)
    names = [stream.model.feature_info[i].get("module", str(i)) for i in stream.taps]
    return [(name, list(m.shape[1:]), to) for name, m, to in zip(names, maps, stream.block_shapes, strict=True)]


def _one_location_warnings(recipe: Recipe, shapes: dict[str, BlockShapes]) -> list[str]:
    """Attention alignment compares locations; warn of maps of 1×1."""
    if recipe.alignment.method != "attention" or not any(recipe.method.block_weights):
        return []
    lines = []
    for name, blocks in shapes.items():
        if found := [str(i) for i, (_, shape, _) in enumerate(blocks) if shape[1:] == [1, 1]]:
            lines.append(
                f"warning: block {', '.join(found)} of {name} is a 1×1 map, and `attention` compares locations: it "
                "teaches nothing; write alignment.method=flatten, or use larger images"
            )
    return lines


def _warnings(recipe: Recipe, student: Stream, teachers: dict[str, Stream], classes: list[str]) -> list[str]:
    lines = []
    for (name, stream), teacher in zip(teachers.items(), recipe.teachers, strict=True):
        licence = str(stream.model.pretrained_cfg.get("license") or "")
        if teacher.names_weights and "nc" in licence.split("-"):
            lines.append(
                f"warning: the weights of {name} are {licence}: commercial use of the student may not be allowed"
            )
        if stream.size > 2 * student.size:
            lines.append(
                f"warning: {name} gets images of {student.size} px enlarged to {stream.size} px, slow and blurred; "
                "consider a smaller teacher `size` or a larger data.image_size"
            )
        matched = teacher.train or teacher.classes or stream.class_map is not None
        if stream.has_logits and not matched and not known_by_name(stream.model, classes):
            lines.append(f"note: {name} has as many classes as the data set, without names; the same order is assumed")
        if stream.unknown:
            names = join_names([classes[i] for i in stream.unknown], 5)
            lines.append(f"note: {name} does not have {len(stream.unknown)} class(es) of the data set: {names}")
    return lines
