"""The parts of gpu.py that take steps: over a loop by hand, and with more and more teachers."""

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.form import Row
from benchmarks.gpu_measure import (
    CUDA,
    SIZE,
    Findings,
    Measured,
    accelerator,
    bare,
    batches,
    measured,
    network,
    ours,
    recipe,
)
from benchmarks.host_reads import counted
from benchmarks.memory import from_store
from benchmarks.step import stepping, training_of, zoo_of
from meco_timm.planning.cost import Part, teacher_macs, training_memory
from meco_timm.planning.time_estimate import GPUS, gpu_seconds
from meco_timm.recipe.recipe import Recipe
from meco_timm.zoo.zoo import Zoo

WORDS = ("random", "average")  # of zoo.sampling
FORMS: dict[str, dict[str, Any]] = {
    "logits": {"losses": {"blocks": 0}, "zoo": {"sampling": "random"}},
    "MEAL": {"zoo": {"sampling": "random"}},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "MEAL, ema, mixup, erasing": {"loop": {"ema": 0.999, "mixup": 0.2, "random_erasing": 0.2}},
    "MEAL, mean of all": {"zoo": {"sampling": "average"}},
}


def step(found: Findings) -> str:
    """Forms of a step over the loop by hand; with channels_last and compiled."""
    for channels_last, compiled in ((False, False), (True, False), (True, True)):
        word = f"{'channels_last' * channels_last}{', compiled' * compiled}"
        if not found.has_time(f"the forms with {word}", 8 if compiled and CUDA else 4):
            break
        base = measured(bare(channels_last, compiled))
        found.add(_row("by hand", channels_last, compiled, base, None))
        for form, changes in FORMS.items():
            m = measured(ours(changes | {"loop": {"channels_last": channels_last}}, compiled), warm=12 if CUDA else 1)
            found.add(_row(form, channels_last, compiled, m, base))
            found.figures[f"{form} {word}".strip()] = base.images_per_s / m.images_per_s
        if not channels_last:
            _options(found)
    slow = CUDA and any(ratio > 1.15 for ratio in found.figures.values())
    waiting = any("waits at" in note for note in found.notes)
    return "the host waits" if waiting else "slower than expected" if slow else "as expected"


def _options(found: Findings) -> None:
    """What each option makes the host wait for; without a GPU, what it would."""
    for name, changes in (FORMS | OPTIONS).items():
        if CUDA:
            m = measured(ours(changes), steps=max(2, SIZE.steps // 2))
            places = m.waits
            if name in OPTIONS:
                found.add(_row(name, False, False, m, None))
        else:
            places = reads(changes)
            found.add({"form": f"{name}: reads of three steps", "waits": len(places)})
        if places:
            found.notes.append(f"{name} waits at {', '.join(sorted(set(places)))}")


def _row(name: str, channels_last: bool, compiled: bool, m: Measured, base: Measured | None) -> Row:
    ratio = base.images_per_s / m.images_per_s if base else None
    return {
        "form": name, "channels last": channels_last, "compiled": compiled, "images/s": m.images_per_s,
        "over by hand": ratio, "GPU ms": m.gpu_ms, "waits": len(m.waits) if CUDA else None,
        "idle": m.idle, "peak GiB": m.memory_gib,
    }  # fmt: skip


def reads(changes: dict[str, Any]) -> list[str]:
    """Without a GPU: what three steps would wait for on one (host_reads.py)."""
    settings, plain = recipe(changes), accelerator()
    zoo = zoo_of((network(teacher.model) for teacher in settings.teachers), settings, plain)
    training, data = training_of(network(settings.student.model), zoo, settings), batches()
    one = stepping(training, data)
    one()
    plain.state.device = torch.device("cpu", 0)
    state = training.state
    on_gpu = [state.objective, state.skipped, *state.optimizer.optimizer.state.values(), *zoo.streams.values()]
    with counted(*on_gpu, *([state.ema] if state.ema else [])) as found:
        for _ in range(3):
            one()
    return found


def teachers(found: Findings) -> str:
    """Speed, memory and time for 1, 3 and 8 teachers, offloaded and stored, beside the plan's figures."""
    few, many = (3, 8) if CUDA else (2, 3)
    ways: dict[str, tuple[int, dict[str, Any]]] = {
        "1 teacher": (1, {}),
        **{f"{n} {word}": (n, {"sampling": word}) for n in ((few, many) if CUDA else (few,)) for word in WORDS},
        f"{many} random, 2 resident": (many, {"sampling": "random", "resident": 2}),
    }
    for name, (count, zoo) in ways.items():
        if found.has_time(name):
            found.add(_against_plan(name, count, {"zoo": zoo}))
    if found.has_time("a full store"):
        found.add(_against_plan("from a full store", few, {"zoo": {"sampling": "random"}}, stored=True))
    limits = {"memory / plan": 0.15, "time / plan": 0.30}
    apart = [f"{row['teachers']}: {what} {row[what]:.2f}" for row in found.rows for what, most in limits.items()
             if CUDA and row[what] and abs(row[what] - 1) > most]  # fmt: skip
    found.notes += [f"further from the plan than 15 % of memory or 30 % of time: {'; '.join(apart)}"] if apart else []
    found.figures |= {f"{row['teachers']} images/s": row["images/s"] for row in found.rows}
    speeds = [found.figures.get(f"{name} images/s") for name in ("1 teacher", f"{many} random")]
    slow = CUDA and speeds[0] and speeds[1] and speeds[1] < 0.8 * speeds[0]
    return "slower than expected" if slow else "differs from the plan" if apart else "as expected"


def _against_plan(name: str, count: int, changes: dict[str, Any], stored: bool = False) -> Row:
    settings, plain = recipe(changes, count), accelerator()
    folder: AbstractContextManager[Any] = tempfile.TemporaryDirectory() if stored else nullcontext("")
    zoo = zoo_of((network(teacher.model) for teacher in settings.teachers), settings, plain)
    training = training_of(network(settings.student.model), zoo, settings)
    planned_memory, planned_ms = _planned(settings, training.state.student, zoo)
    with folder as place:
        if stored:
            from_store(zoo, list(zoo.names), settings, Path(place), torch.arange(SIZE.batch))
        m = measured(stepping(training, batches()), warm=2 * count if CUDA else 1)
    ms = 1000 * SIZE.batch / m.images_per_s
    return {
        "teachers": name, "images/s": m.images_per_s, "ms": ms, "plan ms": None if stored else planned_ms,
        "time / plan": ms / planned_ms if planned_ms and not stored else None, "peak GiB": m.memory_gib,
        "plan GiB": planned_memory, "memory / plan": m.memory_gib / planned_memory if m.memory_gib else None,
        "idle": m.idle, "waits": len(m.waits) if CUDA else None,
    }  # fmt: skip


def _planned(settings: Recipe, student: Any, zoo: Zoo) -> tuple[float, float | None]:
    """GiB and milliseconds per step by the plan's rules for this card; None of a card it does not know."""
    memory = training_memory(settings, student, zoo.streams, "bf16" if CUDA else "float32") / 2**30
    card = next((name for name in GPUS if CUDA and name in torch.cuda.get_device_name()), None)
    if card is None:
        return memory, None
    batch = settings.loop.batch_size
    part = Part(3 * batch * student.multiply_adds(), batch * teacher_macs(settings, zoo.streams), batch)
    return memory, 1000 * gpu_seconds(part, GPUS[card], float32=False)
