"""The plan of a run on one screen: data, networks, blocks, cost, memory, time and warnings. No weights are loaded."""

from collections.abc import Callable, Iterator

import torch

from meco_timm.common import UserError, is_object, join_names
from meco_timm.data import DataSource, check_batch, known_data, load_data, plan_cache
from meco_timm.networks import Stream, known_by_name, student_stream
from meco_timm.planning.cost import Workload, cost_lines
from meco_timm.planning.data_section import data_section
from meco_timm.planning.tables import BlockShapes, block_shapes, blocks_table, networks_table, render
from meco_timm.planning.time_estimate import gpu_time_lines, measured_time_lines
from meco_timm.recipe import Loop, Recipe, named_teachers
from meco_timm.selection import check_combination, check_local_teachers, combination_lines
from meco_timm.zoo import check_targets, untrained_teachers


def full_plan(recipe: Recipe, processes: int, utilisation: float | None, measure: bool) -> str:
    """Make the plan with the time on GPUs and on this device. `utilisation`: assumed share of a GPU's peak FLOP/s.
    `measure`: time a few steps here.

    Raises:
        UserError: the recipe does not fit the data or the networks.
    """
    published = known_data(recipe.data)
    data = published or load_data(recipe.data, recipe.seed, recipe.store.views)

    def more_lines(work: Workload) -> list[str]:
        lines = gpu_time_lines(work, utilisation)
        if published:
            source = recipe.data.source
            return [*lines, f"note: {source} was not downloaded; its classes and counts are those it is published with"]
        if measure and processes == 1:
            lines += measured_time_lines(work)
        return lines + (check_local_teachers(named_teachers(recipe.teachers), data, work.teachers) if measure else [])

    return make_plan(recipe, data, processes, more_lines)


def make_plan(
    recipe: Recipe, data: DataSource, processes: int, more_lines: Callable[[Workload], list[str]] = lambda _: []
) -> str:
    """Check that the recipe can work, and make the plan as text. `more_lines`: lines on time.

    Raises:
        UserError: a network cannot be made or does not fit the data or its images; the batch is too large.
    """
    if is_object(recipe.losses.similarity) and recipe.losses.object is None:
        raise UserError(
            f"losses.similarity: {recipe.losses.similarity} is a function of a Python program. Give it to `distill` "
            "again, as `similarity`."
        )
    check_batch(data.alone, recipe.loop.batch_size, processes)
    for teacher in recipe.teachers:
        if teacher.train:
            check_batch(data.labelled, teacher.loop.batch_size, processes)
    classes, size = data.classes, recipe.data.image_size
    student = student_stream(recipe.student, recipe.alignment, len(classes), size, weightless=True)
    teachers = untrained_teachers(named_teachers(recipe.teachers), recipe.alignment, size, classes)
    check_targets(teachers, recipe.method)
    work = Workload(recipe, data, student, teachers, processes)
    check_combination(recipe.zoo, recipe.losses.labels, data, teachers)
    _check_batch_norms(work)
    shapes = {name: block_shapes(stream) for name, stream in {"student": student, **teachers}.items()}
    cache = plan_cache(data, recipe.data) if data.identity else None  # of data of the Hub that was not opened: unknown
    return render(
        *data_section(recipe, data),
        networks_table(recipe, student, teachers, classes),
        *([blocks_table(recipe, shapes)] if recipe.alignment.blocks else []),
        *cost_lines(work, cache.bytes if cache and cache.used else 0),
        *([str(cache)] if cache else []),
        *combination_lines(recipe.zoo, data),
        *more_lines(work),
        *_one_location_warnings(recipe, shapes),
        *_warnings(work),
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
            yield f"note: {name} has as many classes as the data set, without names; the same order is assumed"
        if stream.unknown:
            names = join_names([classes[i] for i in stream.unknown])
            yield f"note: {name} does not have {len(stream.unknown)} class(es) of the data set: {names}"
