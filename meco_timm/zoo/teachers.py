"""Teachers from their descriptions: timm names, networks of a Python program, or entries of a recipe."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from meco_timm.common import UserError, object_name
from meco_timm.networks import (
    LOGITS_ONLY,
    ModuleEntry,
    Stream,
    architecture_name,
    student_stream,
    teacher_stream,
    weights_digest,
)
from meco_timm.recipe import Alignment, Method, Network, Teacher

TeacherLike = str | nn.Module | Teacher | dict[str, Any]
AnyNetwork = TypeVar("AnyNetwork", bound=Network)
INPUT = ("mean", "std", "interpolation")  # of timm's data config, which a recipe has no keys for


def load_teachers(teachers: Mapping[str, Teacher], alignment: Alignment, classes: list[str]) -> dict[str, Stream]:
    """The teachers that need no training, with their weights.

    Raises:
        UserError: a teacher cannot be loaded or does not fit the classes.
    """
    return {
        name: teacher_stream(teacher, alignment, classes, role=f"teachers.{i}")
        for i, (name, teacher) in enumerate(teachers.items())
        if not teacher.train
    }


def load_trained_teachers(
    teachers: Mapping[str, Teacher], alignment: Alignment, classes: list[str]
) -> dict[str, Stream]:
    """As `load_teachers`, where nothing trains teachers.

    Raises:
        UserError: a teacher is to be trained first; else as of `load_teachers`.
    """
    for i, (name, teacher) in enumerate(teachers.items()):
        if teacher.train:
            raise UserError(
                f"teachers.{i}: {name} has to be trained first. Train the recipe's teachers with `meco-timm train` or "
                "`distill`, and name their folders in its zoo: local-dir:FOLDER."
            )
    return load_teachers(teachers, alignment, classes)


def untrained_teachers(
    teachers: Mapping[str, Teacher],
    alignment: Alignment,
    image_size: int,
    classes: list[str],
    weightless: bool = True,
) -> dict[str, Stream]:
    """The teachers before any training. weightless: on the meta device, without weights; else with random ones for
    those to be trained.

    Raises:
        UserError: a teacher cannot be made or does not fit the classes.
    """

    def untrained(teacher: Teacher, role: str) -> Stream:
        if not teacher.train:
            return teacher_stream(teacher, alignment, classes, role=role, weightless=weightless)
        if teacher.size not in (None, image_size) or teacher.gives == "blocks":  # its training needs another stream
            student_stream(teacher, LOGITS_ONLY, len(classes), image_size, role=role, weightless=True)
        size = teacher.size or image_size
        options: dict[str, Any] = {"gives": teacher.gives, "as_teacher": True}
        return student_stream(teacher, alignment, len(classes), size, role=role, weightless=weightless, **options)

    return {name: untrained(teacher, f"teachers.{i}") for i, (name, teacher) in enumerate(teachers.items())}


def check_targets(streams: Mapping[str, Stream], method: Method) -> None:
    """Raises: UserError: the teachers' outputs cannot train the student by this method."""
    losses = method.losses
    if losses.logits and not losses.labels and not any(stream.has_logits for stream in streams.values()):
        raise UserError(
            "teachers: all of them give blocks only, so nothing would train the student's head. Add a teacher that "
            "gives logits, or train on the labels too with losses.labels=1."
        )
    unused = [name for name, stream in streams.items() if not stream.has_logits]
    if unused and not (method.compares_blocks or losses.embedding):
        raise UserError(
            f"teachers: {', '.join(unused)}: gives blocks only, but no loss compares blocks. Write for example "
            "losses.blocks=3."
        )


def recipe_entries(teachers: TeacherLike | Sequence[TeacherLike]) -> tuple[list[Any], dict[int, ModuleEntry]]:
    """(the recipe's `teachers`, the live networks among them by number).

    Each is a timm name, `hf-hub:` or `local-dir:` id, a module, or a dict with the keys of a recipe's teacher whose
    `model` may be a module; of modules also `mean`, `std` and `interpolation`.

    Raises:
        UserError: something else.
    """
    entries: list[Any] = []
    live: dict[int, ModuleEntry] = {}
    several = [teachers] if isinstance(teachers, (str, dict, Teacher, nn.Module)) else teachers
    for i, given in enumerate(several):
        entry: Any = {"model": given} if isinstance(given, nn.Module) else given
        if not isinstance(entry, (str, dict, Teacher)):
            raise UserError(
                f"teachers.{i}: {type(entry).__name__} is no teacher. Give a timm name, a module, or a dict with model."
            )
        if isinstance(entry, dict) and isinstance(entry.get("model"), nn.Module):
            live[i] = ModuleEntry(entry["model"], {key: entry[key] for key in INPUT if key in entry})
            entry = {key: value for key, value in entry.items() if key not in INPUT}
            entry["model"] = architecture_name(live[i].module)
        entries.append(entry)
    return entries, live


def with_live(teachers: Sequence[Teacher], live: Mapping[int, ModuleEntry]) -> list[Teacher]:
    """The teachers, with these networks in the place of some, by number."""
    return [with_network(teacher, live[i]) if i in live else teacher for i, teacher in enumerate(teachers)]


def with_network(entry: AnyNetwork, live: ModuleEntry) -> AnyNetwork:
    """A recipe's entry with the network itself, named `object:NAME@DIGEST` by its weights."""
    return entry.with_object(live, model=object_name(architecture_name(live.module), weights_digest(live.module)))
