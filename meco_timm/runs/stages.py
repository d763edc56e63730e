"""The stages of a run, from its teachers to its results; pipeline.py has them in order."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from meco_timm.common import Status, Stopwatch, batch_seed, get_logger, reseed, short_name, terminal_width
from meco_timm.data import DataSource, cache_images, load_data, verify
from meco_timm.distillation import Distiller, class_weights
from meco_timm.evaluation import (
    Row,
    block_agreement,
    evaluate_backbone,
    labelled_images,
    make_pictures,
    make_table,
)
from meco_timm.networks import Combination, Stream, student_stream, teacher_stream
from meco_timm.planning import WIDTH, Plan, is_rehearsal, student_backbone
from meco_timm.recipe import Data, Recipe, fingerprint, named_teachers, recipe_key, to_yaml
from meco_timm.selection import (
    Trainings,
    check_lines,
    check_teachers,
    compare_with_student_alone,
    explain_student,
    read_measured,
    require_known_classes,
)
from meco_timm.training import (
    Inputs,
    Job,
    LabelTraining,
    RunFolder,
    Teaching,
    Training,
    make_accelerator,
    read_curve,
    student_alone_curve,
    total_steps,
    train_student_alone,
    train_teachers,
    validation_curves,
)
from meco_timm.zoo import Zoo, embedding_moments, load_teachers

logger = get_logger(__name__)


def load_pretrained(recipe: Recipe, data: DataSource, accelerator: Accelerator) -> tuple[dict[str, Stream], list[str]]:
    """The teachers that need no training, and lines of the plan: what is wrong with images, accuracy on labelled ones.

    All images are verified and cached first.
    """
    teachers, images = named_teachers(recipe.teachers), Path(recipe.zoo.folder) / ".images"
    pretrained = load_teachers(teachers, recipe.alignment, recipe.classes(data.classes))  # first: a download may fail
    notes = verify(data, recipe.data, images, accelerator)
    cache_images(data, recipe.data, images, accelerator)
    if recipe.is_backbone:
        return pretrained, notes
    checks = check_teachers(pretrained, data, accelerator)
    require_known_classes(teachers, checks)
    return pretrained, [*notes, *check_lines(teachers, checks)]


def backbone_recipe(recipe: Recipe, data: DataSource, accelerator: Accelerator) -> Recipe | None:
    """The recipe of the backbone that the student starts from, if it does; its run folder lies in the zoo, under a name
    with a hash of all that made it.

    Raises:
        UserError: a key does not fit a backbone.
    """
    found = student_backbone(recipe)
    if found is None:
        return None
    inputs = Inputs.of(data.manifest, found.networks)
    files = inputs.manifest.digest() if inputs.manifest.entries else None
    made_of = [recipe_key(found), files, inputs.weights, accelerator.num_processes, accelerator.mixed_precision]
    name = short_name(recipe.student.model).rstrip("/").split("/")[-1].replace(":", "_")
    found.run = str(Path(recipe.zoo.folder) / f"backbone-{name}-{fingerprint(made_of)}")
    return found


def begin(recipe: Recipe, folder: RunFolder, data: DataSource, plan: Plan, accelerator: Accelerator) -> None:
    """Create the run folder, print the plan and start the trackers.

    Raises:
        UserError: the folder holds a run with other data or weights, or cannot be written.
    """
    inputs = Inputs.of(data.manifest, recipe.networks)
    folder.check_inputs(inputs)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        folder.create(to_yaml(recipe), plan.text())
        folder.write_inputs(inputs)
        rest = "" if is_rehearsal(recipe) else f"plan    all of it: {folder.path / 'plan.txt'}\n"
        logger.info("%s%s", plan.short(terminal_width(WIDTH)), rest)
    accelerator.wait_for_everyone()
    if recipe.trackers:
        accelerator.init_trackers("meco_timm", config={"recipe": to_yaml(recipe)})


def assemble_zoo(
    recipe: Recipe,
    data: DataSource,
    accelerator: Accelerator,
    pretrained: dict[str, Stream] | None = None,
    watch: Stopwatch | None = None,
) -> Zoo:
    """The zoo with every teacher of the recipe; those with `train` are trained first, unless they are in the folder.

    pretrained: those that need no training, if they are loaded already. watch: runs during the training steps.

    Raises:
        UserError: a teacher cannot be loaded or does not fit the data set.
    """
    training = label_training(recipe, data, accelerator, watch)
    teachers = train_teachers(named_teachers(recipe.teachers), training)
    roles = {name: f"teachers.{i}" for i, name in enumerate(teachers)}

    def load(name: str) -> Stream:
        return teacher_stream(teachers[name], recipe.alignment, recipe.classes(data.classes), role=roles[name])

    streams = {name: (pretrained or {}).get(name) or load(name) for name in teachers}
    return Zoo(streams, recipe.zoo, recipe.seed, recipe.losses.temperature, accelerator, load)


def train_alone_and_compare(recipe: Recipe, zoo: Zoo, job: Job, accelerator: Accelerator) -> Stream:
    """The student trained on the labels alone, with which the teachers are compared before they teach. job: the
    student's.

    Raises:
        UserError: `zoo.require` is `better`, and the true ensemble is not.
    """
    data, teachers = job.data, named_teachers(recipe.teachers)
    training = label_training(recipe, data, accelerator, job.watch)
    alone = train_student_alone(recipe.student, recipe.loop, job.steps, training)
    trainings = Trainings(teachers, validation_curves(teachers, training), job.steps, recipe.zoo, recipe.losses)
    compare_with_student_alone(zoo, alone, data, recipe.data, job.folder, trainings, accelerator)
    return alone


def train_student(
    recipe: Recipe, student: Stream, zoo: Zoo, job: Job, accelerator: Accelerator
) -> tuple[Stream, int, Distiller]:
    """The student with its best weights, the steps that it took, and what it was trained in."""
    data = job.data
    weight = None if recipe.is_backbone else class_weights(recipe.loop.class_weights, data.label_counts(data.alone))
    reseed(job.seed, "discriminators")
    classes = len(recipe.classes(data.classes))
    objective = Distiller(student, recipe.method, classes, zoo.block_shapes, zoo.embedding_sizes, weight)
    moments = embedding_moments(zoo, data, job.loop.batch_size, batch_seed(recipe.seed), job.folder, accelerator)
    objective.embedding_projections.standardise_by(moments, recipe.alignment.standardise == "isotropic")
    training = Training(objective, job, accelerator, Teaching(zoo.targets, zoo.fingerprints, zoo.compile))
    try:
        return training.run(), training.state.step, objective
    finally:
        zoo.flush()


def finish_backbone(
    recipe: Recipe, folder: RunFolder, student: Stream, steps: int, objective: Distiller, zoo: Zoo, job: Job,
    accelerator: Accelerator,
) -> list[Any]:  # fmt: skip
    """Measure the student without a head beside its teachers, write it, and mark the run as finished.

    objective: what it was trained in, with the projections to its teachers.
    """
    rows: list[Any] = []
    if accelerator.is_main_process:
        teachers, data = zoo.unfrozen(), job.data
        maps = objective.embedding_projections
        projections = {name: maps[str(i)] for i, name in enumerate(teachers) if str(i) in maps}
        before = student_stream(recipe.student, recipe.alignment, 0, recipe.data.image_size, seed=job.seed)
        with Status(f"evaluating {2 + len(teachers)} networks") as status:
            labelled = labelled_images(_labelled_source(recipe, data))
            rows = evaluate_backbone(student, before, teachers, data, labelled, projections, accelerator.device)
            status.update("writing the report")
            from meco_timm.hub import describe_run, finish_backbone_run  # imports matplotlib

            pooled = {name: stream for name, stream in teachers.items() if stream.has_embedding}
            networks = {**pooled, "student before": before, "student": student}
            pictures = make_pictures(networks, data, accelerator.device)
            about = describe_run(folder, data, teachers, zoo.combination, None, steps, accelerator)
            finish_backbone_run(folder, recipe.data, student, rows, pictures, about)
    accelerator.wait_for_everyone()
    return rows


def _labelled_source(recipe: Recipe, data: DataSource) -> DataSource:
    """The data that a backbone is measured on."""
    source = recipe.evaluation.labelled
    if source is None:
        return data
    view = recipe.data.model_dump(include={"image_size", "crop_pct", "interpolation", "background", "workers"})
    return load_data(Data(source=source, **view), recipe.seed)


def run_accelerator(recipe: Recipe) -> Accelerator:
    """The accelerator of a run of this recipe."""
    trackers = Path(recipe.run or "run") / "trackers"
    return make_accelerator(recipe.precision, recipe.loop.accumulation, recipe.trackers, trackers)


def label_training(
    recipe: Recipe, data: DataSource, accelerator: Accelerator, watch: Stopwatch | None = None
) -> LabelTraining:
    """What the trainings on labels of this recipe share. watch: runs during their steps."""
    return LabelTraining(data, recipe.data, recipe.seed, Path(recipe.zoo.folder), accelerator, watch)


def evaluate_all(
    recipe: Recipe,
    folder: RunFolder,
    data: DataSource,
    student: Stream,
    alone: Stream,
    teachers: dict[str, Stream],
    combination: Combination,
    steps: int,
    accelerator: Accelerator,
) -> list[Row]:
    """Evaluate all networks on the test split; the main process writes the results."""
    with Status(f"evaluating {3 + len(teachers)} networks on the test split") as status:
        evaluated = make_table(student, alone, teachers, data, accelerator, combination)
        if accelerator.is_main_process:
            from meco_timm.hub import describe_run, finish_run  # imports matplotlib, which training does not need

            status.update("comparing blocks")
            agreement = block_agreement(student, alone, teachers, data, accelerator)
            status.update("writing the report")
            measured, curve = read_measured(folder.path), read_curve(folder.path)
            about = describe_run(folder, data, teachers, combination, measured, steps, accelerator)
            about["explanation"] = explain_student(evaluated, measured, curve, recipe.zoo, recipe.losses)
            about["curves"] = _all_curves(recipe, data, accelerator)
            finish_run(folder, recipe.data, data, student, evaluated, agreement, about)
    accelerator.wait_for_everyone()
    return evaluated.rows


def _all_curves(recipe: Recipe, data: DataSource, accelerator: Accelerator) -> dict[str, list[tuple[int, float]]]:
    """The validations of the teachers that were trained here and of the student alone."""
    training = label_training(recipe, data, accelerator)
    steps = total_steps(recipe.loop, len(data.train), accelerator.num_processes)
    alone = student_alone_curve(recipe.student, recipe.loop, steps, training)
    return {**validation_curves(named_teachers(recipe.teachers), training), "student alone": alone}
