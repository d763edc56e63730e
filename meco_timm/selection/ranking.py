"""Rank the teachers before a day of training: what each adds to the ensemble, from one pass over labelled images."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from torch import Tensor

from meco_timm.common import UserError, join_names
from meco_timm.data import DataSource, Images, load_data
from meco_timm.evaluation import Contributions, check_classes, contributions, kernel_cka, temperature_of
from meco_timm.networks import Stream, teacher_stream
from meco_timm.recipe import Recipe, Teacher
from meco_timm.selection.class_checks import class_problems
from meco_timm.selection.kept_logits import Measured, measure_teachers
from meco_timm.training import make_accelerator
from meco_timm.zoo.teachers import find_zoo_folder, in_folder, label_training, named_teachers, training_key

CHECKED = 5000  # images on which the order of a teacher's classes is checked, at most


class Ranking(NamedTuple):
    """Of M teachers, in the order of the recipe and then of the candidates.

    images: number of labelled images. multiply_adds of one image and images_per_s: M each. found: what the logits say.
    similarity: M×M, CKA of blocks of equal depth, mean over them; None where no blocks are compared. notes: teachers
    that are left out, and what is doubtful. duplicates: why the teachers are duplicates, by their places. entries: of
    the recipe's list of teachers, as YAML.
    """

    names: list[str]
    images: int
    multiply_adds: list[int]
    images_per_s: list[float]
    found: Contributions
    similarity: Tensor | None
    duplicates: dict[tuple[int, int], str]
    notes: list[str]
    entries: list[Any]
    calibrated: bool

    @property
    def harmful(self) -> dict[str, str]:
        """Teacher → what it makes worse in the ensemble: "top-1", "NLL" or both."""
        return {name: added.worse for name, added in zip(self.names, self.found.added, strict=True) if added.worse}

    @property
    def suggestion(self) -> str:
        """The suggested ensemble as keys of a recipe: teachers, and zoo.weights if they are not equal."""
        counts = self.found.suggested.counts
        used = [i for i, count in enumerate(counts) if count]
        line = {"teachers": [self.entries[i] for i in used]}
        weights = {"zoo": {"weights": [float(f"{counts[i]:g}") for i in used]}}
        return "\n".join(_flow(part) for part in (line, weights) if part is line or len(set(counts) - {0}) > 1)

    def cost(self, counts: Sequence[float]) -> int:
        """Multiply-adds of one image by all teachers that are counted."""
        return sum(adds for adds, count in zip(self.multiply_adds, counts, strict=True) if count)


def rank_teachers(recipe: Recipe, images: int | None = None, candidates: Sequence[str] = ()) -> Ranking:
    """Rank the recipe's teachers, and candidates beside them, on the validation split; trains nothing.

    Every teacher runs once over the images, and its logits are kept in the folder `.logits` of `zoo.folder`. Teachers
    that are not trained yet or give no logits are left out. One process, one device.

    images: at most so many, evenly spread; by default all of the validation split. candidates: timm names with a tag,
    `hf-hub:` or `local-dir:`; their weights are downloaded.

    Raises:
        UserError: there is nothing to rank, no labelled validation image, a class that no teacher knows, or a network
            or the data cannot be loaded.
    """
    accelerator = make_accelerator(recipe)
    data = load_data(recipe.data, recipe.seed)
    sample = _sample(data, images)
    extended = [*recipe.teachers, *(Teacher(model=name) for name in candidates)]
    recipe = recipe.model_copy(update={"teachers": extended})
    streams, notes = _streams(recipe, data, accelerator, len(extended) - len(candidates))
    _require_rankable(streams, data, notes)
    measured = measure_teachers(streams, recipe, data, sample, accelerator.device)
    return _ranking(recipe, data, sample, streams, measured, notes)


def _sample(data: DataSource, images: int | None) -> Images:
    if not len(data.validation):
        raise UserError(
            "data.validation: there is no labelled validation image to rank the teachers on. Write for example "
            "data.validation=0.1; images that teachers have learned from would flatter them."
        )
    return data.validation if images is None else data.validation.some(images)


def _streams(
    recipe: Recipe, data: DataSource, accelerator: Accelerator, own: int
) -> tuple[dict[str, Stream], list[str]]:
    """The teachers that can be ranked, and why others cannot. own: number of the recipe's own teachers."""
    streams, notes = {}, []
    for i, (name, teacher) in enumerate(named_teachers(recipe).items()):
        ready = _ready(name, teacher, recipe, data, accelerator)
        if ready is None:
            notes.append(f"{name}: left out, since it is not trained yet; a run of the recipe trains it")
            continue
        try:
            stream = teacher_stream(ready, recipe.alignment, data.classes, role=f"teachers.{i}")
        except UserError as error:
            if i < own:
                raise
            notes.append(f"{name}: left out: {error}")
            continue
        if stream.has_logits:
            streams[name] = stream
        else:
            notes.append(f"{name}: left out, since it gives blocks only")
    return streams, notes


def _ready(name: str, teacher: Teacher, recipe: Recipe, data: DataSource, accelerator: Accelerator) -> Teacher | None:
    """The teacher with its weights; None if it is not trained yet."""
    if not teacher.train:
        return teacher
    task = label_training(name, teacher, recipe, data, accelerator)
    folder = find_zoo_folder(task, training_key(task)).folder
    return in_folder(teacher, folder) if (folder / "config.json").exists() else None


def _require_rankable(streams: dict[str, Stream], data: DataSource, notes: list[str]) -> None:
    if len(streams) < 2:
        found = f"only {next(iter(streams))} can be" if streams else "no teacher can be"
        hint = "Add teachers to the list, or name others with --candidates."
        raise UserError("\n".join([f"teachers: {found} ranked, so there is nothing to compare. {hint}", *notes]))
    unknown = set.intersection(*(set(stream.unknown) for stream in streams.values()))
    if unknown:
        names = join_names([data.classes[i] for i in sorted(unknown)], 5)
        raise UserError(
            f"teachers: none of them knows {len(unknown)} class(es) of the data set: {names}. An ensemble of them "
            "gives these no probability. Add a teacher that knows them, for example with `train:`."
        )


def _ranking(
    recipe: Recipe,
    data: DataSource,
    images: Images,
    streams: dict[str, Stream],
    measured: dict[str, Measured],
    notes: list[str],
) -> Ranking:
    label = torch.from_numpy(images.labels[images.rows]).long()
    logits = [m.logits for m in measured.values()]
    thin = slice(None, None, -(-len(label) // CHECKED))
    checks = {
        name: check_classes(
            torch.from_numpy(m.logits[thin].astype(np.float32)), label[thin], data.classes, streams[name].class_map
        )
        for name, m in measured.items()
    }
    notes = notes + [f"warning: {problem}" for problem in class_problems(recipe, checks).values()]
    temperatures = [temperature_of(z, label) for z in logits] if recipe.zoo.calibrate else None
    found = contributions(logits, label, temperatures=temperatures)
    entries = dict(zip(named_teachers(recipe), recipe.teachers, strict=True))
    return Ranking(
        names=list(streams),
        images=len(label),
        multiply_adds=[stream.multiply_adds() for stream in streams.values()],
        images_per_s=[m.images_per_s for m in measured.values()],
        found=found,
        similarity=_similarity([m.kernels for m in measured.values()]),
        duplicates=duplicates([m.digest for m in measured.values()], found),
        notes=notes,
        entries=[_entry(entries[name], recipe) for name in streams],
        calibrated=recipe.zoo.calibrate,
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


def _entry(teacher: Teacher, recipe: Recipe) -> Any:
    """An item of the recipe's list `teachers`, without defaults."""
    keys: dict[str, Any] = teacher.model_dump(mode="json", exclude={"loop"}, exclude_defaults=True)
    loop, shared = teacher.loop.model_dump(mode="json"), recipe.zoo.loop.model_dump(mode="json")
    changed = {key: value for key, value in loop.items() if value != shared[key] and value is not None}
    if keys.pop("train", False):
        keys = {"train": keys.pop("model"), **keys, **({"loop": changed} if changed else {})}
    return keys["model"] if keys.keys() == {"model"} else keys


def _flow(value: dict[str, Any]) -> str:
    """One line of YAML: `teachers: [a, b]`."""
    (key, inner), *_ = value.items()
    return f"{key}: {yaml.safe_dump(inner, default_flow_style=True, sort_keys=False, width=10**6).strip()}"
