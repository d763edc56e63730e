"""Train networks on labels: teachers that say `train` (MEAL, section 3), and the student alone, the baseline.

A trained network is kept in the zoo's folder, under a name with a hash of everything that its weights depend on.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from filelock import FileLock, Timeout

from meco_timm.common import Stopwatch, UserError, derive, get_logger, is_unfinished, short_name
from meco_timm.data import MANIFEST, DataSource, Images, Manifest, changes
from meco_timm.distillation import Supervised, class_weights
from meco_timm.networks import LOGITS_ONLY, Stream, export, student_stream, teacher_stream, weights_file_digest
from meco_timm.recipe import Data, Loop, Network, Teacher, fingerprint, loop_key
from meco_timm.training.job import Job, total_steps
from meco_timm.training.loop import Training

logger = get_logger(__name__)

KEY_VERSION = 2  # increase it when trained networks would come out differently: older ones are then not reused
OF_DATA = ("data", "files")  # keys of made_by.json that depend on the images


class LabelTraining(NamedTuple):
    """What trainings on labels share. settings: the recipe's section `data`. seed: of the run. folder: of the zoo.
    watch: runs during their steps."""

    data: DataSource
    settings: Data
    seed: int
    folder: Path
    accelerator: Accelerator
    watch: Stopwatch | None = None


class Task(NamedTuple):
    """A network that is trained on the labels of `images`. role: tells it from others of the run; its seed depends on
    it."""

    title: str
    role: dict[str, str]
    network: Network
    loop: Loop
    steps: int
    images: Images


def train_teachers(teachers: Mapping[str, Teacher], training: LabelTraining) -> dict[str, Teacher]:
    """Train the teachers that say `train`; each becomes a network in a folder of the zoo."""
    trained = dict(teachers)
    for name, teacher in teachers.items():
        if teacher.train:
            trained[name] = _in_folder(teacher, train_on_labels(_teacher_task(name, teacher, training), training))
    return trained


def trained_teacher(name: str, teacher: Teacher, training: LabelTraining) -> Teacher | None:
    """The teacher with its weights; None if it is not trained yet."""
    if not teacher.train:
        return teacher
    folder, _ = _find(_teacher_task(name, teacher, training), training)
    return _in_folder(teacher, folder) if (folder / "config.json").exists() else None


def validation_curves(teachers: Mapping[str, Teacher], training: LabelTraining) -> dict[str, list[tuple[int, float]]]:
    """(step, top-1 in per cent) of each validation, of the teachers that say `train` and have been trained."""
    curves = {}
    for name, teacher in teachers.items():
        trained = trained_teacher(name, teacher, training) if teacher.train else None
        if trained:
            curves[name] = read_curve(Path(trained.model.removeprefix("local-dir:")))
    return curves


def read_curve(folder: Path) -> list[tuple[int, float]]:
    """The validations in the metrics.jsonl of a folder."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [(line["step"], line["validation/top1"]) for line in lines if "validation/top1" in line]


def train_student_alone(network: Network, loop: Loop, steps: int, training: LabelTraining) -> Stream:
    """Train the student's network on the labels only, from the same start and with the same budget."""
    folder = train_on_labels(_alone_task(network, loop, steps, training), training)
    stream = teacher_stream(Teacher(model=f"local-dir:{folder}"), LOGITS_ONLY, training.data.classes)
    return stream.to(training.accelerator.device)


def student_alone_curve(network: Network, loop: Loop, steps: int, training: LabelTraining) -> list[tuple[int, float]]:
    """The validations of the student alone, which has been trained."""
    return read_curve(_find(_alone_task(network, loop, steps, training), training)[0])


def _alone_task(network: Network, loop: Loop, steps: int, training: LabelTraining) -> Task:
    return Task("student alone", {"role": "student"}, network, loop, steps, training.data.alone)


def train_on_labels(task: Task, training: LabelTraining) -> Path:
    """The zoo's folder of this network; it is trained now unless the folder exists.

    Raises:
        UserError: the zoo's folder cannot be written.
    """
    folder, note = _find(task, training)
    if note:
        logger.info("%s: %s", task.title, note)
    work = folder.with_name(folder.name + ".training")
    if (folder / "config.json").exists():
        logger.info("%s: already trained, loaded from %s", task.title, folder)
    else:
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"zoo.folder: {folder.parent} cannot be written: {error.strerror}.") from None
        with locked_folder(folder, training.accelerator):
            if not (folder / "config.json").exists():  # another run may have trained it while this one waited
                _train(task, training, folder, work)
    if training.accelerator.is_main_process:
        shutil.rmtree(work, ignore_errors=True)  # a run that was killed at just this line has left it
    return folder


def _teacher_task(name: str, teacher: Teacher, training: LabelTraining) -> Task:
    images = training.data.labelled
    steps = total_steps(teacher.loop, len(images), training.accelerator.num_processes)
    return Task(f"teacher {name}", {"role": "teacher", "name": name}, teacher, teacher.loop, steps, images)


def _in_folder(teacher: Teacher, folder: Path) -> Teacher:
    return Teacher(model=f"local-dir:{folder}", size=teacher.size, gives=teacher.gives)


def _train(task: Task, training: LabelTraining, folder: Path, work: Path) -> None:
    """Train the network in the folder `work` and export it, with its best weights, to `folder`."""
    data, loop, accelerator = training.data, task.loop, training.accelerator
    seed = derive(training.seed, *(f"{name}={value}" for name, value in sorted(task.role.items())))
    size = training.settings.image_size
    stream = student_stream(task.network, LOGITS_ONLY, len(data.classes), size, role=task.title, seed=seed)
    weight = class_weights(loop.class_weights, data.label_counts(task.images))
    job = Job(task.title, work, loop, data, task.images, task.steps, seed, watch=training.watch)
    stream = Training(Supervised(stream, loop.label_smoothing, weight), job, accelerator).run()
    if accelerator.is_main_process:
        more: dict[str, Any] = {"made_by.json": training_key(task, training)}
        more["metrics.jsonl"] = (work / "metrics.jsonl").read_text()
        files = data.manifest.of_source()
        more |= {MANIFEST: files.bytes()} if files.entries else {}
        export(stream, folder, data.classes, training.settings, more)
    accelerator.wait_for_everyone()


@contextmanager
def locked_folder(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Lock a network's folder in the zoo, so that two runs that need the same network train it once.

    Raises:
        UserError: the zoo's folder cannot be written.
    """
    locks = folder.parent / ".locks"  # outside of the folder
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"zoo.folder: {folder.parent} cannot be written: {error.strerror}.") from None
    lock = FileLock(locks / folder.name)
    try:
        if accelerator.is_main_process:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                logger.info("waiting for another run that is training %s", folder.name)
                lock.acquire()
        accelerator.wait_for_everyone()
        yield
    finally:
        lock.release()


def training_key(task: Task, training: LabelTraining) -> dict[str, Any]:
    """Everything that the weights of a network trained on labels depend on."""
    data, settings = training.data, training.settings
    files = data.manifest.of_source()
    views = {"image_size", "crop_pct", "interpolation", "augmentation"}
    key: dict[str, Any] = {
        "version": KEY_VERSION,
        "data": data.identity,
        "files": files.digest() if files.entries else None,
        "images": len(task.images) if task.images is data.alone and settings.images else None,
        "views": settings.model_dump(mode="json", include=views),
        "network": task.network.model_dump(mode="json", include={"model", "args", "weights"}),
        "starts_from": weights_file_digest(task.network),
        "loop": {**loop_key(task.loop, {"epochs", "min_steps"}), "steps": task.steps},
        "processes": training.accelerator.num_processes,
        "precision": training.accelerator.mixed_precision,
        "seed": training.seed,
        **task.role,
    }
    return json.loads(json.dumps(key))


def _find(task: Task, training: LabelTraining) -> tuple[Path, str]:
    name = short_name(task.network.model).replace("/", "_").replace(":", "_")
    return find_trained(training.folder, name, training_key(task, training), training.data.manifest.of_source())


def find_trained(zoo: Path, name: str, key: dict[str, Any], manifest: Manifest) -> tuple[Path, str]:
    """The folder of the network with this key, or where it is to be trained, and what the user should know of it.

    A copy of the images, whose files have other times and so another digest, counts as the same.
    """
    folder, note = zoo / f"{name}-{fingerprint(key)}", ""
    if (folder / "config.json").exists() or not manifest.entries:
        return folder, note
    for other in sorted(zoo.glob(f"{escape(name)}-*")):
        if is_unfinished(other):
            continue
        made, before = _made_by(other), Manifest.read(other / MANIFEST)
        if before is None or _without_data(made) != _without_data(key):
            continue
        difference = changes(before.of_source(), manifest)
        if made["data"] == key["data"] and not difference:
            return other, ""
        note = f"{other} was trained on other images: {difference}; it is trained again" if difference else note
    return folder, note


def _made_by(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "made_by.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _without_data(key: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name not in OF_DATA}
