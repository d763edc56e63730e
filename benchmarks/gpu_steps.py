"""The parts of gpu.py that take steps: over a loop by hand, with more and more teachers, and beside other projects."""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timm.task import FeatureDistillationTask, LogitDistillationTask

from benchmarks.form import Row
from benchmarks.gpu_measure import (
    BACKEND,
    CUDA,
    SIZE,
    Findings,
    Measured,
    Step,
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
from benchmarks.peer_sides import Mean, Pairs, by_hand, timm_task, torchdistill_side
from benchmarks.step import stepping, stream, training_of, zoo_of
from meco_timm.data.loading import Batch
from meco_timm.planning.cost import Part, teacher_macs, training_memory
from meco_timm.planning.time_estimate import GPUS, Card, gpu_seconds
from meco_timm.recipe.recipe import Recipe
from meco_timm.zoo.zoo import Zoo

COMPILED = True  # the peers
WAYS = ((False, False), (True, False), (True, True))  # channels_last, compiled
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
    for channels_last, compiled in WAYS:
        word = f"{'channels_last' * channels_last}{', compiled' * compiled}"
        if not found.has_time(f"the forms with {word}", 8 if compiled and CUDA else 4):
            break
        base = measured(bare(channels_last, compiled))
        found.add(_row("by hand", channels_last, compiled, base, None))
        for form, changes in FORMS.items():
            m = measured(ours(changes | {"loop": {"channels_last": channels_last}}, compiled), warm=24 if CUDA else 1)
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
                found.add(_row(name, True, False, m, None))
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


def peers(found: Findings) -> str:
    """The same networks and images through timm's tasks, torchdistill and this project: with channels_last, compiled
    but for torchdistill."""
    first, three, drawn = SIZE.teachers[:1], SIZE.teachers, {"zoo": {"sampling": "random"}}
    logits: dict[str, Any] = {"alignment": {"blocks": 0}, "discriminators": {"adversary": "none"}}
    sides: dict[str, Callable[[], Step]] = {
        "timm logits, 1": partial(_timm, LogitDistillationTask, first),
        "timm logits, 3": partial(_timm, LogitDistillationTask, three),
        "timm features, 1": partial(_timm, FeatureDistillationTask, first),
        "timm features, 3": partial(_timm, FeatureDistillationTask, three),
        "torchdistill, 1": partial(_torchdistill, first),
        "torchdistill, 3": partial(_torchdistill, three),
        "ours logits, 1": partial(ours, logits, COMPILED, 1),
        "ours MEAL, 1": partial(ours, {}, COMPILED, 1),
        "ours MEAL, 3 random": partial(ours, drawn, COMPILED),
        "ours MEAL, 3 mean": partial(ours, {"zoo": {"sampling": "average"}}, COMPILED),
    }
    each, card = [_macs(name) for name in three], _card()
    forward = {"1": each[0], "3": sum(each), "3 mean": sum(each), "3 random": sum(each) / 3, "3 stored": 0.0}
    if not find_spec("torchdistill"):
        found.notes.append("torchdistill is left out: pip install 'torchdistill>=1.1.5'")
    with tempfile.TemporaryDirectory() as folder:
        sides["ours MEAL, 3 stored"] = partial(_stored, drawn, Path(folder))
        for name, make in sides.items():
            if (find_spec("torchdistill") or "torchdistill" not in name) and found.has_time(name):
                m, macs = measured(make(), warm=24 if CUDA else 1), forward[name.split(", ")[1]]
                flop = 2 * (3 * _macs(SIZE.student) + macs)
                share = m.images_per_s * flop / card.bf16 if card else None
                found.add({"side": name, "images/s": m.images_per_s, "peak GiB": m.memory_gib, "of the peak": share})
                found.figures[name] = m.images_per_s
    goals = (("ours MEAL, 3 random", "timm logits, 3", 1.5), ("ours logits, 1", "timm logits, 1", 1.0))
    slow = [f"{one} over {other}: {found.figures[one] / found.figures[other]:.2f}, not {least}"
            for one, other, least in goals if CUDA and {one, other} <= found.figures.keys()
            and found.figures[one] < least * found.figures[other]]  # fmt: skip
    found.notes += slow
    return "slower than expected" if slow else "as expected"


def _timm(kind: Any, names: Sequence[str]) -> Step:
    """One of timm's tasks, as its users run it."""
    pairs, student, teacher = _peer(names)
    device = next(student.parameters()).device
    task: Any = timm_task(kind, student, teacher, str(device))
    if COMPILED:
        task.compile(backend=BACKEND)

    def loss() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=CUDA):
            return task(*next(pairs))["loss"]

    return by_hand(task.trainable_module, loss, 1e-3).step


def _torchdistill(names: Sequence[str]) -> Step:
    pairs, student, teacher = _peer(names)
    device = next(student.parameters()).device.type
    step = torchdistill_side(student, teacher, pairs, 1e-3, device).step

    def with_autocast() -> object:
        with torch.autocast(device, torch.bfloat16, enabled=CUDA):
            return step()

    return with_autocast


def _peer(names: Sequence[str]) -> tuple[Pairs, torch.nn.Module, torch.nn.Module]:
    """Images and labels on the device, the student, and the teacher or the mean of several."""
    device, last = accelerator().device, torch.channels_last
    student = network(SIZE.student).to(device, memory_format=last).train()
    teachers = [network(name).to(device, memory_format=last).eval().requires_grad_(False) for name in names]

    def pair(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = (tensor.to(device, non_blocking=True) for tensor in batch[:2])
        return (image.float() / 255 - 0.5).contiguous(memory_format=last), label

    return map(pair, itertools.cycle(batches())), student, teachers[0] if len(names) == 1 else Mean(teachers)


def _stored(changes: dict[str, Any], folder: Path) -> Step:
    """Ours with a full store."""
    settings = recipe(changes)
    zoo = zoo_of((network(teacher.model) for teacher in settings.teachers), settings, accelerator())
    training = training_of(network(settings.student.model), zoo, settings)
    from_store(zoo, list(zoo.names), settings, folder, torch.arange(SIZE.batch))
    if COMPILED:
        training.compile(BACKEND)
    return stepping(training, batches())


@cache
def _macs(name: str) -> int:
    return stream(network(name), recipe({})).multiply_adds()


def _card() -> Card | None:
    """This card in the plan's table."""
    return next((card for name, card in GPUS.items() if CUDA and name in torch.cuda.get_device_name()), None)


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
    limits = {"memory / plan": 0.15, "time / plan": 0.25}
    apart = [f"{row['teachers']}: {what} {row[what]:.2f}" for row in found.rows for what, most in limits.items()
             if CUDA and row[what] and abs(row[what] - 1) > most]  # fmt: skip
    found.notes += [f"further from the plan than 15 % of memory or 25 % of time: {'; '.join(apart)}"] if apart else []
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
    card = _card()
    if card is None:
        return memory, None
    batch = settings.loop.batch_size
    part = Part(3 * batch * student.multiply_adds(), batch * teacher_macs(settings, zoo.streams), batch)
    return memory, 1000 * gpu_seconds(part, card, float32=False)
