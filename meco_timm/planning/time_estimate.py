"""Time estimates: on four GPUs from the speed measured on one, and on this device from a few measured steps."""

import contextlib
import io
import itertools
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from meco_timm.common import Status, UserError
from meco_timm.data import COUNTS, Batch, DataSource, Steps, cache_images, known_data, plan_cache
from meco_timm.distillation import Distiller, Objective, Supervised, Targets
from meco_timm.networks import LOGITS_ONLY, Stream, student_stream
from meco_timm.planning.cost import Part, Workload, format_duration, multiply_adds_per_second, run_parts, speed_line
from meco_timm.planning.rehearse import random_weights
from meco_timm.recipe import Loop, Recipe, named_teachers
from meco_timm.training import Job, Teaching, Training, total_steps
from meco_timm.zoo import Zoo, untrained_teachers


class Card(NamedTuple):
    """By NVIDIA's data sheets: peak dense FLOP/s in bf16 and in float32, bytes/s of its memory."""

    bf16: float
    float32: float
    bandwidth: float


GPUS = {
    "A100": Card(312e12, 19.5e12, 2.04e12),
    "H100": Card(989e12, 67e12, 3.35e12),
    "RTX 4090": Card(165e12, 82.6e12, 1.01e12),
    "L4": Card(121e12, 30.3e12, 0.3e12),
}
# FLOP for each byte that the memory can move, in training and in forward passes of frozen teachers in bf16: a ResNet-50
# with 3 and 8 teachers at 224 px on an H100, 1296f6b (LOG.md). Memory, not arithmetic, limits such networks.
TRAINING_FLOP_PER_BYTE, FORWARD_FLOP_PER_BYTE = 15.0, 37.0
FLOAT32_TIMES = 2.0  # as long as in bf16: twice the bytes; not measured
MAX_SECONDS = 20.0  # that measuring may take
FINISH_SECONDS = 4.0  # for report, card and files at the end of a run
Clock = Callable[[], float]


def gpu_time_lines(work: Workload, utilisation: float | None = None) -> list[str]:
    """The time on each GPU, or of the data loaders if these are slower: by `utilisation` of its peak FLOP/s; without it
    by the bandwidth of its memory and the speed measured on an H100. Then how a GPU computes.

    No lines if it is less than 10 minutes: the CPU then limits small networks.

    Raises:
        UserError: `utilisation` is not between 0 and 1.
    """
    if utilisation is not None and not 0 < utilisation <= 1:
        raise UserError(f"--utilisation: {utilisation} is not a share of a GPU's peak FLOP/s. Write for example 0.3.")
    recipe, processes, parts = work.recipe, work.processes, run_parts(work).values()
    float32 = recipe.precision == "no"
    computing = {
        name: [gpu_seconds(part, card, float32, utilisation) / processes for part in parts]
        for name, card in GPUS.items()
    }
    if max(map(sum, computing.values())) < 600:
        return []
    core = loader_images_per_second(recipe, work.data)
    loaders = core * max(recipe.data.workers, 1) * processes
    loading = [part.images / loaders for part in parts]
    seconds = {name: sum(map(max, own, loading)) for name, own in computing.items()}
    times = ", ".join(f"{format_duration(s)} on {processes} × {name}" for name, s in seconds.items())
    macs = sum(part.training + part.forward for part in parts)
    speed = f"{utilisation:.0%} of the peak FLOP/s" if utilisation else "the speed measured for a ResNet-50 on an H100"
    behind = {name: sum(loading) / sum(own) for name, own in computing.items() if sum(loading) > sum(own)}
    enough = math.ceil(max(behind.values(), default=0) * max(recipe.data.workers, 1))
    limit = f"; they are the limit on {', '.join(behind)}: data.workers={enough} would feed all" if behind else ""
    return [
        f"time    {times}: {macs:.1e} multiply-adds in {'float32' if float32 else 'bf16'} at {speed}, or "
        f"{loaders:,.0f} images/s from the data loaders ({core:,.0f} per core) if that is slower{limit}",
        *([] if torch.cuda.is_available() else [speed_line(work)]),
    ]


def gpu_seconds(part: Part, card: Card, float32: bool, utilisation: float | None = None) -> float:
    """Seconds that one GPU computes for a part of a run."""
    if utilisation is not None:
        return 2 * (part.training + part.forward) / (utilisation * (card.float32 if float32 else card.bf16))
    bytes_moved = 2 * (part.training / TRAINING_FLOP_PER_BYTE + part.forward / FORWARD_FLOP_PER_BYTE)
    return bytes_moved / card.bandwidth * (FLOAT32_TIMES if float32 else 1)


def loader_images_per_second(recipe: Recipe, data: DataSource) -> float:
    """Images that one core reads and augments per second: measured, or a recorded value if the data are not here."""
    if known_data(recipe.data):
        return COUNTS[recipe.data.source].per_second
    with tempfile.TemporaryDirectory() as folder:
        return 1 / time_loading(recipe, data, min(32, len(data.train)), Path(folder), Accelerator()).again


def measured_time_lines(work: Workload, status: Status) -> list[str]:
    """Line with the time on this device, from a few steps; no line if measuring them would take too long, and a warning
    if an image of these steps cannot be read: the plan is of use without a measured time."""
    passes = [*[work.student] * 8, *work.teachers.values(), *(work.teachers[name] for name in [*work.trained] * 3)]
    passes += [*[work.first.student] * 8, *work.first.teachers.values()] if work.first else []
    macs = 2 * sum(stream.multiply_adds() for stream in passes)  # a backward pass counts twice; one call to warm up
    batch = min(work.recipe.loop.batch_size, int(MAX_SECONDS * multiply_adds_per_second() / macs))
    if batch < 2:
        return []
    batch -= batch % 2  # mixup and cutmix mix pairs
    try:
        seconds, waits = measured_seconds(work.recipe, work.data, batch, status=status)
        if work.first:
            first, _ = measured_seconds(work.first.recipe, work.data, batch, status=status)
            seconds = {"backbone": first["student"]} | seconds
    except UserError as error:
        return [f"warning: no time was measured: {error}"]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "this CPU"
    parts = ", ".join(f"{name} {format_duration(s)}" for name, s in seconds.items())
    limit = "; the data loaders are the limit: write more data.workers" if waits else ""
    return [f"here    {format_duration(sum(seconds.values()))} on {device}, from a few measured steps: {parts}{limit}"]


def measured_seconds(
    recipe: Recipe, data: DataSource, batch: int, clock: Clock = time.perf_counter, status: Status | None = None
) -> tuple[dict[str, float], bool]:
    """(seconds of each part of a run on this device, whether a training waits for its loaders), assuming an empty zoo
    and an empty store.

    Networks have random weights, which cost the same, and are not compiled. `batch`: images per timed step.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        timer = StepTimer(random_weights(recipe, Path(folder)), data, batch, clock, Path(folder), status)
        return timer.parts(), timer.waits


class Loading(NamedTuple):
    """Seconds per image in one process. first: from its file. again: a training view, from the cache where there will
    be one. sample: a batch."""

    cached: bool
    first: float
    again: float
    sample: Batch


def time_loading(
    recipe: Recipe, data: DataSource, batch: int, folder: Path, accelerator: Accelerator,
    clock: Clock = time.perf_counter,
) -> Loading:  # fmt: skip
    """Time batches of some training images, without loader processes."""
    some, held_out = data.train.subsample(4 * batch), data.train.subsample(4 * batch)
    few = replace(data, train=some, labelled=some, alone=some, validation=held_out, workers=0)
    order, cached = Steps(batch, recipe.seed, 0, 1000), plan_cache(data, recipe.data).used
    batches = few.batches(few.train, order)
    first = again = timed(lambda: next(batches), clock) / batch
    if cached:
        cache_images(few, recipe.data, folder / "images", accelerator)
        batches = few.batches(few.train, order)
        again = timed(lambda: next(batches), clock) / batch
    return Loading(cached, first, again, next(batches))


class StepTimer:
    """Times single steps of all trainings of a recipe."""

    def __init__(self, recipe: Recipe, data: DataSource, batch: int, clock: Clock, folder: Path, status: Status | None):
        self.say = status.update if status else lambda text: None
        self.say("plan: timing the loading of images")
        self.recipe, self.data, self.batch, self.clock, self.folder = recipe, data, batch, clock, folder
        self.accelerator = Accelerator(mixed_precision=recipe.precision)
        self.loading = time_loading(recipe, data, batch, folder, self.accelerator, clock)
        self.image = self.loading.sample.image.to(self.accelerator.device)
        self.waits = False

    def parts(self) -> dict[str, float]:
        """Seconds of each part of a run."""
        recipe, data, loading = self.recipe, self.data, self.loading
        teachers, size = named_teachers(recipe.teachers), recipe.data.image_size
        streams = untrained_teachers(teachers, recipe.alignment, size, recipe.classes(data.classes), weightless=False)
        self.say("plan: timing the teachers")
        forward = {name: self._forward(stream.to(self.accelerator.device).eval()) for name, stream in streams.items()}
        decoded = len(data.train) + len(data.validation)
        parts = {"cache": decoded * loading.first / max(data.workers, 1)} if loading.cached else {}
        for name, teacher in teachers.items():
            if teacher.train:
                self.say(f"plan: timing steps of the teacher {name}")
                parts[f"teacher {name}"] = self._supervised(teacher, teacher.loop, len(data.labelled))
        self.say("plan: timing steps of the student")
        steps = total_steps(recipe.loop, len(data.train), 1)
        loop = recipe.loop.model_copy(update={"steps": steps, "epochs": None, "min_steps": 0})
        if not recipe.is_backbone:
            parts["student alone"] = self._supervised(recipe.student, loop, len(data.train))
        classes = len(recipe.classes(data.classes))
        student = student_stream(recipe.student, recipe.alignment, classes, size)
        student_forward = self._forward(student.to(self.accelerator.device).eval())
        zoo = Zoo(streams, recipe.zoo, recipe.seed, recipe.losses.temperature, self.accelerator)
        parts["student"] = self._distilled(student, zoo, loop, student_forward)
        per_image = 2 * student_forward + sum(forward.values()) + loading.first
        speeds = 0.6 * (3 + 2 * len(streams))  # the table has the measured speed of every network
        return parts | {"table and report": len(data.test) * per_image + speeds + FINISH_SECONDS}

    def _supervised(self, network: Any, loop: Loop, images: int) -> float:
        stream = student_stream(network, LOGITS_ONLY, len(self.data.classes), self.recipe.data.image_size)
        _, step = self._training_step(Supervised(stream, loop.label_smoothing), loop)
        return self._training_seconds(loop, images, step, self._forward(stream.eval()))

    def _distilled(self, student: Stream, zoo: Zoo, loop: Loop, forward: float) -> float:
        """Teachers are timed separately, so that the result does not depend on which one is drawn."""
        teachers = [self._forward(stream) for stream in zoo.streams.values()]
        with torch.no_grad():
            targets = Targets.of(zoo.live(zoo.names[0], self.image), 0, self.recipe.alignment.per_teacher)
        classes = len(self.recipe.classes(self.data.classes))
        distiller = Distiller(student, self.recipe.method, classes, zoo.block_shapes, zoo.embedding_sizes)
        _, step = self._training_step(distiller, loop, Teaching(lambda *_: targets))
        label = self.loading.sample.label.to(self.accelerator.device)
        shares = timed(lambda: distiller.gradient_shares(self.image, label, targets), self.clock, once=True)
        teacher = sum(teachers) / (1 if self.recipe.zoo.sampling == "average" else len(teachers))
        return self._training_seconds(loop, len(self.data.train), step + teacher, forward) + 4 * shares

    def _training_seconds(self, loop: Loop, images: int, step: float, forward: float) -> float:
        """Seconds of a training. `step`, `forward`: seconds per image of a step and of validation.

        Loader processes work in parallel with the training. With a cache the validation images are kept as tensors.
        """
        workers, loading = self.data.workers, self.loading
        self.waits |= workers > 0 and loading.again / workers > step
        per_image = max(step, loading.again / workers) if workers else step + loading.again
        trained = total_steps(loop, images, 1) * loop.batch_size * loop.accumulation
        validated = loop.validations * len(self.data.validation)
        return trained * per_image + validated * (forward + (0 if loading.cached else loading.first))

    def _training_step(self, objective: Objective, loop: Loop, teach: Teaching | None = None) -> tuple[Training, float]:
        """A training of the objective, and the seconds per image of its step."""
        endless = loop.model_copy(update={"steps": 10**9, "epochs": None, "min_steps": 0, "accumulation": 1})
        job = Job("measured", self.folder, endless, self.data, self.data.train, 10**9, self.recipe.seed)
        training, batches = Training(objective, job, self.accelerator, teach), itertools.repeat(self.loading.sample)
        return training, timed(lambda: training.take_step(batches), self.clock) / self.batch

    @torch.no_grad()
    def _forward(self, stream: Stream) -> float:
        """Seconds per image of a forward pass."""
        return timed(lambda: stream(self.image), self.clock) / self.batch


def timed(call: Callable[[], object], clock: Clock, once: bool = False) -> float:
    """Median seconds of a call, after one call to warm up."""
    call()
    times: list[float] = []
    while not times or (sum(times) < 0.3 and len(times) < 20 and not once):
        start = clock()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(clock() - start)
    return median(times)
