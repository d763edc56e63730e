"""Steps as gpu.py measures them: the package's own and one by hand, their speed, waits, idle share and memory."""

import gc
import itertools
import json
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from benchmarks.form import Row
from benchmarks.step import stepping, training_of, zoo_of
from meco_timm.data.loading import Batch
from meco_timm.recipe.recipe import Recipe
from meco_timm.training import make_accelerator

CUDA = torch.cuda.is_available()
BACKEND = "inductor" if CUDA else "eager"  # of torch.compile
CLASSES = 100
Step = Callable[[], object]


class Findings:
    """Rows, notes and figures of a part, written row by row, so that a part cut off by the clock leaves what it has.

    earlier: the findings of the parts before it, by name.
    """

    def __init__(self, file: Path, seconds: float, earlier: dict[str, Any]):
        self.file, self.earlier = file, earlier
        self.verdict = "stopped before its end"
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.figures: dict[str, float] = {}
        self._end, self._last, self._longest = time.monotonic() + seconds, time.monotonic(), 0.0

    def add(self, row: Row) -> None:
        """Add the row of a measurement and write all."""
        self.rows.append(row)
        self._longest, self._last = max(self._longest, time.monotonic() - self._last), time.monotonic()
        self.write()

    def has_time(self, what: str, factor: float = 1.5) -> bool:
        """Whether one more measurement fits, `factor` times the longest so far; else a note says what is left out."""
        if time.monotonic() + factor * self._longest < self._end:
            return True
        self.notes.append(f"no time left for {what}: give more --minutes")
        return False

    def write(self) -> None:
        found = {"verdict": self.verdict, "rows": self.rows, "notes": self.notes, "figures": self.figures}
        self.file.write_text(json.dumps(found))


class Size(NamedTuple):
    """Networks, images and steps of a measurement."""

    student: str
    teachers: tuple[str, ...]
    pixels: int
    batch: int
    steps: int


SIZE = (
    Size("resnet50", ("resnet101", "convnext_small", "vit_base_patch16_224"), 224, 128, 20)
    if CUDA
    else Size("test_resnet", ("test_resnet", "test_convnext", "test_vit"), 160, 2, 2)
)


class Measured(NamedTuple):
    """Of a step. waits: places where the host waited for the device, over all steps. idle: share of the time in which
    the GPU ran no kernel."""

    images_per_s: float
    gpu_ms: float | None
    waits: list[str]
    idle: float | None
    memory_gib: float | None


def accelerator() -> Accelerator:
    """A new one, with the memory of the last one's networks free; accelerate has one state for a process."""
    gc.collect()
    AcceleratorState._reset_state(reset_partial_state=True)
    torch._dynamo.reset()
    return make_accelerator("bf16" if CUDA else "no")


def recipe(changes: dict[str, Any], teachers: int = len(SIZE.teachers)) -> Recipe:
    names = list(itertools.islice(itertools.cycle(SIZE.teachers), teachers))
    plain: dict[str, Any] = {
        "data": {"source": "memory", "image_size": SIZE.pixels},
        "teachers": [{"model": name} for name in names],
        "student": SIZE.student,
    }
    loop = {"steps": 1_000_003, "warmup": 0.0, "batch_size": SIZE.batch, "log_every": 1_000_000}
    return Recipe.model_validate(plain | changes | {"loop": loop | changes.get("loop", {})})


def batches() -> list[Batch]:
    """Four batches in pinned memory, as a loader gives them."""
    images = torch.randint(0, 256, (4, SIZE.batch, 3, SIZE.pixels, SIZE.pixels), dtype=torch.uint8)
    rows = torch.arange(SIZE.batch)
    made = [Batch(image, rows % CLASSES, rows, 0 * rows) for image in images]
    return [Batch(*(t.pin_memory() for t in batch)) if CUDA else batch for batch in made]


@cache
def _made(name: str) -> Any:
    return timm.create_model(name, num_classes=CLASSES)


def network(name: str) -> Any:
    """A copy: making a large network takes seconds."""
    return deepcopy(_made(name))


def ours(changes: dict[str, Any], compiled: bool = False, teachers: int = len(SIZE.teachers)) -> Step:
    """A step of the package's, over batches in memory."""
    settings, plain = recipe(changes, teachers), accelerator()
    zoo = zoo_of((network(teacher.model) for teacher in settings.teachers), settings, plain)
    training = training_of(network(settings.student.model), zoo, settings)
    if compiled:
        training.compile(BACKEND)
    return stepping(training, batches())


def bare(channels_last: bool, compiled: bool) -> Step:
    """Written by hand: a teacher in turn, KL, the fused optimizer, bf16 autocast; nothing else."""
    device = accelerator().device
    layout = torch.channels_last if channels_last else torch.contiguous_format
    student = network(SIZE.student).to(device, memory_format=layout).train()
    teachers = [network(name).to(device, memory_format=layout).eval().requires_grad_(False) for name in SIZE.teachers]
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    forward: Any = torch.compile(student, backend=BACKEND) if compiled else student
    data, turn = itertools.cycle(batches()), itertools.cycle(teachers)

    def step() -> None:
        image = next(data).image.to(device, non_blocking=True).float() / 255 - 0.5
        with torch.autocast(device.type, torch.bfloat16, enabled=CUDA):
            with torch.no_grad():
                target = next(turn)(image)
            loss = F.kl_div(
                forward(image).log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measured(step: Step, steps: int = SIZE.steps, warm: int = 5 if CUDA else 1) -> Measured:
    """Warm up, then time `steps` of a step, count its waits, and profile three."""
    for _ in range(warm):
        step()
    if not CUDA:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return Measured(steps * SIZE.batch / (time.perf_counter() - began), None, [], None, None)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began = time.perf_counter()
    first.record()
    for _ in range(steps):
        step()
    last.record()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    memory = torch.cuda.max_memory_allocated() / 2**30
    return Measured(steps * SIZE.batch / seconds, first.elapsed_time(last) / steps, waits(step), idle(step), memory)


def waits(step: Step, steps: int = 6) -> list[str]:
    """Where the host waits for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)]


def idle(step: Step, steps: int = 3) -> float:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    busy = sum(event.self_device_time_total for event in found.key_averages()) / 1e6
    return max(0.0, 1 - busy / seconds)
