"""How long a run takes: on GPUs that one may hire, from what they are said to reach; here, by measuring a few steps."""

import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from meco_timm.common import UserError
from meco_timm.data import COUNTS, DataSource, known_data
from meco_timm.distillation import Distiller, Supervised, gradient_shares
from meco_timm.networks import LOGITS_ONLY, Stream, student_stream
from meco_timm.planning.cost import duration, multiply_adds_per_second, parts_of
from meco_timm.planning.rehearse import random_weights
from meco_timm.recipe import Loop, Recipe
from meco_timm.training import Job, Teaching, Training, total_steps
from meco_timm.zoo import Zoo, named_teachers, untrained_teachers

# Dense FLOP/s in bf16 and in float32, as NVIDIA's data sheets state them.
GPUS = {"A100": (312e12, 19.5e12), "H100": (989e12, 67e12), "RTX 4090": (165e12, 82.6e12), "L4": (121e12, 30.3e12)}
# What NVIDIA's own ResNet-50 reaches on an A100 (90 epochs in 8.75 hours); depthwise layers reach far less.
UTILISATION = 0.3
AFFORDABLE = 20.0  # seconds that measuring may take
ENDING = 4.0  # seconds: report, card and other things that every run ends with
Clock = Callable[[], float]


def gpu_time_lines(
    recipe: Recipe,
    student: Stream,
    teachers: dict[str, Stream],
    data: DataSource,
    processes: int,
    utilisation: float | None = None,
) -> list[str]:
    """The time on each GPU, if it reaches `utilisation` of its stated FLOP/s, and loaders keep up or decide.

    Nothing where it is minutes.

    Raises:
        UserError: a share that is none.
    """
    share = UTILISATION if utilisation is None else utilisation
    if not 0 < share <= 1:
        raise UserError(f"--utilisation: {share} is no share of a GPU's stated FLOP/s. Write for example 0.3.")
    parts = parts_of(recipe, student, teachers, data, processes).values()
    work, float32 = sum(part.work for part in parts), recipe.precision == "no"
    speed = {name: said[float32] * share * processes for name, said in GPUS.items()}
    if 2 * work / min(speed.values()) < 600:  # small networks wait for the CPU, whatever the GPU
        return []
    core = loaded_per_second(recipe, data)
    loaders = core * max(recipe.data.workers, 1) * processes
    seconds = {name: sum(max(2 * part.work / s, part.images / loaders) for part in parts) for name, s in speed.items()}
    told = ", ".join(f"{duration(s)} on {processes} × {name}" for name, s in seconds.items())
    return [
        f"hours   {told}: {work:.1e} multiply-adds at {share:.0%} of the stated FLOP/s in "
        f"{'float32' if float32 else 'bf16'}{' (a tuned ResNet-50 on an A100)' if utilisation is None else ''}, and "
        f"loaders that bring {loaders:,.0f} images/s ({core:,.0f} a core), which decide where a GPU would take more"
    ]


def loaded_per_second(recipe: Recipe, data: DataSource) -> float:
    """Images that a core reads and augments; measured, or as it is known where the data set was not opened."""
    if known_data(recipe.data):
        return COUNTS[recipe.data.source].per_second
    size = min(32, len(data.train))
    batches = replace(data, workers=0).batches(data.train, size, recipe.seed, 0, 3)
    next(batches)
    began = time.perf_counter()
    next(batches)
    return size / (time.perf_counter() - began)


def measured_time_lines(recipe: Recipe, student: Stream, teachers: dict[str, Stream], data: DataSource) -> list[str]:
    """The time on this device, measured; nothing where measuring would take long."""
    batch = measured_batch(recipe, student, teachers)
    if batch < 2:
        return []
    seconds = seconds_here(recipe, data, batch)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "this CPU"
    parts = ", ".join(f"{name} {duration(s)}" for name, s in seconds.items())
    return [f"here    {duration(sum(seconds.values()))} on {device}, from a few steps measured now: {parts}"]


def measured_batch(recipe: Recipe, student: Stream, teachers: dict[str, Stream]) -> int:
    """How many images may be measured at once: the recipe's batch, or what can be afforded."""
    trained = [teachers[name] for name, teacher in named_teachers(recipe).items() if teacher.train]
    passes = [*[student] * 8, *teachers.values(), *trained * 3]  # a backward pass counts twice
    work = 2 * sum(stream.multiply_adds() for stream in passes)  # a call to warm up, a call to time
    return min(recipe.loop.batch_size, int(AFFORDABLE * multiply_adds_per_second() / work))


def seconds_here(recipe: Recipe, data: DataSource, batch: int, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Seconds of each part of a run on this device, nothing taken from the zoo or a store.

    Networks have random weights, which cost the same. `batch`: images measured at once; `clock`: what counts as time.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        measure = Measuring(random_weights(recipe, Path(folder)), data, batch, clock, Path(folder))
        return measure.parts()


class Measuring:
    """Steps of a recipe's trainings, timed one by one."""

    def __init__(self, recipe: Recipe, data: DataSource, batch: int, clock: Clock, folder: Path):
        self.recipe, self.data, self.batch, self.clock, self.folder = recipe, data, batch, clock, folder
        self.accelerator = Accelerator(mixed_precision=recipe.precision)
        batches = replace(data, workers=0).batches(data.train, batch, recipe.seed, 0, 1000)
        self.loading = self._timed(lambda: next(batches)) / batch  # seconds per image, in one process
        self.seen = next(batches)
        self.image = self.seen.image.to(self.accelerator.device)

    def parts(self) -> dict[str, float]:
        """Seconds by the name of a part."""
        recipe, classes = self.recipe, len(self.data.classes)
        teachers = named_teachers(recipe)
        plain = untrained_teachers(recipe, self.data.classes, weightless=False)
        forward = {name: self._forward(stream.to(self.accelerator.device).eval()) for name, stream in plain.items()}
        parts = {}
        for name, teacher in teachers.items():
            if teacher.train:
                parts[f"teacher {name}"] = self._supervised(teacher, teacher.loop, len(self.data.labelled))
        steps = total_steps(recipe.loop, len(self.data.train), 1)
        loop = recipe.loop.model_copy(update={"steps": steps, "epochs": None})
        parts["student alone"] = self._supervised(recipe.student, loop, len(self.data.train))
        student = student_stream(recipe.student, recipe.alignment, classes, recipe.data.image_size)
        of_student = self._forward(student.to(self.accelerator.device).eval())
        parts["student"] = self._distilled(student, Zoo(plain, recipe, self.accelerator), loop, of_student)
        evaluated = 2 * of_student + sum(forward.values()) + self.loading
        speed = 0.6 * (3 + 2 * len(teachers))  # each row's speed is measured
        return parts | {"table and report": len(self.data.test) * evaluated + speed + ENDING}

    def _supervised(self, network: Any, loop: Loop, images: int) -> float:
        stream = student_stream(network, LOGITS_ONLY, len(self.data.classes), self.recipe.data.image_size)
        training = self._training(Supervised(stream, loop.label_smoothing), loop)
        step = self._timed(self._stepping(training)) / self.batch
        return self._whole(loop, images, step, self._forward(stream.eval()))

    def _distilled(self, student: Stream, zoo: Zoo, loop: Loop, forward: float) -> float:
        """Every teacher is timed by itself, so that it does not matter who would be drawn in these few steps."""
        teaching = [self._forward(stream) for stream in zoo.streams.values()]
        with torch.no_grad():
            given = zoo.live(zoo.names[0], self.image)
        training = self._training(Distiller(student, self.recipe, len(self.data.classes)), loop, lambda *_: given)
        step = self._timed(self._stepping(training)) / self.batch
        label = self.seen.label.to(self.accelerator.device)
        weighing = self._timed(lambda: gradient_shares(training._module, self.image, label, given), once=True)
        teacher = sum(teaching) / (1 if self.recipe.zoo.sampling == "average" else len(teaching))
        return self._whole(loop, len(self.data.train), step + teacher, forward) + 4 * weighing

    def _whole(self, loop: Loop, images: int, step: float, forward: float) -> float:
        """Seconds of a training, from those of an image in a step and in a validation; loaders work beside it."""
        workers = self.data.workers

        def per_image(computing: float) -> float:
            return max(computing, self.loading / workers) if workers else computing + self.loading

        seen = total_steps(loop, images, 1) * loop.batch_size * loop.accumulation
        return seen * per_image(step) + loop.validations * len(self.data.validation) * (forward + self.loading)

    def _training(self, objective: nn.Module, loop: Loop, teach: Any = None) -> Training:
        endless = loop.model_copy(update={"steps": 10**9, "epochs": None, "accumulation": 1})
        seed, discriminator_lr = self.recipe.seed, self.recipe.discriminators.lr
        job = Job("measured", self.folder, endless, self.data, self.data.train, 10**9, seed, discriminator_lr)
        return Training(objective, job, self.accelerator, Teaching(teach) if teach else None)

    def _stepping(self, training: Training) -> Callable[[], object]:
        batches = itertools.repeat(self.seen)
        return lambda: training._one_step(batches)

    @torch.no_grad()
    def _forward(self, stream: Stream) -> float:
        """Seconds of an image."""
        return self._timed(lambda: stream(self.image)) / self.batch

    def _timed(self, call: Callable[[], object], once: bool = False) -> float:
        """Seconds of a call: the median of some, after one to warm up."""
        call()
        times: list[float] = []
        while not times or (sum(times) < 0.3 and len(times) < 20 and not once):
            began = self.clock()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(self.clock() - began)
        return median(times)
