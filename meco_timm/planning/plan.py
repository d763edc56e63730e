"""The plan of a run: data, networks, method, cost, memory, time and warnings. No weights are loaded."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from meco_timm.common import WIDTH, Status, Table, UserError, is_object, join_names, lay_out
from meco_timm.data import DataSource, check_batch, known_data, load_data, plan_cache
from meco_timm.networks import Stream, assumed_pairs, known_by_name, student_stream
from meco_timm.planning.cost import (
    Workload,
    cost_lines,
    format_duration,
    least_seconds,
    memory_gib,
    steps_line,
    teacher_macs,
)
from meco_timm.planning.data_section import data_line, data_section
from meco_timm.planning.network_tables import BlockShapes, block_shapes, blocks_table, networks_table
from meco_timm.planning.time_estimate import gpu_time_lines, measured_time_lines
from meco_timm.planning.weights import Weights, find_weights, weights_lines
from meco_timm.recipe import Loop, Recipe, check_recipe, named_teachers
from meco_timm.selection import check_combination, check_local_teachers, combination_lines
from meco_timm.zoo import check_targets, untrained_teachers

LONG = 3600  # seconds on a CPU above which a smaller recipe is named
WORDS = {"ce": "cross-entropy", "kl": "KL divergence", "l1": "L1 distance", "l2": "L2 distance", "dist": "DIST"}


class Plan(NamedTuple):
    """All that is known of a run before it starts. summary: five lines. parts: all of it. notes: also warnings."""

    summary: list[str]
    parts: list[str | Table]
    notes: list[str]
    weights: list[Weights]

    def text(self, width: int = WIDTH) -> str:
        """All of it."""
        return lay_out([*self.parts, *self.notes], width)

    def short(self, width: int = WIDTH) -> str:
        """The five lines, what has to be downloaded, and what should be known before."""
        return lay_out([*self.summary, *weights_lines([w for w in self.weights if not w.here]), *self.notes], width)


def full_plan(recipe: Recipe, processes: int, utilisation: float | None, measure: bool) -> Plan:
    """Make the plan with the time on GPUs and on this device. `utilisation`: assumed share of a GPU's peak FLOP/s.
    `measure`: time a few steps here.

    Raises:
        UserError: the recipe does not fit the data or the networks.
    """
    published = known_data(recipe.data)
    with Status("plan: reading the data") as status:
        data = published or load_data(
            recipe.data, recipe.seed, recipe.store.views, labels_needed=not recipe.is_backbone
        )
        status.update("plan: counting parameters and operations")
        work, plan = _check_and_plan(recipe, data, processes)
        lines = gpu_time_lines(work, utilisation)
        if published:
            source = recipe.data.source
            plan.notes.append(
                f"note: {source} was not downloaded; its classes and counts are those it is published with"
            )
        elif measure:
            lines += measured_time_lines(work, status) if processes == 1 else []
            status.update("plan: checking teachers on labelled images")
            lines += check_local_teachers(named_teachers(recipe.teachers), data, work.teachers)
    plan.parts.extend(lines)
    return plan


def make_plan(recipe: Recipe, data: DataSource, processes: int) -> Plan:
    """Check that the recipe can work, and make its plan without times.

    Raises:
        UserError: a network cannot be made or does not fit the data or its images; the batch is too large.
    """
    return _check_and_plan(recipe, data, processes)[1]


def _check_and_plan(recipe: Recipe, data: DataSource, processes: int) -> tuple[Workload, Plan]:
    if is_object(recipe.losses.similarity) and recipe.losses.object is None:
        raise UserError(
            f"losses.similarity: {recipe.losses.similarity} is a function of a Python program. Give it to `distill` "
            "again, as `similarity`."
        )
    check_batch(data.train if recipe.is_backbone else data.alone, recipe.loop.batch_size, processes)
    for teacher in recipe.teachers:
        if teacher.train:
            check_batch(data.labelled, teacher.loop.batch_size, processes)
    classes, size = recipe.classes(data.classes), recipe.data.image_size
    student = student_stream(recipe.student, recipe.alignment, len(classes), size, weightless=True)
    teachers = untrained_teachers(named_teachers(recipe.teachers), recipe.alignment, size, classes)
    check_targets(teachers, recipe.method)
    made = student_backbone(recipe)
    first = _check_and_plan(made, data, processes)[0] if made else None
    work = Workload(recipe, data, student, teachers, processes, first)
    if not recipe.is_backbone:
        check_combination(recipe.zoo, recipe.losses.labels, data, teachers)
    _check_batch_norms(work)
    shapes = {name: block_shapes(stream) for name, stream in {"student": student, **teachers}.items()}
    cache = plan_cache(data, recipe.data) if data.identity else None  # of data of the Hub that was not opened: unknown
    cached = cache.bytes if cache and cache.used else 0
    weights = find_weights(work)
    parts: list[str | Table] = [
        *data_section(recipe, data),
        networks_table(recipe, student, teachers, classes),
        *([blocks_table(recipe, shapes)] if recipe.alignment.blocks else []),
        method_line(recipe),
        *cost_lines(work, cached),
        *([str(cache)] if cache else []),
        *weights_lines(weights),
        *combination_lines(recipe.zoo, data),
    ]
    notes = [*_one_location_warnings(recipe, shapes), *_warnings(work), *_long_on_a_cpu(work)]
    return work, Plan(_summary(work, cached), parts, notes, weights)


def student_backbone(recipe: Recipe) -> Recipe | None:
    """The recipe of the backbone that the student starts from, if it does. It has the same images for validation and
    test, and learns from neither.

    Raises:
        UserError: a key does not fit a backbone.
    """
    made, student = recipe.student.backbone, recipe.student
    if made is None:
        return None
    labels: dict[str, Any] = {"labelled": None, "student_sees": "all", "sampling": "natural"}
    keys = {
        "task": "backbone",
        "seed": recipe.seed,
        "precision": recipe.precision,
        "data": recipe.data.model_copy(update=labels | {"validation": recipe.data.validation}),
        "teachers": made.teachers,
        "student": student.model_copy(update={"backbone": None}),
        "zoo": {key: getattr(recipe.zoo, key) for key in ("folder", "resident", "precision")},
        "loop": made.loop,
    }
    return check_recipe(keys, "student.backbone")


def _summary(work: Workload, cached: int) -> list[str]:
    """Data, networks, method, cost, and time and memory here, each in a line."""
    teachers = sum(stream.parameter_count for stream in work.teachers.values())
    trained = f", {len(work.trained)} trained on the labels first" if work.trained else ""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "this CPU"
    gib = memory_gib(work, "float32" if work.recipe.precision == "no" else "bf16", cached)
    return [
        data_line(work.recipe, work.data),
        f"nets    {len(work.teachers)} teacher(s), {teachers / 1e6:.2f} M parameters in all{trained} → student, "
        f"{work.student.parameter_count / 1e6:.2f} M",
        method_line(work.recipe),
        f"{steps_line(work)}; {3 * work.student.multiply_adds() / 1e6:.0f} M multiply-adds to train the student on an "
        f"image, {teacher_macs(work.recipe, work.teachers) / 1e6:.0f} M for the teachers",
        f"here    about {gib:.2f} GiB of memory per process on {device}; the time is not measured: add --plan to the "
        "command for that",
    ]


def method_line(recipe: Recipe) -> str:
    """Teachers of a step, losses and discriminators in words."""
    losses, blocks = recipe.losses, recipe.alignment.blocks
    parts = ["one random teacher a step" if recipe.zoo.sampling == "random" else "the mean of all teachers"]
    named = WORDS.get(losses.similarity, losses.similarity)
    parts += [f"{named} of logits at temperature {losses.temperature:g}"] if losses.logits else []
    if blocks and any(recipe.method.block_weights):
        named = WORDS.get(losses.block_similarity, losses.block_similarity)
        parts.append(f"{named} of {blocks} blocks ({recipe.alignment.method})")
    if recipe.losses.embedding:
        parts.append(f"cosine and smooth L1 of the embedding ({recipe.alignment.embedding} projection)")
    if recipe.discriminators.adversary != "none":
        parts.append(f"discriminators on {recipe.discriminators.on} ({recipe.discriminators.adversary})")
    parts += [f"labels × {losses.labels:g}"] if losses.labels else []
    parts += ["the student starts from a backbone, trained first"] if recipe.student.backbone else []
    return f"method  {'; '.join(parts)}"


def _long_on_a_cpu(work: Workload) -> Iterator[str]:
    """Name the recipe for CPUs where there is no GPU, and the images are a folder of one's own."""
    seconds = 0 if torch.cuda.is_available() or not work.data.folders else least_seconds(work)
    if seconds > LONG:
        yield (
            f"note: this takes at least {format_duration(seconds)} on this CPU. The recipe own_images_small "
            "(recipes/own_images_small.yaml) has small networks and images: minutes on a CPU, and nothing to download"
        )


def _check_batch_norms(work: Workload) -> None:
    """Refuse one image per step for a network with a batch norm that would have one value per channel to normalise.

    Raises:
        UserError: names the batch size that is too small.
    """
    _check_batch_norm(work.student, work.recipe.loop, "loop")
    for i, (teacher, stream) in enumerate(zip(work.recipe.teachers, work.teachers.values(), strict=True)):
        if teacher.train:
            _check_batch_norm(stream, teacher.loop, f"teachers.{i}.loop")


@torch.no_grad()
def _check_batch_norm(stream: Stream, loop: Loop, key: str) -> None:
    if loop.batch_size > 1:
        return
    try:
        stream.train()(torch.zeros(1, 3, stream.size, stream.size, device=stream.mean.device))
    except ValueError as error:
        if "value per channel" not in str(error):
            raise
        raise UserError(
            f"{key}.batch_size: 1 image of {stream.size} px gives a batch norm of {type(stream.model).__name__} one "
            "value per channel, which cannot be normalised. Write 2 or more."
        ) from None
    finally:
        stream.eval()


def _one_location_warnings(recipe: Recipe, shapes: dict[str, BlockShapes]) -> Iterator[str]:
    """Attention alignment compares locations; warn of maps of 1×1."""
    if recipe.alignment.method != "attention" or not any(recipe.method.block_weights):
        return
    for name, blocks in shapes.items():
        if found := [str(i) for i, (_, shape, _) in enumerate(blocks) if shape[1:] == [1, 1]]:
            yield (
                f"warning: block {', '.join(found)} of {name} is a 1×1 map, and `attention` compares locations: it "
                "teaches nothing; write alignment.method=flatten, or use larger images"
            )


def _warnings(work: Workload) -> Iterator[str]:
    """Licences, enlarged images, and classes that are assumed or missing."""
    classes, size = work.data.classes, work.student.size
    for (name, stream), teacher in zip(work.teachers.items(), work.recipe.teachers, strict=True):
        licence = str(stream.model.pretrained_cfg.get("license") or "")
        if teacher.names_weights and "nc" in licence.split("-"):
            yield f"warning: the weights of {name} are {licence}: commercial use of the student may not be allowed"
        if stream.size > 2 * size:
            yield (
                f"warning: {name} gets images of {size} px enlarged to {stream.size} px, slow and blurred; consider a "
                "smaller teacher `size` or a larger data.image_size"
            )
        matched = teacher.train or teacher.classes or stream.class_map is not None
        if stream.has_logits and not matched and not known_by_name(stream.model, classes):
            if pairs := assumed_pairs(stream.model, classes):
                yield f"warning: {name}: classes of other names are taken to be the same: {join_names(pairs)}"
            else:
                yield f"note: {name} has as many classes as the data set, without names; the same order is assumed"
        if stream.unknown:
            names = join_names([classes[i] for i in stream.unknown])
            yield f"note: {name} does not have {len(stream.unknown)} class(es) of the data set: {names}"
