"""Say before the student is trained whether its teachers are worth listening to, and what is known to help.

The teachers, their ensemble and the student alone are compared on the validation split, with bootstrap intervals.
"""

import logging
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from meco_timm.common import UserError, get_logger, join_names, write_json
from meco_timm.data import DataSource
from meco_timm.evaluation import Change, Evaluation, bootstrap_changes, vote
from meco_timm.networks import Combination, Stream
from meco_timm.recipe import Data, Losses, Teacher
from meco_timm.recipe import Zoo as ZooSettings
from meco_timm.selection.combining import FILE, IMAGES, read_measured
from meco_timm.selection.kept_logits import measure_teachers
from meco_timm.selection.ranking import as_flow, teacher_entry
from meco_timm.zoo import Zoo

logger = get_logger(__name__)

MIN_IMAGES = 100  # fewer say nothing
GAIN = 2.0  # points of top-1 in the last quarter of a training that is not at its end yet, and of a fall after its peak
BRIEF, ENOUGH = 500, 1500  # steps: fine-tuned with 205 images, 97, 387, 773 and 1,545 had 41, 58, 63 and 65 %
SURE = 90.0  # per cent of top-1, from which on a brief training may have been enough
HINT = "To try, added to the command (trained teachers are reused):\n  %s"
Curve = Sequence[tuple[int, float]]  # (step, top-1 in per cent) of each validation


class Advice(NamedTuple):
    """state: what was measured, in one sentence. sentences: what is wrong. overrides: keys of the recipe, to copy into
    a command, that are known to help; "" where none is. better: whether the ensemble is better than the student alone;
    None where the images cannot tell."""

    state: str
    sentences: list[str]
    overrides: str
    better: bool | None


class Trainings(NamedTuple):
    """How the compared networks are trained. curves: of the teachers that were trained on the labels. steps: of the
    student alone. zoo, losses: the recipe's sections."""

    teachers: Mapping[str, Teacher]
    curves: Mapping[str, Curve]
    steps: int
    zoo: ZooSettings
    losses: Losses


def compare_with_student_alone(
    zoo: Zoo,
    alone: Stream,
    data: DataSource,
    settings: Data,
    folder: Path,
    trainings: Trainings,
    accelerator: Accelerator,
) -> None:
    """Say whether the teachers are worth listening to, and record it beside how they are combined.

    Call it after `combine_teachers` and before the zoo has a store. All processes must call it. settings: the recipe's
    section `data`. folder: of the run.

    Raises:
        UserError: `zoo.require` is `better`, and the ensemble is not.
    """
    advice = None
    if accelerator.is_main_process and (measured := read_measured(folder)):
        members = {name: stream for name, stream in zoo.streams.items() if stream.has_logits}
        sample, place = data.validation.subsample(IMAGES), (zoo.settings.folder, accelerator.device)
        found = measure_teachers(members, data, settings, sample, *place, zoo)
        own = measure_teachers({"student alone": alone}, data, settings, sample, *place)["student alone"]
        logits = {name: one.logits for name, one in found.items()}
        label = torch.from_numpy(sample.labels[sample.rows]).long()
        harm, by = (measured["harmful"], measured["miscalibrated"]), zoo.combination
        advice = advise(logits, own.logits, label, by, *harm, trainings)
        write_json(folder / FILE, measured | {"advice": advice._asdict()})
        enough = len(sample) >= MIN_IMAGES or zoo.settings.require  # a few images are no ground for a verdict
        logger.log(logging.INFO if enough else logging.DEBUG, "%s", advice.state)
        for sentence in advice.sentences:
            logger.warning("%s", sentence)
        if advice.overrides:
            logger.warning(HINT, advice.overrides)
    if accelerator.num_processes > 1:
        advice = broadcast_object_list([advice])[0]
    if advice and zoo.settings.require == "better" and advice.better is False:
        raise UserError(
            f"zoo.require: {advice.sentences[-1]}. Change the teachers as said above, or leave zoo.require out."
        )


def advise(
    logits: Mapping[str, np.ndarray],
    alone: np.ndarray,
    label: Tensor,
    combination: Combination,
    harmful: Mapping[str, str],
    miscalibrated: Collection[str],
    trainings: Trainings,
) -> Advice:
    """Compare the teachers and their ensemble with the student alone.

    logits: N×K of each teacher that gives them. alone: N×K of the student alone. label: N. harmful: what a teacher
    makes worse in the ensemble, in words; of the miscalibrated, which are among them, the NLL only.
    """
    names, found = list(logits), _compare(logits, alone, label, combination)
    images, whole = len(label), found[-1]
    own = 100 * float(np.mean(alone.argmax(1) == label.numpy()))
    state = (
        f"on {images:,} validation images the student alone has a top-1 of {own:.2f} %, the true ensemble "
        f"{own + whole.mean:.2f} %: {whole.text(2)} points"
    )
    if images < MIN_IMAGES:
        return Advice(f"{state}; so few images say little", [], "", None)
    weak = {name: change for name, change in zip(names, found, strict=False) if change.high < 0}
    lengths = _wrong_lengths(weak, trainings, images)
    budgets = {name: budget for name, (_, budget) in lengths.items()}
    sentences = [
        f"teacher {name} is worse than the student alone: {change.text(2)} points of top-1"
        + (f"; {lengths[name][0]}" if name in lengths else "")
        for name, change in weak.items()
    ]
    sentences += [f"teacher {name}: {note}" for name, (note, _) in lengths.items() if name not in weak]
    sentences += [f"teacher {name} {what}" for name, what in harmful.items()]
    drop = (set(weak) | (set(harmful) - set(miscalibrated))) - set(budgets)
    settings = {"zoo.calibrate": "true"} if set(miscalibrated) - drop and not trainings.zoo.calibrate else {}
    if whole.mean <= 0:
        sentences.append(
            f"the true ensemble is not better than the student alone ({whole.text(2)} points of top-1): "
            f"{_reason(names, found, weak, harmful, budgets)}"
        )
        if not (drop or budgets or settings):
            settings = fallback(trainings.zoo, trainings.losses, len(names))
    better = False if whole.mean <= 0 else True if whole.low > 0 else None
    if better is None:
        state += f"; {images:,} images cannot tell these apart"
    return Advice(state, sentences, overrides(trainings.teachers, drop, budgets, trainings.zoo, settings), better)


def _wrong_lengths(weak: Collection[str], trainings: Trainings, images: int) -> dict[str, tuple[str, int]]:
    """Of each teacher whose training was too short or too long: what its validations say, and the steps to try."""
    lengths = {name: judge_curve(curve, images) for name, curve in trainings.curves.items()}
    for name, curve in trainings.curves.items():
        taken, steps = (curve[-1][0] if curve else 0), trainings.steps
        note, budget = lengths[name]
        if name in weak and 2 * taken <= steps and (not budget or taken < budget < steps):
            took = f"its training took {taken} step(s), that of the student alone {steps}"
            lengths[name] = "; ".join(filter(None, (note, took))), steps
        elif not budget and 0 < taken < BRIEF and max(top1 for _, top1 in curve) < SURE:
            lengths[name] = f"its training took {taken} step(s) only", ENOUGH
    return {name: found for name, found in lengths.items() if found[1]}


def _compare(logits: Mapping[str, np.ndarray], alone: np.ndarray, label: Tensor, by: Combination) -> list[Change]:
    """Top-1 of each teacher, and last of their ensemble, minus that of the student alone, in points."""
    weights = torch.tensor([by.weights[name] for name in logits])
    members = torch.cat([torch.eye(len(logits)), weights[None] if weights.sum() else torch.ones(1, len(logits))])
    temperatures = torch.tensor([by.temperatures[name] for name in logits])
    right = vote(list(logits.values()), label, members, temperatures).right(label).double()
    own = vote([alone], label, torch.ones(1, 1)).right(label).double()
    return bootstrap_changes(100 * (right - own))


def _reason(
    names: list[str], found: list[Change], weak: Mapping[str, Change], harmful: Mapping[str, str], budgets: object
) -> str:
    """Why the ensemble is no better than the student alone."""
    if harmful:
        return f"{join_names(list(harmful), 3)} {'makes' if len(harmful) == 1 else 'make'} it worse"
    if weak:
        verbs = ("was", "is") if len(weak) == 1 else ("were", "are")
        what = f"{verbs[0]} trained too briefly" if budgets else f"{verbs[1]} worse than the student alone"
        return f"{join_names(list(weak), 3)} {what}"
    best = max(range(len(names)), key=lambda i: found[i].mean)
    return f"even the best teacher, {names[best]}, differs by {found[best].text(2)} points only"


def judge_curve(curve: Curve, images: int) -> tuple[str, int]:
    """What the validations of a training say of its length, and the steps to try: ("", 0) where it was right.

    images: of the validation split, whose standard error a difference must exceed.
    """
    if len(curve) < 4:
        return "", 0
    last, (best_step, best) = curve[-1][0], max(curve, key=lambda point: (point[1], point[0]))
    noise = 100 * (max(best / 100 * (1 - best / 100), 1e-4) / images) ** 0.5
    before = max(top1 for step, top1 in curve if step <= 0.75 * last)
    if best - before > max(GAIN, noise):
        return f"its training still improved at its end, by {best - before:.1f} points in its last quarter", 2 * last
    if best_step <= last / 4 and best - curve[-1][1] > max(GAIN, noise):
        fall = best - curve[-1][1]
        note = f"its training was best after {best_step} of {last} steps, and {fall:.1f} points worse at the end"
        return note, 2 * best_step
    return "", 0


def fallback(zoo: ZooSettings, losses: Losses, teachers: int) -> dict[str, str]:
    """A key that helps where no teacher is to blame."""
    if not losses.labels:
        return {"losses.labels": "0.5"}
    return {"zoo.sampling": "average"} if zoo.sampling == "random" and teachers > 1 else {}


def overrides(
    teachers: Mapping[str, Teacher],
    drop: set[str],
    budgets: Mapping[str, int],
    zoo: ZooSettings,
    settings: Mapping[str, str],
) -> str:
    """Keys of the recipe for a command line: without some teachers, with more steps for others, with these settings."""
    words = [f"{key}={value}" for key, value in settings.items()]
    if drop and len(drop) < len(teachers):
        kept = {name: teacher for name, teacher in teachers.items() if name not in drop}
        entries = [teacher_entry(teacher, zoo.loop, budgets.get(name)) for name, teacher in kept.items()]
        words = [f"teachers={as_flow(entries)}", *words]
        if isinstance(zoo.weights, list):
            weights = [w for name, w in zip(teachers, zoo.weights, strict=True) if name in kept]
            words.append(f"zoo.weights={weights}")
    else:
        numbers = {name: i for i, name in enumerate(teachers)}
        words = [f"teachers.{numbers[name]}.loop.steps={steps}" for name, steps in budgets.items()] + words
    return " ".join(map(shlex.quote, words))


def explain_student(
    evaluated: Evaluation, measured: Mapping[str, Any] | None, curve: Curve, zoo: ZooSettings, losses: Losses
) -> list[str]:
    """Why the student of a run is worse than itself alone, and keys of the recipe that help; [] if it is not.

    measured: as of `read_measured`. curve: the student's.
    """
    right = {name: evaluated.logits[name].argmax(1) == evaluated.label for name in ("student", "student alone")}
    (change,) = bootstrap_changes(100 * (right["student"].double() - right["student alone"].double())[None])
    if change.mean >= 0:
        return []
    top1 = {row.name: row.top1 for row in evaluated.rows}
    ensemble, words = top1.get("true ensemble"), ""
    note, budget = judge_curve(curve, len(evaluated.label))
    if budget and top1["student"] < (ensemble or 100) - GAIN:
        why, words = note, f"loop.steps={budget}"
    elif ensemble is not None and ensemble <= top1["student alone"]:
        why = f"its teachers are no better than that network, the true ensemble has {ensemble:.2f} %"
        words = (measured or {}).get("advice", {}).get("overrides", "")
    elif not losses.labels:
        why = "it learned from its teachers' outputs only, not from the labels"
    else:
        why = "it has not taken up what its teachers know"
    if not words:
        settings = fallback(zoo, losses, len(top1) - 3) or {"loop.steps": str(2 * curve[-1][0])}
        words = " ".join(f"{key}={value}" for key, value in settings.items())
    return [f"The student is worse than the same network alone ({change.text(2)} points of top-1): {why}.", words]
