"""The whole program in order: recipe → data → teachers → student → results → checkpoint."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from huggingface_hub import get_token
from torch import nn

from meco_timm.arguments import AnyRecipe, Similarity, as_recipe, check_same
from meco_timm.common import Stopwatch, UserError, collect_new_objects_only, get_logger, reseed, share_of_time
from meco_timm.data import DataSource, load_data
from meco_timm.distillation import Distiller, class_weights
from meco_timm.evaluation import Combination, Row, block_agreement, make_table
from meco_timm.finished import show_results
from meco_timm.networks import Stream, student_stream
from meco_timm.planning import full_plan, make_plan, rehearsal
from meco_timm.recipe import Recipe, to_yaml
from meco_timm.selection import checked_inputs, combine_teachers
from meco_timm.training import (
    STEPS,
    Job,
    OnStep,
    RunFolder,
    Teaching,
    Training,
    batch_seed,
    check_launch,
    explain_faults,
    finished_run,
    inputs_of,
    make_accelerator,
    open_run_folder,
    record_inputs,
    student_seed,
    total_steps,
)
from meco_timm.zoo import Given, Zoo, assemble_zoo, precompute_outputs, student_alone, use_store

logger = get_logger(__name__)


class Run(NamedTuple):
    """What the stages of a run share. `steps`: of the student, and of the student trained alone. `combination`: of the
    teachers. `on_step`: of the student's training."""

    recipe: Recipe
    data: DataSource
    steps: int
    folder: RunFolder
    accelerator: Accelerator
    combination: Combination
    on_step: OnStep | None = None


def distill(
    recipe: AnyRecipe,
    fresh: bool = False,
    limit_steps: int | None = None,
    *,
    student: str | nn.Module | None = None,
    teachers: Sequence[Given] | None = None,
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
        with rehearsal(recipe, limit_steps, make_accelerator(recipe)) as short:
            return distill(short, on_step=on_step)
    accelerator = make_accelerator(recipe)
    check_launch(accelerator, recipe)
    check_same(recipe, accelerator)
    folder = open_run_folder(recipe, fresh, accelerator)
    _warn_without_token(recipe, accelerator)
    STEPS.seconds = 0.0
    with explain_faults(folder.path, accelerator), collect_new_objects_only(), Stopwatch() as watch:
        finished = finished_run(recipe)
        rows = finished[1] if finished else _run(recipe, folder, accelerator, on_step)
        show_results(recipe, folder, rows)
    if not finished:
        logger.info("\n%s", share_of_time(watch, STEPS, "training steps"))
    accelerator.end_training()
    _publish(recipe, folder, accelerator)
    return rows


def plan(
    recipe: AnyRecipe,
    utilisation: float | None = None,
    measure: bool = False,
    *,
    student: str | nn.Module | None = None,
    teachers: Sequence[Given] | None = None,
    data: Any = None,
    similarity: Similarity | None = None,
) -> str:
    """The plan of `distill` as text; nothing is trained, downloaded or written.

    `utilisation`: assumed share of a GPU's peak FLOP/s, 0 to 1. `measure`: also time a few steps on this device, to
    estimate how long the run takes here. The others are those of `distill`.

    Raises:
        UserError: the recipe does not fit the data or the networks.
    """
    recipe = as_recipe(recipe, student=student, teachers=teachers, data=data, similarity=similarity)
    return full_plan(recipe, int(os.environ.get("WORLD_SIZE", "1")), utilisation, measure)


def fill_store(recipe: AnyRecipe) -> None:
    """Precompute the teacher outputs for every view of every training image, so that `distill` loads no teacher.

    Teachers that are not in the zoo are trained first. An interrupted call continues with the missing outputs.

    Raises:
        UserError: as for `distill`; the recipe names no store, or the store was made from something else.
    """
    recipe = as_recipe(recipe)
    if recipe.store.folder is None:
        raise UserError("store.folder: the recipe names none. Write for example store='{folder: store, views: 10}'.")
    accelerator = make_accelerator(recipe)
    data = load_data(recipe.data, recipe.seed, recipe.store.views)
    plan = make_plan(recipe, data, accelerator.num_processes)
    if accelerator.is_main_process:
        logger.info(plan)
    pretrained, checked = checked_inputs(recipe, data, accelerator)
    for line in checked:
        logger.info(line)
    seed = batch_seed(recipe)
    with explain_faults(Path(recipe.store.folder), accelerator):
        zoo = assemble_zoo(recipe, data, accelerator, pretrained)
        use_store(zoo, recipe, data, seed, accelerator)
        precompute_outputs(zoo, recipe, data, seed, accelerator)


def _run(recipe: Recipe, folder: RunFolder, accelerator: Accelerator, on_step: OnStep | None) -> list[Row]:
    data = load_data(recipe.data, recipe.seed, recipe.store.views)
    plan = make_plan(recipe, data, accelerator.num_processes)  # raises before anything is written
    size, seed = recipe.data.image_size, student_seed(recipe)
    student = student_stream(recipe.student, recipe.alignment, len(data.classes), size, seed=seed)
    pretrained, checked = checked_inputs(recipe, data, accelerator)  # before the run folder is made
    plan += "".join(f"{line}\n" for line in checked)
    _begin(recipe, folder, plan, accelerator)
    record_inputs(folder.path, inputs_of(recipe, data), accelerator)
    zoo = assemble_zoo(recipe, data, accelerator, pretrained)
    combination = combine_teachers(zoo, recipe, data, folder.path, accelerator)
    use_store(zoo, recipe, data, batch_seed(recipe), accelerator)
    steps = total_steps(recipe.loop, len(data.train), accelerator.num_processes)
    run = Run(recipe, data, steps, folder, accelerator, combination, on_step)
    alone = student_alone(recipe, steps, data, accelerator)
    student, steps = _train_student(run, student, zoo)
    return _evaluate(run._replace(steps=steps), student, alone, zoo.unfrozen())


def _begin(recipe: Recipe, folder: RunFolder, plan: str, accelerator: Accelerator) -> None:
    """Create the run folder, print the plan and start the trackers."""
    if accelerator.is_main_process:
        folder.create(recipe, plan)
        logger.info(plan)
    accelerator.wait_for_everyone()
    if recipe.trackers:
        accelerator.init_trackers("meco_timm", config={"recipe": to_yaml(recipe)})


def _train_student(run: Run, student: Stream, zoo: Zoo) -> tuple[Stream, int]:
    """The student with its best weights, and the steps that it took."""
    seed = student_seed(run.recipe)
    weight = class_weights(run.recipe.loop.class_weights, run.data.label_counts(run.data.alone))
    reseed(seed, "discriminators")
    objective = Distiller(student, run.recipe.method, len(run.data.classes), zoo.block_shapes, weight)
    job = Job(
        title="student",
        folder=run.folder.path,
        loop=run.recipe.loop,
        data=run.data,
        images=run.data.train,
        steps=run.steps,
        seed=seed,
        discriminator_lr=run.recipe.discriminators.lr,
        on_step=run.on_step,
    )
    training = Training(objective, job, run.accelerator, Teaching(zoo.targets, zoo.fingerprints))
    try:
        return training.run(), training.step
    finally:
        zoo.flush()


def _evaluate(run: Run, student: Stream, alone: Stream, teachers: dict[str, Stream]) -> list[Row]:
    """Evaluate all networks on the test split; the main process writes the results."""
    evaluated = make_table(student, alone, teachers, run.data, run.accelerator, run.combination)
    if run.accelerator.is_main_process:
        from meco_timm.hub import finish_run  # imports matplotlib, which training does not need
        from meco_timm.reporting import about_run

        agreement = block_agreement(student, alone, teachers, run.data, run.accelerator)
        about = about_run(run.recipe, run.data, teachers, run.steps, run.accelerator)
        finish_run(run.folder, run.recipe, run.data, student, evaluated, agreement, about)
    run.accelerator.wait_for_everyone()
    return evaluated.rows


def _warn_without_token(recipe: Recipe, accelerator: Accelerator) -> None:
    if recipe.publish and not get_token() and accelerator.is_main_process:
        logger.warning("publish: no Hugging Face token was found. Log in with `hf auth login` before the run ends.")


def _publish(recipe: Recipe, folder: RunFolder, accelerator: Accelerator) -> None:
    if recipe.publish and accelerator.is_main_process:
        from meco_timm.hub import publish

        publish(folder.path, recipe.publish)
