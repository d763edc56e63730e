"""The whole program in order: recipe → data → teachers → student → results → checkpoint."""

import os
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from huggingface_hub import get_token

from meco_timm.common import RESULT, UserError, get_logger, reseed
from meco_timm.data import DataSource, known_data, load_data, verify
from meco_timm.distillation import Distiller, class_weights
from meco_timm.evaluation import (
    Row,
    block_agreement,
    make_table,
    styled_table,
    verdict,
)
from meco_timm.networks import Stream, student_stream
from meco_timm.planning import gpu_time_lines, make_plan, measured_time_lines, rehearsal
from meco_timm.recipe import Recipe, to_yaml
from meco_timm.training import (
    Job,
    RunFolder,
    Teaching,
    Training,
    batch_seed,
    check_inputs,
    check_launch,
    explain_faults,
    find_run_folder,
    inputs_of,
    make_accelerator,
    move_aside,
    record_inputs,
    student_seed,
    total_steps,
)
from meco_timm.zoo import (
    Zoo,
    assemble_zoo,
    check_local_teachers,
    checked_teachers,
    load_pretrained,
    precompute_outputs,
    student_alone,
    use_store,
)

logger = get_logger(__name__)
result = get_logger(RESULT)


class Run(NamedTuple):
    """What the stages of a run share. `steps`: of the student, and of the student trained alone."""

    recipe: Recipe
    data: DataSource
    steps: int
    folder: RunFolder
    accelerator: Accelerator


def distill(recipe: Recipe, fresh: bool = False, limit_steps: int | None = None) -> list[Row]:
    """Train the teachers, distil them into the student, evaluate all on the test split, and return the results.

    Teachers that are in the zoo are not trained again; an interrupted run is resumed; the results of a finished run
    are returned without training. `fresh`: rename an older run folder of this recipe and start a new run; the zoo is
    kept. `limit_steps`: rehearse the recipe instead, with so many steps per training (planning/rehearse.py).

    Raises:
        UserError: the recipe does not fit the data, the networks or the folders.
    """
    if limit_steps is not None:
        with rehearsal(recipe, limit_steps, make_accelerator(recipe)) as short:
            return distill(short)
    accelerator = make_accelerator(recipe)
    check_launch(accelerator, recipe)
    folder = _open_run_folder(recipe, fresh, accelerator)
    _warn_without_token(recipe, accelerator)
    with explain_faults(folder.path, accelerator):
        rows = _finished_rows(recipe, folder, accelerator) or _run(recipe, folder, accelerator)
        if accelerator.is_main_process:
            _show(recipe, folder, rows)
    accelerator.end_training()
    _publish(recipe, folder, accelerator)
    return rows


def plan(recipe: Recipe, utilisation: float | None = None, measure: bool = False) -> str:
    """The plan of `distill` as text; nothing is trained, downloaded or written.

    `utilisation`: assumed share of a GPU's peak FLOP/s, 0 to 1. `measure`: also time a few steps on this device, to
    estimate how long the run takes here.

    Raises:
        UserError: the recipe does not fit the data or the networks.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    listed = known_data(recipe.data)
    data = listed or load_data(recipe.data, recipe.seed, recipe.store.views)

    def time_lines(student: Stream, teachers: dict[str, Stream]) -> list[str]:
        lines = gpu_time_lines(recipe, student, teachers, data, processes, utilisation)
        if measure and not listed and processes == 1:
            lines += measured_time_lines(recipe, student, teachers, data)
        if not listed:
            lines += check_local_teachers(recipe, data, teachers) if measure else []
        note = f"note: {recipe.data.source} was not downloaded; its classes and counts are those it is published with"
        return [*lines, note] if listed else lines

    return make_plan(recipe, data, processes, time_lines)


def fill_store(recipe: Recipe) -> None:
    """Precompute the teacher outputs for every view of every training image, so that `distill` loads no teacher.

    Teachers that are not in the zoo are trained first. An interrupted call continues with the missing outputs.

    Raises:
        UserError: as for `distill`; the recipe names no store, or the store was made from something else.
    """
    if recipe.store.folder is None:
        raise UserError("store.folder: the recipe names none. Write for example store='{folder: store, views: 10}'.")
    accelerator = make_accelerator(recipe)
    data = load_data(recipe.data, recipe.seed, recipe.store.views)
    plan = make_plan(recipe, data, accelerator.num_processes)
    if accelerator.is_main_process:
        logger.info(plan)
    pretrained, checked = _checked_inputs(recipe, data, accelerator)
    for line in checked:
        logger.info(line)
    seed = batch_seed(recipe)
    with explain_faults(Path(recipe.store.folder), accelerator):
        zoo = assemble_zoo(recipe, data, accelerator, pretrained)
        use_store(zoo, recipe, data, seed, accelerator)
        precompute_outputs(zoo, recipe, data, seed, accelerator)


def _run(recipe: Recipe, folder: RunFolder, accelerator: Accelerator) -> list[Row]:
    data = load_data(recipe.data, recipe.seed, recipe.store.views)
    plan = make_plan(recipe, data, accelerator.num_processes)  # raises before anything is written
    size, seed = recipe.data.image_size, student_seed(recipe)
    student = student_stream(recipe.student, recipe.alignment, len(data.classes), size, seed=seed)
    pretrained, checked = _checked_inputs(recipe, data, accelerator)  # before the run folder is made
    plan += "".join(f"{line}\n" for line in checked)
    _begin(recipe, folder, plan, accelerator)
    record_inputs(folder.path, inputs_of(recipe, data), accelerator)
    zoo = assemble_zoo(recipe, data, accelerator, pretrained)
    use_store(zoo, recipe, data, batch_seed(recipe), accelerator)
    steps = total_steps(recipe.loop, len(data.train), accelerator.num_processes)
    run = Run(recipe, data, steps, folder, accelerator)
    alone = student_alone(recipe, steps, data, accelerator)
    student = _train_student(run, student, zoo)
    return _evaluate(run, student, alone, zoo.unfrozen())


def _checked_inputs(recipe: Recipe, data: DataSource, accelerator: Accelerator) -> tuple[dict[str, Stream], list[str]]:
    """Teachers that need no training, and what the plan says of them; every image is decoded once.

    Raises:
        UserError: an image cannot be read, or a teacher does not know the classes.
    """
    pretrained = load_pretrained(recipe, data)
    verify(data, recipe.data, Path(recipe.zoo.folder) / ".images", accelerator)
    return pretrained, checked_teachers(recipe, data, pretrained, accelerator)


def _open_run_folder(recipe: Recipe, fresh: bool, accelerator: Accelerator) -> RunFolder:
    """The run folder; all processes look at it after it was renamed, and before it is created."""
    if fresh and accelerator.is_main_process:
        move_aside(recipe)
    accelerator.wait_for_everyone()
    folder = find_run_folder(recipe)
    accelerator.wait_for_everyone()
    return folder


def _finished_rows(recipe: Recipe, folder: RunFolder, accelerator: Accelerator) -> list[Row] | None:
    """The results of a finished run; its data and weights must be the same, as far as they are still there."""
    rows = folder.finished_rows()
    if rows is not None:
        check_inputs(folder.path, inputs_of(recipe))
    if rows is not None and accelerator.is_main_process:
        folder.drop_checkpoints()  # the run may have been killed after it wrote its results
        logger.info("%s holds this run, finished; nothing is trained again.", folder.path)
    return rows


def _begin(recipe: Recipe, folder: RunFolder, plan: str, accelerator: Accelerator) -> None:
    """Create the run folder, print the plan and start the trackers."""
    if accelerator.is_main_process:
        folder.create(recipe, plan)
        logger.info(plan)
    accelerator.wait_for_everyone()
    if recipe.trackers:
        accelerator.init_trackers("meco_timm", config={"recipe": to_yaml(recipe)})


def _train_student(run: Run, student: Stream, zoo: Zoo) -> Stream:
    """The student with its best weights."""
    seed = student_seed(run.recipe)
    weight = class_weights(run.recipe.loop.class_weights, run.data.label_counts(run.data.alone))
    reseed(seed, "discriminators")
    objective = Distiller(student, run.recipe, len(run.data.classes), zoo.block_shapes, weight)
    job = Job(
        title="student",
        folder=run.folder.path,
        loop=run.recipe.loop,
        data=run.data,
        images=run.data.train,
        steps=run.steps,
        seed=seed,
        discriminator_lr=run.recipe.discriminators.lr,
    )
    training = Training(objective, job, run.accelerator, Teaching(zoo.targets, zoo.fingerprints))
    try:
        return training.run()
    finally:
        zoo.flush()


def _evaluate(run: Run, student: Stream, alone: Stream, teachers: dict[str, Stream]) -> list[Row]:
    """Evaluate all networks on the test split; the main process writes the results."""
    evaluated = make_table(student, alone, teachers, run.data, run.accelerator)
    if run.accelerator.is_main_process:
        from meco_timm.hub import finish_run  # imports matplotlib, which training does not need
        from meco_timm.reporting import about_run

        agreement = block_agreement(student, alone, teachers, run.data, run.accelerator)
        about = about_run(run.recipe, run.data, teachers, run.steps, run.accelerator)
        finish_run(run.folder, run.recipe, run.data, student, evaluated, agreement, about)
    run.accelerator.wait_for_everyone()
    return evaluated.rows


def _show(recipe: Recipe, folder: RunFolder, rows: list[Row]) -> None:
    """Print the table, and where the report and the student are."""
    result.info(styled_table(rows, f"\nTest split of {recipe.data.source}"))
    result.info("\n%s", verdict(rows))
    if not folder.report.exists():
        from meco_timm.reporting import report

        report(folder.path)
    result.info("\nReport: %s", folder.report)
    place = f"local-dir:{folder.student.resolve()}"
    result.info('\nLoad the student with timm:\n  timm.create_model("%s", pretrained=True)', place)


def _warn_without_token(recipe: Recipe, accelerator: Accelerator) -> None:
    if recipe.publish and not get_token() and accelerator.is_main_process:
        logger.warning("publish: no Hugging Face token was found. Log in with `hf auth login` before the run ends.")


def _publish(recipe: Recipe, folder: RunFolder, accelerator: Accelerator) -> None:
    if recipe.publish and accelerator.is_main_process:
        from meco_timm.hub import publish

        publish(folder.path, recipe.publish)
