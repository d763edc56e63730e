"""The teachers of a run on its validation split: temperatures, weights, and warnings of teachers that harm or repeat.

They are kept in the run folder, so that a run that continues has the same.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from meco_timm.common import UserError, get_logger, write_json
from meco_timm.data import DataSource
from meco_timm.evaluation import Contributions, Difference, contributions, temperature_of
from meco_timm.networks import Combination, Stream
from meco_timm.recipe import Data
from meco_timm.recipe import Zoo as ZooSettings
from meco_timm.selection.kept_logits import measure_teachers
from meco_timm.selection.ranking import duplicates
from meco_timm.zoo import Zoo, written_combination

logger = get_logger(__name__)

FILE = "combination.json"
IMAGES = 2000  # of the validation split, at most
MIN_IMAGES = 100  # for a warning
MISCALIBRATED = 1.5  # a fitted temperature beyond which a teacher is far too sure, or not sure enough


def combine_teachers(zoo: Zoo, data: DataSource, settings: Data, folder: Path, accelerator: Accelerator) -> Combination:
    """How the run combines its teachers, as its zoo then does; what was measured for it is kept in `folder`.

    Call it before the zoo has a store, since a full one drops the teachers. All processes must call it. settings: the
    recipe's section `data`.
    """
    measured = None
    if accelerator.is_main_process:
        measured = _kept(folder, zoo) or _measured(zoo, data, settings)
        if measured:
            write_json(folder / FILE, measured)
            _show(measured, zoo.settings)
    if accelerator.num_processes > 1:  # another processor may round otherwise
        measured = broadcast_object_list([measured])[0]
    combination = _combination(zoo.names, zoo.settings, measured)
    zoo.combine(combination)
    return combination


def check_combination(zoo: ZooSettings, label_weight: float, data: DataSource, teachers: Mapping[str, Stream]) -> None:
    """Raises: UserError: temperatures or weights cannot be fitted, or no teacher that is used gives logits."""
    key = _fitted_key(zoo)
    if key and not len(data.validation):
        raise UserError(f"{key}: there is no labelled validation image to fit it on. Write validation: 0.1.")
    blocks_only = [name for name, stream in teachers.items() if not stream.has_logits]
    if zoo.weights == "validation" and blocks_only:
        raise UserError(
            f"zoo.weights: validation weighs teachers by their logits, but {', '.join(blocks_only)} gives blocks only. "
            "Write a list with a weight for each teacher."
        )
    weights = zoo.weights if isinstance(zoo.weights, list) else [1.0] * len(teachers)
    used = [stream.has_logits for stream, weight in zip(teachers.values(), weights, strict=True) if weight]
    if not any(used) and not label_weight:
        raise UserError(
            "zoo.weights: each teacher that gives logits has weight 0, so nothing would train the student's head."
        )


def _fitted_key(zoo: ZooSettings) -> str:
    """The key that needs the validation split; "" if none does."""
    return "zoo.calibrate" if zoo.calibrate else "zoo.weights" if zoo.weights == "validation" else ""


def combination_lines(zoo: ZooSettings, data: DataSource) -> list[str]:
    """Lines of the plan."""
    fitted = f"fitted on {min(len(data.validation), IMAGES)} validation images once all teachers are trained"
    lines = [f"zoo.calibrate: the logits of each teacher are divided by a temperature, {fitted}"]
    listed = ", ".join(f"{w:g}" for w in zoo.weights) if isinstance(zoo.weights, list) else ""
    return lines[: zoo.calibrate] + [f"zoo.weights: {listed or 'by greedy selection, ' + fitted}"] * (
        zoo.weights != "uniform"
    )


def read_measured(folder: Path) -> dict[str, Any] | None:
    """What a run measured of its teachers (`_summary`); None of runs that did not, or whose file cannot be read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "weights_of" in found else None


def _kept(folder: Path, zoo: Zoo) -> dict[str, Any] | None:
    """What was measured of these very teachers."""
    found = read_measured(folder)
    return found if found and found["weights_of"] == zoo.fingerprints else None


def _measured(zoo: Zoo, data: DataSource, settings: Data) -> dict[str, Any] | None:
    """As `_summary`; None without teachers that give logits, or validation images."""
    members = {name: stream for name, stream in zoo.streams.items() if stream.has_logits}
    if not (members and len(data.validation)):
        return None
    sample = data.validation.subsample(IMAGES)
    try:
        found = measure_teachers(members, data, settings, sample, zoo.settings.folder, zoo.context.device, zoo)
    except UserError as error:
        if _fitted_key(zoo.settings):
            raise
        logger.warning("%s The teachers are not compared.", error)
        return None
    label = torch.from_numpy(sample.labels[sample.rows]).long()
    return _summary(zoo, {name: one.logits for name, one in found.items()}, label)


def _summary(zoo: Zoo, logits: dict[str, np.ndarray], label: Tensor) -> dict[str, Any]:
    """temperatures: fitted, by name of each teacher with logits. choices: how often each of these is in the best
    ensemble of size 1 and more. best: the place among them of the lowest NLL. harmful: what a teacher makes worse.
    miscalibrated: those of them that a temperature mends. notes: teachers that are the same."""
    values = list(logits.values())
    temperatures = [temperature_of(z, label) for z in values]
    weights = torch.tensor([written_combination(zoo.names, zoo.settings).weights[name] for name in logits])
    used = temperatures if zoo.settings.calibrate else None
    found = contributions(values, label, weights if weights.sum() else None, used)
    nll = [choice.quality.nll for choice in found.choices]
    return {
        "weights_of": zoo.fingerprints,
        "images": len(label),
        "temperatures": dict(zip(logits, temperatures, strict=True)),
        "choices": [choice.counts for choice in found.choices],
        "best": nll.index(min(nll)),
        "harmful": _harmful(list(logits), found) if len(label) >= MIN_IMAGES else {},
        "miscalibrated": [
            n for n, d, t in zip(logits, found.added, temperatures, strict=False) if is_miscalibrated(d, t)
        ],
        "notes": _duplicates(list(logits), zoo, found) if len(label) >= MIN_IMAGES else [],
    }


def _harmful(names: list[str], found: Contributions) -> dict[str, str]:
    """What a teacher makes worse in the true ensemble, in words, by its name."""
    added = zip(names, found.added, strict=False)  # of one teacher there is nothing to add
    return {name: f"makes the true ensemble worse: {change_text(change)}" for name, change in added if change.worse}


def change_text(change: Difference) -> str:
    """`top-1 by −1.20 (−2.10 to −0.40) points, NLL by +0.1000 (…)`: those of the two measures that are worse."""
    words = {"top-1": f"top-1 by {change.top1.text(2)} points", "NLL": f"NLL by {change.nll.text(4)}"}
    return ", ".join(text for measure, text in words.items() if measure in change.worse)


def is_miscalibrated(added: Difference, temperature: float) -> bool:
    """Whether a teacher harms by wrong probabilities and not by wrong answers, which a temperature mends."""
    return added.worse == "NLL" and not 1 / MISCALIBRATED < temperature < MISCALIBRATED


def _duplicates(names: list[str], zoo: Zoo, found: Contributions) -> list[str]:
    pairs = duplicates([zoo.fingerprints[name] for name in names], found)
    return [
        f"teachers {names[i]} and {names[j]} have {why}: one of them may be left out" for (i, j), why in pairs.items()
    ]


def _show(measured: dict[str, Any], zoo: ZooSettings) -> None:
    if zoo.calibrate:
        values = ", ".join(f"{name} {value:.3f}" for name, value in measured["temperatures"].items())
        logger.info("temperatures of the teachers, fitted on %d validation images: %s", measured["images"], values)
    if zoo.weights == "validation":
        shares = zip(measured["temperatures"], measured["choices"][measured["best"]], strict=True)
        logger.info("weights of the teachers: %s", ", ".join(f"{name} {count:g}" for name, count in shares))
    for note in measured["notes"]:
        logger.warning("%s (more: meco-timm zoo)", note)


def _combination(names: Iterable[str], zoo: ZooSettings, measured: dict[str, Any] | None) -> Combination:
    temperatures, weights = written_combination(names, zoo)
    if measured and zoo.calibrate:
        temperatures |= measured["temperatures"]
    if measured and zoo.weights == "validation":
        weights |= dict(zip(measured["temperatures"], measured["choices"][measured["best"]], strict=True))
    return Combination(temperatures, weights)
