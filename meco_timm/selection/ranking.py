"""Rank the teachers before a day of training: what each adds to the ensemble, from one pass over labelled images."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from meco_timm.common import UserError, join_names
from meco_timm.data import DataSource, Images
from meco_timm.evaluation import (
    Contributions,
    Difference,
    bootstrap_changes,
    check_classes,
    contributions,
    kernel_cka,
    temperature_of,
    vote,
)
from meco_timm.networks import Stream, teacher_stream
from meco_timm.recipe import Alignment, Loop, Teacher, dump_yaml
from meco_timm.recipe import Zoo as ZooSettings
from meco_timm.selection.class_checks import class_problems
from meco_timm.selection.kept_logits import Measured

TOLERATED = 0.5  # points of top-1
CHECKED = 5000  # images on which the order of a teacher's classes is checked, at most


class Ranking(NamedTuple):
    """Of M teachers, in the order of the recipe and then of the candidates.

    images: number of labelled images. multiply_adds of one image and images_per_s: M each. found: what the logits say.
    kept: how often each teacher is in the ensemble to keep. change: that ensemble minus all teachers; None if it is all
    of them. similarity: M×M, CKA of blocks of equal depth, mean over them; None where no blocks are compared. notes:
    teachers that are left out, and what is doubtful. duplicates: why the teachers are duplicates, by their places.
    entries: of the recipe's list of teachers, as YAML.
    """

    names: list[str]
    images: int
    multiply_adds: list[int]
    images_per_s: list[float]
    found: Contributions
    kept: list[float]
    change: Difference | None
    similarity: Tensor | None
    duplicates: dict[tuple[int, int], str]
    notes: list[str]
    entries: list[Any]
    calibrated: bool

    @property
    def suggestion(self) -> str:
        """The ensemble to keep as keys of a recipe, in one line each: teachers, and zoo.weights if they differ."""
        used = [i for i, count in enumerate(self.kept) if count]
        line = f"teachers: {as_flow([self.entries[i] for i in used])}"
        weights = {"weights": [float(f"{self.kept[i]:g}") for i in used]}
        return line if len(set(self.kept) - {0}) == 1 else f"{line}\nzoo: {as_flow(weights)}"

    def cost(self, counts: Sequence[float]) -> int:
        """Multiply-adds of one image by all teachers that are counted."""
        return sum(adds for adds, count in zip(self.multiply_adds, counts, strict=True) if count)


def validation_sample(data: DataSource, images: int | None) -> Images:
    """At most so many validation images, evenly spread; by default all.

    Raises:
        UserError: there are none.
    """
    if not len(data.validation):
        raise UserError(
            "data.validation: there is no labelled validation image to rank the teachers on. Write for example "
            "data.validation=0.1; images that teachers have learned from would flatter them."
        )
    return data.validation if images is None else data.validation.subsample(images)


def load_rankable(
    teachers: Mapping[str, Teacher | None], alignment: Alignment, classes: list[str], required: int
) -> tuple[dict[str, Stream], list[str]]:
    """The teachers that can be ranked, and why others cannot. None: not trained yet. required: the number of teachers,
    from the first, whose errors are raised.

    Raises:
        UserError: a required teacher cannot be loaded; there are fewer than two, or a class that no teacher knows.
    """
    streams, notes = {}, []
    for i, (name, teacher) in enumerate(teachers.items()):
        if teacher is None:
            notes.append(f"{name}: left out, since it is not trained yet; a run of the recipe trains it")
            continue
        try:
            stream = teacher_stream(teacher, alignment, classes, role=f"teachers.{i}")
        except UserError as error:
            if i < required:
                raise
            notes.append(f"{name}: left out: {error}")
            continue
        if stream.has_logits:
            streams[name] = stream
        else:
            notes.append(f"{name}: left out, since it gives blocks only")
    _require_rankable(streams, classes, notes)
    return streams, notes


def _require_rankable(streams: dict[str, Stream], classes: list[str], notes: list[str]) -> None:
    if len(streams) < 2:
        found = f"only {next(iter(streams))} can be" if streams else "no teacher can be"
        hint = "Add teachers to the list, or name others with --candidates."
        raise UserError("\n".join([f"teachers: {found} ranked, so there is nothing to compare. {hint}", *notes]))
    unknown = set.intersection(*(set(stream.unknown) for stream in streams.values()))
    if unknown:
        names = join_names([classes[i] for i in sorted(unknown)], 5)
        raise UserError(
            f"teachers: none of them knows {len(unknown)} class(es) of the data set: {names}. An ensemble of them "
            "gives these no probability. Add a teacher that knows them, for example with `train:`."
        )


def ensemble_to_keep(found: Contributions) -> list[float]:
    """How often each teacher is in the smallest ensemble that is not clearly worse than the best, and whose top-1 is at
    most `TOLERATED` points below that of all teachers: few images cannot tell even large differences. If there is none,
    all teachers but those that make the top-1 of all worse."""
    for choice in found.choices:
        if not choice.behind.worse and choice.quality.top1 >= found.ensemble.top1 - TOLERATED:
            return choice.counts
    return [0.0 if "top-1" in added.worse else 1.0 for added in found.added]


def compare_ensembles(
    logits: Sequence[np.ndarray], label: Tensor, counts: Sequence[float], temperatures: Sequence[float] | None
) -> Difference:
    """The ensemble with each teacher `counts` times, minus that of all."""
    members = torch.tensor([list(counts), [1.0] * len(logits)])
    votes = vote(logits, label, members, None if temperatures is None else torch.tensor(temperatures))
    values = torch.stack([100 * votes.right(label).double(), votes.losses])
    top1, nll = bootstrap_changes(values[:, 0] - values[:, 1])
    return Difference(top1, nll)


def rank(
    streams: Mapping[str, Stream],
    measured: Mapping[str, Measured],
    label: Tensor,
    classes: list[str],
    teachers: Mapping[str, Teacher],
    zoo: ZooSettings,
    notes: list[str],
) -> Ranking:
    """Rank these teachers by what they give on N images.

    label: N. teachers: the recipe's, and candidates, among them these. notes: of those that are left out.
    """
    logits = [m.logits for m in measured.values()]
    thin = slice(None, None, -(-len(label) // CHECKED))
    checks = {
        name: check_classes(
            torch.from_numpy(m.logits[thin].astype(np.float32)), label[thin], classes, streams[name].class_map
        )
        for name, m in measured.items()
    }
    temperatures = [temperature_of(z, label) for z in logits] if zoo.calibrate else None
    found = contributions(logits, label, temperatures=temperatures)
    kept = ensemble_to_keep(found)
    all_kept = set(kept) == {1.0}
    return Ranking(
        names=list(streams),
        images=len(label),
        multiply_adds=[stream.multiply_adds() for stream in streams.values()],
        images_per_s=[m.images_per_s for m in measured.values()],
        found=found,
        kept=kept,
        change=None if all_kept else compare_ensembles(logits, label, kept, temperatures),
        similarity=_similarity([m.kernels for m in measured.values()]),
        duplicates=duplicates([m.digest for m in measured.values()], found),
        notes=notes + [f"warning: {problem}" for problem in class_problems(teachers, checks).values()],
        entries=[teacher_entry(teachers[name], zoo.loop) for name in streams],
        calibrated=zoo.calibrate,
    )


def duplicates(digests: Sequence[str], found: Contributions) -> dict[tuple[int, int], str]:
    """Why teachers are duplicates: equal weights, or the same prediction on more than 99 % of the images."""
    agree = {(i, j): f"the same prediction on {100 * share:.2f} % of the images" for i, j, share in found.duplicates()}
    pairs = [(i, j) for i in range(len(digests)) for j in range(i + 1, len(digests)) if digests[i] == digests[j]]
    return dict(sorted((agree | dict.fromkeys(pairs, "the same weights")).items()))


def _similarity(kernels: list[np.ndarray]) -> Tensor | None:
    if min(len(k) for k in kernels) == 0 or kernels[0].shape[1] < 4:
        return None
    tensors = [torch.from_numpy(k).double() for k in kernels]
    return torch.tensor([[_mean_cka(a, b) for b in tensors] for a in tensors])


def _mean_cka(a: Tensor, b: Tensor) -> float:
    """Over blocks of equal depth. a, b: S×n×n and T×n×n."""
    return float(np.mean([kernel_cka(x, y) for x, y in zip(a, b, strict=False)]))


def teacher_entry(teacher: Teacher, shared: Loop, steps: int | None = None) -> Any:
    """An item of the recipe's list `teachers`, without defaults. shared: `zoo.loop`. steps: another budget."""
    keys: dict[str, Any] = teacher.model_dump(mode="json", exclude={"loop"}, exclude_defaults=True)
    loop = teacher.loop.changed_by(Loop(steps=steps)) if steps else teacher.loop
    values = loop.model_dump(mode="json", exclude={"min_steps"} if loop.steps else None)
    changed = {key: value for key, value in values.items() if value != getattr(shared, key) and value is not None}
    if keys.pop("train", False):
        keys = {"train": keys.pop("model"), **keys, **({"loop": changed} if changed else {})}
    return keys["model"] if keys.keys() == {"model"} else keys


def as_flow(value: Any) -> str:
    """One line of YAML: `[a, b]`."""
    return dump_yaml(value, flow=True).strip()
