"""The whole: recipe → data → zoo → student → table → checkpoint, a call each."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from huggingface_hub import get_token

from meco_timm.common import UserError, derive, reseed, say
from meco_timm.data import DataSource, known_data, load_data
from meco_timm.distillation import Distiller, class_weights
from meco_timm.evaluation import (
    Judged,
    Row,
    block_agreement,
    keep_predictions,
    make_table,
    print_table,
    save_predictions,
)
from meco_timm.networks import Stream, export, student_stream
from meco_timm.planning import hours_here, hours_on_gpus, make_plan, rehearsal
from meco_timm.recipe import Recipe, to_yaml
from meco_timm.training import RunFolder, Training, check_launch, faults_told, find_run_folder, move_aside, total_steps
from meco_timm.zoo import assemble_zoo, precompute_outputs, ready_teachers, student_alone, use_store


def distill(recipe: Recipe, fresh: bool = False, limit_steps: int | None = None) -> list[Row]:
    """Train what is not trained yet, distil the zoo into the student, and return the table; a finished run is not
    repeated. `fresh` moves an older run of this recipe aside and starts anew (the zoo is kept). `limit_steps` rehearses
    the recipe instead, in trainings so short (rehearsal.py).

    Raises:
        UserError: anything in the recipe that does not fit the data, the networks or the folders.
    """
    if limit_steps is not None:
        with rehearsal(recipe, limit_steps, _accelerator(recipe)) as short:
            return distill(short)
    accelerator = _accelerator(recipe)
    check_launch(accelerator, recipe)
    if fresh and accelerator.is_main_process:
        move_aside(recipe)
    accelerator.wait_for_everyone()  # all processes see the same folder, moved aside or not, and before it is made
    folder = find_run_folder(recipe)
    accelerator.wait_for_everyone()
    rows = folder.finished_rows()
    if recipe.publish and not get_token() and accelerator.is_main_process:
        say("warning: publish: there is no token of the Hub yet; log in with `hf auth login` before the run ends.")
    if rows is None:
        with faults_told(folder.path, accelerator):
            rows = _distill(recipe, folder, accelerator)
    elif accelerator.is_main_process:
        folder.drop_checkpoints()  # it may have been killed between its table and this
        say(f"{folder.path} has this run already, finished; nothing is trained again.")
    if accelerator.is_main_process:
        with faults_told(folder.path, accelerator):
            _show(recipe, folder, rows)
    accelerator.end_training()
    if recipe.publish and accelerator.is_main_process:
        from meco_timm.hub import publish

        publish(folder.path, recipe.publish)
    return rows


def _accelerator(recipe: Recipe) -> Accelerator:
    """Devices, processes and precision as launched, or as the recipe says; trackers by name."""
    # Batches are ours (data.py), not a prepared loader's, so their end does not cut an accumulation short.
    accumulation = GradientAccumulationPlugin(num_steps=recipe.loop.accumulation, sync_with_dataloader=False)
    try:
        accelerator = Accelerator(
            mixed_precision=recipe.precision,
            gradient_accumulation_plugin=accumulation,
            log_with=list(recipe.trackers) or None,
            project_dir=Path(recipe.run or "run") / "trackers" if recipe.trackers else None,
        )
    except (ValueError, ImportError) as error:  # an unknown tracker, a precision that this device has not, no DeepSpeed
        raise UserError(f"trackers, precision: {error}") from error
    if accelerator.mixed_precision == "fp16" and not accelerator.native_amp:
        raise UserError("precision: fp16 needs a GPU; here it would be float32 without a word. Write bf16 or no.")
    if missing := [name for name in recipe.trackers if name not in {str(t) for t in accelerator.log_with}]:
        raise UserError(f"trackers: {', '.join(missing)} cannot be used; is it installed? pip install {missing[0]}")
    return accelerator


def plan(recipe: Recipe, utilisation: float | None = None, measure: bool = False) -> str:
    """What `distill` would do, without doing it: nothing is trained, downloaded or written.

    `utilisation`: the share of its stated FLOP/s that a GPU is taken to reach. `measure`: also take a few seconds to
    measure how long it would take here.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    known = known_data(recipe.data)
    data = known or load_data(recipe.data, recipe.seed, recipe.store.views)

    def hours(student: Stream, teachers: dict[str, Stream]) -> list[str]:
        lines = hours_on_gpus(recipe, student, teachers, data, processes, utilisation)
        if measure and not known and processes == 1:
            lines += hours_here(recipe, student, teachers, data)
        note = f"note: {recipe.data.source} was not opened; classes and counts are its publishers'"
        return [*lines, note] if known else lines

    return make_plan(recipe, data, processes, hours)


def fill_store(recipe: Recipe) -> None:
    """Keep what the teachers say of every view of every training image, so that `distill` needs none of them.

    Teachers that are not trained yet are trained first. Interrupted, it goes on with what is missing.

    Raises:
        UserError: as for `distill`, or the recipe names no store, or one of something else.
    """
    if recipe.store.folder is None:
        raise UserError("store.folder: the recipe names none. Write for example store='{folder: store, views: 10}'.")
    accelerator = _accelerator(recipe)
    data = load_data(recipe.data, recipe.seed, recipe.store.views)
    plan = make_plan(recipe, data, accelerator.num_processes)
    if accelerator.is_main_process:
        say(plan)
    views = _seed_of_views(recipe)
    with faults_told(Path(recipe.store.folder), accelerator):
        zoo = assemble_zoo(recipe, data, accelerator)
        use_store(zoo, recipe, data, views, accelerator)
        precompute_outputs(zoo, recipe, data, views, accelerator)


def _seed_of_student(recipe: Recipe) -> int:
    return derive(recipe.seed, "role=student")


def _seed_of_views(recipe: Recipe) -> int:
    """That the student's training makes its batches from."""
    return derive(_seed_of_student(recipe), "batches")


def _distill(recipe: Recipe, folder: RunFolder, accelerator: Accelerator) -> list[Row]:
    data = load_data(recipe.data, recipe.seed, recipe.store.views)
    plan = make_plan(recipe, data, accelerator.num_processes)  # refuses what cannot work, before anything is written
    seed = _seed_of_student(recipe)
    student = student_stream(recipe.student, recipe.alignment, len(data.classes), recipe.data.image_size, seed=seed)
    ready = ready_teachers(recipe, data)
    if accelerator.is_main_process:
        folder.create(recipe, plan)
        say(plan)
    accelerator.wait_for_everyone()
    if recipe.trackers:
        accelerator.init_trackers("meco_timm", config={"recipe": to_yaml(recipe)})
    zoo = assemble_zoo(recipe, data, accelerator, ready)
    use_store(zoo, recipe, data, _seed_of_views(recipe), accelerator)
    steps = total_steps(recipe.loop, len(data.train), accelerator.num_processes)
    alone = student_alone(recipe, steps, data, accelerator)
    reseed(seed, "discriminators")
    training = Training(
        Distiller(student, recipe, len(data.classes), class_weights(recipe.loop.class_weights, data.labelled_counts)),
        recipe.loop,
        accelerator,
        data=data,
        images=data.train,
        steps=steps,
        seed=seed,
        folder=folder.path,
        title="student",
        teach=zoo.outputs,
        teachers=zoo.fingerprints,
        discriminator_lr=recipe.discriminators.lr,
    )
    try:
        student = training.run()
    finally:
        zoo.flush()
    teachers = zoo.unfrozen()
    judged = make_table(student, alone, teachers, data, accelerator)
    if accelerator.is_main_process:
        from meco_timm.reporting import about_run  # imports matplotlib, which a training has no use for

        agreement = block_agreement(student, alone, teachers, data, accelerator)
        about = about_run(recipe, data, teachers, steps, accelerator)
        _finish(recipe, folder, student, judged, data, agreement, about)
    accelerator.wait_for_everyone()
    return judged.rows


def _finish(
    recipe: Recipe,
    folder: RunFolder,
    student: Stream,
    judged: Judged,
    data: DataSource,
    agreement: dict[str, np.ndarray],
    about: dict[str, Any],
) -> None:
    """All that a run leaves: predictions, the student with its card, the table, and the report."""
    from meco_timm.hub import card_files  # these two import matplotlib, which a training has no use for
    from meco_timm.reporting import Results, read_metrics

    predictions = keep_predictions(judged, data, agreement)
    results = Results(folder, recipe, judged.rows, about, read_metrics(folder.path / "metrics.jsonl"), predictions)
    save_predictions(predictions, folder.predictions)
    export(student, folder.student, data.classes, recipe.data, card_files(results, data.classes))
    folder.finish(judged.rows, about)


def _show(recipe: Recipe, folder: RunFolder, rows: list[Row]) -> None:
    print_table(rows, f"\nTest split of {recipe.data.source}")
    if not folder.report.exists():
        from meco_timm.reporting import report

        report(folder.path)
    say(f"\nSee what it learned: {folder.report}")
    where = Path(folder.student).resolve()
    say(f'\nLoad the student, with plain timm:\n  timm.create_model("local-dir:{where}", pretrained=True)')
