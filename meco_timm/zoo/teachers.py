"""Teachers: pretrained, or trained on the labels and saved in the zoo folder.

MEAL trains every teacher with softmax cross-entropy on the labels before distillation, then freezes it (section 3).
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from filelock import FileLock, Timeout

from meco_timm.common import UserError, derive, get_logger, short_name
from meco_timm.data import DataSource, Images
from meco_timm.distillation import Supervised, class_weights
from meco_timm.networks import LOGITS_ONLY, Stream, export, student_stream, teacher_stream, weights_file_digest
from meco_timm.recipe import Loop, Network, Recipe, Teacher, loop_key
from meco_timm.training import Job, Training, total_steps
from meco_timm.zoo.lookup import MANIFEST, Found, find_trained
from meco_timm.zoo.zoo import Zoo

logger = get_logger(__name__)

ALONE = {"role": "student"}
KEY_VERSION = 2  # increase it when trained networks would come out differently: older ones are then not reused


def load_pretrained(recipe: Recipe, data: DataSource) -> dict[str, Stream]:
    """The teachers that need no training, with their weights. Load them first: a download may fail.

    Raises:
        UserError: a teacher cannot be loaded or does not fit the data set.
    """
    return {
        name: teacher_stream(teacher, recipe.alignment, data.classes, role=f"teachers.{i}")
        for i, (name, teacher) in enumerate(named_teachers(recipe).items())
        if not teacher.train
    }


def assemble_zoo(
    recipe: Recipe, data: DataSource, accelerator: Accelerator, pretrained: dict[str, Stream] | None = None
) -> Zoo:
    """The zoo with every teacher of the recipe; those with `train` are trained first, unless they are in the folder.

    `pretrained`: result of `load_pretrained`, if it was called already.

    Raises:
        UserError: a teacher cannot be loaded or does not fit the data set.
    """
    streams = load_pretrained(recipe, data) if pretrained is None else pretrained
    with_weights = train_teachers(recipe, data, accelerator)

    def load(name: str) -> Stream:
        role = f"teachers.{list(with_weights).index(name)}"
        return teacher_stream(with_weights[name], recipe.alignment, data.classes, role=role)

    streams = {name: streams.get(name) or load(name) for name in with_weights}
    return Zoo(streams, recipe, accelerator, load)


def train_teachers(recipe: Recipe, data: DataSource, accelerator: Accelerator) -> dict[str, Teacher]:
    """The recipe's teachers by name; those that say `train` are trained, and become networks in a folder of the zoo."""
    found = named_teachers(recipe)
    for name, teacher in found.items():
        if teacher.train:
            folder = train_on_labels(label_training(name, teacher, recipe, data, accelerator))
            found[name] = in_folder(teacher, folder)
    return found


def untrained_teachers(recipe: Recipe, classes: list[str], weightless: bool = True) -> dict[str, Stream]:
    """The teachers before any training, checked against the recipe and the classes.

    `weightless`: on the meta device, without weights; else those to be trained have random weights.

    Raises:
        UserError: a teacher cannot be made or does not fit the data set, or nothing would train the student's head.
    """
    streams = {
        name: _untrained_teacher(teacher, recipe, classes, f"teachers.{i}", weightless)
        for i, (name, teacher) in enumerate(named_teachers(recipe).items())
    }
    check_targets(recipe, streams)
    return streams


def _untrained_teacher(teacher: Teacher, recipe: Recipe, classes: list[str], role: str, weightless: bool) -> Stream:
    blocks, size, count = recipe.alignment, recipe.data.image_size, len(classes)
    if not teacher.train:
        return teacher_stream(teacher, blocks, classes, role=role, weightless=weightless)
    if teacher.size not in (None, size) or teacher.gives == "blocks":  # its training needs a stream of its own
        student_stream(teacher, LOGITS_ONLY, count, size, role=role, weightless=True)
    own_size = teacher.size or size
    options: dict[str, Any] = {"gives": teacher.gives, "weightless": weightless, "channels": blocks.channels}
    return student_stream(teacher, blocks, count, own_size, role=role, **options)


def check_targets(recipe: Recipe, streams: dict[str, Stream]) -> None:
    """Raises: UserError: the teachers' outputs cannot train the student as the recipe says."""
    if not any(stream.has_logits for stream in streams.values()) and not recipe.losses.labels:
        raise UserError(
            "teachers: all of them give blocks only, so nothing would train the student's head. Add a teacher that "
            "gives logits, or train on the labels too with losses.labels=1."
        )
    unused = [name for name, stream in streams.items() if not stream.has_logits]
    if unused and not recipe.method.compares_blocks:
        raise UserError(
            f"teachers: {', '.join(unused)}: gives blocks only, but no loss compares blocks. Write for example "
            "losses.blocks=3."
        )


def named_teachers(recipe: Recipe) -> dict[str, Teacher]:
    """The recipe's teachers by a short unique name."""
    named: dict[str, Teacher] = {}
    for teacher in recipe.teachers:
        name = short_name(teacher.model).removeprefix("torchvision:").rstrip("/").split("/")[-1]
        same = sum(other.partition(" (")[0] == name for other in named)
        named[f"{name} ({same + 1})" if same else name] = teacher
    return named


def in_folder(teacher: Teacher, folder: Path) -> Teacher:
    """A teacher that has been trained."""
    return Teacher(model=f"local-dir:{folder}", size=teacher.size, gives=teacher.gives)


def label_training(
    name: str, teacher: Teacher, recipe: Recipe, data: DataSource, accelerator: Accelerator
) -> "LabelTraining":
    """The training of a teacher that says `train`."""
    steps = total_steps(teacher.loop, len(data.labelled), accelerator.num_processes)
    role = {"role": "teacher", "name": name}
    return LabelTraining(f"teacher {name}", role, teacher, teacher.loop, steps, recipe, data, accelerator)


def student_alone(recipe: Recipe, steps: int, data: DataSource, accelerator: Accelerator) -> Stream:
    """The baseline: the student's network, trained on the labels only from the same start with the same budget."""
    folder = train_on_labels(
        LabelTraining("student alone", ALONE, recipe.student, recipe.loop, steps, recipe, data, accelerator)
    )
    return teacher_stream(Teacher(model=f"local-dir:{folder}"), LOGITS_ONLY, data.classes).to(accelerator.device)


class LabelTraining(NamedTuple):
    """A network that is trained on the labels. `role` tells it from the recipe's others; its seed depends on it."""

    title: str
    role: dict[str, str]
    network: Network
    loop: Loop
    steps: int
    recipe: Recipe
    data: DataSource
    accelerator: Accelerator

    @property
    def seed(self) -> int:
        return derive(self.recipe.seed, *(f"{name}={value}" for name, value in sorted(self.role.items())))

    @property
    def images(self) -> Images:
        """Those whose labels it learns: the student alone has the student's."""
        return self.data.alone if self.role == ALONE else self.data.labelled


def train_on_labels(task: LabelTraining) -> Path:
    """The zoo's folder of this network, trained on the labelled images; trained now unless the folder exists.

    The folder's name has a hash of everything the weights depend on: data, network, loop, role and seed.

    Raises:
        UserError: the zoo's folder cannot be written.
    """
    key = training_key(task)
    folder, note = find_zoo_folder(task, key)
    if note:
        logger.info("%s: %s", task.title, note)
    if (folder / "config.json").exists():
        logger.info("%s: already trained, loaded from %s", task.title, folder)
        return folder
    work = folder.with_name(folder.name + ".training")
    try:
        work.mkdir(parents=True, exist_ok=True)
        (work.parent / ".locks").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"zoo.folder: {folder.parent} cannot be written: {error.strerror}.") from None
    with _locked(work, task.accelerator):
        if not (folder / "config.json").exists():  # another run may have trained it while this one waited
            _train(task, key, folder, work)
    if task.accelerator.is_main_process:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def find_zoo_folder(task: LabelTraining, key: dict[str, Any]) -> Found:
    """Where this network is in the zoo, or is to be trained. key: its `training_key`."""
    name = short_name(task.network.model).replace("/", "_").replace(":", "_")
    return find_trained(Path(task.recipe.zoo.folder), name, key, task.data.manifest)


def _train(task: LabelTraining, key: dict[str, Any], folder: Path, work: Path) -> None:
    """Train the network in the folder `work` and export it, with its best weights, to `folder`."""
    data, loop, size = task.data, task.loop, task.recipe.data.image_size
    stream = student_stream(task.network, LOGITS_ONLY, len(data.classes), size, role=task.title, seed=task.seed)
    weight = class_weights(loop.class_weights, data.label_counts(task.images))
    job = Job(task.title, work, loop, data, task.images, task.steps, task.seed)
    stream = Training(Supervised(stream, loop.label_smoothing, weight), job, task.accelerator).run()
    if task.accelerator.is_main_process:
        more: dict[str, Any] = {"made_by.json": key, "metrics.jsonl": (work / "metrics.jsonl").read_text()}
        more |= {MANIFEST: data.manifest.bytes()} if data.manifest.entries else {}
        export(stream, folder, data.classes, task.recipe.data, more)
    task.accelerator.wait_for_everyone()


@contextmanager
def _locked(work: Path, accelerator: Accelerator) -> Iterator[None]:
    """Lock a network's work folder, so that two runs that need the same teacher train it once."""
    lock = FileLock(work.parent / ".locks" / work.stem)  # outside of the work folder, which is deleted
    try:
        if accelerator.is_main_process:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                logger.info("waiting for another run that is training %s", work.stem)
                lock.acquire()
        accelerator.wait_for_everyone()
        yield
    finally:
        lock.release()


def training_key(task: LabelTraining) -> dict[str, Any]:
    """Everything that the weights of a network trained on labels depend on."""
    views = {"image_size", "crop_pct", "interpolation", "augmentation"}
    return {
        "version": KEY_VERSION,
        "data": task.data.identity,
        **({"files": task.data.manifest.digest()} if task.data.manifest.entries else {}),
        "views": task.recipe.data.model_dump(mode="json", include=views),
        "network": task.network.model_dump(mode="json", include={"model", "args", "weights"}),
        "starts_from": weights_file_digest(task.network),
        "loop": {**loop_key(task.loop, {"epochs"}), "steps": task.steps},
        "processes": task.accelerator.num_processes,
        "precision": task.accelerator.mixed_precision,
        "seed": task.recipe.seed,
        **task.role,
        **({"images": len(task.images)} if task.images is task.data.alone and task.recipe.data.images else {}),
    }
