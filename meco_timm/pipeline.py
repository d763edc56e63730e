"""The whole program in order: recipe → data → teachers → student → results → checkpoint."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import get_token
from torch import nn

from meco_timm.common import (
    Status,
    Stopwatch,
    UserError,
    batch_seed,
    collect_new_objects_only,
    get_logger,
    share_of_time,
    student_seed,
    terminal_width,
)
from meco_timm.data import DataSource, load_data
from meco_timm.evaluation import Row
from meco_timm.networks import student_stream
from meco_timm.planning import WIDTH, full_plan, is_rehearsal, make_plan, rehearsal, require_weights
from meco_timm.recipe import Recipe, recipe_key
from meco_timm.runs import (
    AnyRecipe,
    Similarity,
    as_recipe,
    assemble_zoo,
    backbone_recipe,
    begin,
    check_same,
    evaluate_all,
    finish_backbone,
    finished_run,
    label_training,
    load_pretrained,
    run_accelerator,
    show_results,
    train_alone_and_compare,
    train_student,
)
from meco_timm.selection import combine_teachers
from meco_timm.training import (
    Job,
    OnStep,
    RunFolder,
    check_launch,
    describe_processes,
    explain_faults,
    locked_folder,
    open_run_folder,
    total_steps,
)
from meco_timm.zoo import TeacherLike, precompute_outputs, use_store

logger = get_logger(__name__)


def distill(
    recipe: AnyRecipe,
    fresh: bool = False,
    limit_steps: int | None = None,
    *,
    student: str | nn.Module | None = None,
    teachers: Sequence[TeacherLike] | None = None,
    data: Any = None,
    similarity: Similarity | None = None,
    on_step: OnStep | None = None,
) -> list[Row]:
    """Train the teachers, distil them into the student, evaluate all on the test split, and return the results.

    Teachers that are in the zoo are not trained again; an interrupted run is resumed; the results of a finished run
    are returned without training.

    Args:
        recipe: a `Recipe`, a dict with the keys of a recipe, or a file or name as for `load_recipe`.
        fresh: rename an older run folder of this recipe and start a new run; the zoo is kept.
        limit_steps: rehearse the recipe instead, with so many steps per training (planning/rehearse.py).
        student: in place of the recipe's: a timm network, of which a copy is trained, or a name.
        teachers: in place of the recipe's: names, networks, or dicts with the keys of a recipe's teacher, whose `model`
            may be a network; then also `mean` and `std`, one number per channel, of images in [0, 1]. A network that
            is given is frozen. With timm's `forward_intermediates` and `forward_head` it gives blocks and logits,
            otherwise its `forward` gives logits: float B×3×H×W → B×K.
        data: in place of `data.source`: a `datasets.DatasetDict` or `Dataset`, a torch data set of pairs (image of
            Pillow or uint8, class number), a dict of these by split, or a folder.
        similarity: in place of `losses.similarity`: a function of the teacher's and the student's logits, float32 B×K
            each, not softened, that returns a number, the mean over the batch.
        on_step: called after each step of the student with its number, from 1, and its losses by name. If it returns
            True, the training ends as at its last step: the best weights so far are evaluated, and the run is finished.

    Returns:
        A row per network: top1, top5, balanced accuracy and ece in per cent, nll in nats, parameters, multiply_adds of
        an image, images_per_s on this device.

    Raises:
        UserError: the recipe does not fit the data, the networks or the folders, or an object cannot be used.
    """
    recipe = as_recipe(recipe, student=student, teachers=teachers, data=data, similarity=similarity)
    if limit_steps is not None:
        with rehearsal(recipe, limit_steps, run_accelerator(recipe)) as short:
            return distill(short, on_step=on_step)
    accelerator = run_accelerator(recipe)
    logger.info(describe_processes(accelerator))
    check_launch(accelerator, any(loop.ema for loop in (recipe.loop, *(t.loop for t in recipe.teachers if t.train))))
    check_same(recipe, accelerator)
    folder = open_run_folder(Path(recipe.run or "run"), recipe_key(recipe), fresh, accelerator)
    if recipe.publish and not get_token() and accelerator.is_main_process:
        logger.warning("publish: no Hugging Face token was found. Log in with `hf auth login` before the run ends.")
    steps = Stopwatch()
    with explain_faults(folder.path, accelerator), collect_new_objects_only(), Stopwatch() as watch:
        finished = finished_run(recipe)
        rows = finished[1] if finished else _run(recipe, folder, accelerator, steps, on_step)
        if not is_rehearsal(recipe):
            show_results(recipe, folder, rows)
    if not finished and not is_rehearsal(recipe):
        logger.info("\n%s", share_of_time(watch, steps, "training steps"))
    accelerator.end_training()
    if recipe.publish and accelerator.is_main_process:
        from meco_timm.hub import publish

        publish(folder.path, recipe.publish)
    return rows


def plan(
    recipe: AnyRecipe,
    utilisation: float | None = None,
    measure: bool = False,
    width: int | None = None,
    *,
    student: str | nn.Module | None = None,
    teachers: Sequence[TeacherLike] | None = None,
    data: Any = None,
    similarity: Similarity | None = None,
) -> str:
    """The plan of `distill` as text; nothing is trained, downloaded or written.

    `utilisation`: assumed share of a GPU's peak FLOP/s, 0 to 1. `measure`: also time a few steps on this device, to
    estimate how long the run takes here. `width`: of a line, in characters; by default 118. The other arguments are
    those of `distill`.

    Raises:
        UserError: the recipe does not fit the data or the networks.
    """
    recipe = as_recipe(recipe, student=student, teachers=teachers, data=data, similarity=similarity)
    return full_plan(recipe, int(os.environ.get("WORLD_SIZE", "1")), utilisation, measure).text(width or WIDTH)


def fill_store(recipe: AnyRecipe) -> None:
    """Precompute the teacher outputs for every view of every training image, so that `distill` loads no teacher.

    Teachers that are not in the zoo are trained first. An interrupted call continues with the missing outputs.

    Raises:
        UserError: as for `distill`; the recipe names no store, or the store was made from something else.
    """
    recipe = as_recipe(recipe)
    if recipe.store.folder is None:
        raise UserError("store.folder: the recipe names none. Write for example store='{folder: store, views: 10}'.")
    accelerator = run_accelerator(recipe)
    data = load_data(recipe.data, recipe.seed, recipe.store.views, labels_needed=not recipe.is_backbone)
    plan = make_plan(recipe, data, accelerator.num_processes)
    if accelerator.is_main_process:
        logger.info(plan.short(terminal_width(WIDTH)))
    require_weights(plan.weights, recipe, label_training(recipe, data, accelerator))
    pretrained, notes = load_pretrained(recipe, data, accelerator)
    logger.info("\n".join(notes))
    seed = batch_seed(recipe.seed)
    with explain_faults(Path(recipe.store.folder), accelerator):
        zoo = assemble_zoo(recipe, data, accelerator, pretrained)
        use_store(zoo, recipe.store, recipe.data, data, seed, accelerator)
        precompute_outputs(zoo, data, recipe.loop.batch_size, seed, accelerator)


def _run(
    recipe: Recipe, folder: RunFolder, accelerator: Accelerator, watch: Stopwatch, on_step: OnStep | None
) -> list[Row]:
    """A run from its data to its results. watch: runs during the training steps."""
    with Status("reading the data"):
        data = load_data(recipe.data, recipe.seed, recipe.store.views, labels_needed=not recipe.is_backbone)
        plan = make_plan(recipe, data, accelerator.num_processes)  # raises before anything is written
    require_weights(plan.weights, recipe, label_training(recipe, data, accelerator))
    written, recipe = recipe, _start_from_backbone(recipe, data, accelerator, watch)
    size, seed = recipe.data.image_size, student_seed(recipe.seed)
    student = student_stream(recipe.student, recipe.alignment, len(recipe.classes(data.classes)), size, seed=seed)
    pretrained, notes = load_pretrained(recipe, data, accelerator)  # before the run folder is made
    plan.notes.extend(notes)
    begin(written, folder, data, plan, accelerator)
    steps = total_steps(recipe.loop, len(data.train), accelerator.num_processes)
    job = Job("student", folder.path, recipe.loop, data, data.train, steps, seed, on_step=on_step, watch=watch)
    zoo = assemble_zoo(recipe, data, accelerator, pretrained, watch)
    if recipe.is_backbone:
        use_store(zoo, recipe.store, recipe.data, data, batch_seed(recipe.seed), accelerator)
        student, steps, objective = train_student(recipe, student, zoo, job, accelerator)
        return finish_backbone(recipe, folder, student, steps, objective, zoo, job, accelerator)
    combination = combine_teachers(zoo, data, recipe.data, folder.path, accelerator)
    alone = train_alone_and_compare(recipe, zoo, job, accelerator)
    use_store(zoo, recipe.store, recipe.data, data, batch_seed(recipe.seed), accelerator)
    student, steps, _ = train_student(recipe, student, zoo, job, accelerator)
    return evaluate_all(recipe, folder, data, student, alone, zoo.unfrozen(), combination, steps, accelerator)


def _start_from_backbone(recipe: Recipe, data: DataSource, accelerator: Accelerator, watch: Stopwatch) -> Recipe:
    """The recipe with a student that starts from its backbone, which is trained now unless it is in the zoo."""
    made = backbone_recipe(recipe, data, accelerator)
    if made is None:
        return recipe
    folder = RunFolder(Path(made.run or ""))
    with locked_folder(folder.path, accelerator):
        if folder.finished_rows() is None:
            logger.info("student.backbone: trained first, in %s", folder.path)
            _run(made, folder, run_accelerator(made), watch, None)
        else:
            logger.info("student.backbone: already trained, loaded from %s", folder.path)
    start = {"model": f"local-dir:{folder.student}", "weights": None, "backbone": None}
    return recipe.model_copy(update={"student": recipe.student.model_copy(update=start)})
