"""Teachers given in Python: by name, as a network that is there already, or as a dict with a recipe's keys."""

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from meco_timm.common import UserError, object_name
from meco_timm.networks import Live, Stream, name_of, teacher_stream, weights_digest
from meco_timm.recipe import Network, Recipe, Teacher
from meco_timm.zoo.teachers import named_teachers

Given = str | nn.Module | Teacher | dict[str, Any]
AnyNetwork = TypeVar("AnyNetwork", bound=Network)
INPUT = ("mean", "std", "interpolation")  # of timm's data config, which a recipe has no keys for


def recipe_entries(teachers: Given | Sequence[Given]) -> tuple[list[Any], dict[int, Live]]:
    """(the recipe's `teachers`, the live networks among them by number).

    Each is a timm name, `hf-hub:` or `local-dir:` id, a module, or a dict with the keys of a recipe's teacher whose
    `model` may be a module; of modules also `mean`, `std` and `interpolation`.

    Raises:
        UserError: something else.
    """
    entries: list[Any] = []
    live: dict[int, Live] = {}
    several = [teachers] if isinstance(teachers, (str, dict, Teacher, nn.Module)) else teachers
    for i, given in enumerate(several):
        entry: Any = {"model": given} if isinstance(given, nn.Module) else given
        if not isinstance(entry, (str, dict, Teacher)):
            raise UserError(
                f"teachers.{i}: {type(entry).__name__} is no teacher. Give a timm name, a module, or a dict with model."
            )
        if isinstance(entry, dict) and isinstance(entry.get("model"), nn.Module):
            live[i] = Live(entry["model"], {key: entry[key] for key in INPUT if key in entry})
            entry = {key: value for key, value in entry.items() if key not in INPUT}
            entry["model"] = name_of(live[i].module)
        entries.append(entry)
    return entries, live


def with_live(recipe: Recipe, live: dict[int, Live]) -> Recipe:
    """The recipe with these networks as its teachers, by number; each is named with a digest of its weights."""
    teachers = [holding(teacher, live[i]) if i in live else teacher for i, teacher in enumerate(recipe.teachers)]
    return recipe.model_copy(update={"teachers": teachers})


def holding(entry: AnyNetwork, live: Live) -> AnyNetwork:
    """A recipe's entry with the network itself, named `object:NAME@DIGEST`."""
    return entry.holding(live, model=object_name(name_of(live.module), weights_digest(live.module)))


def teacher_streams(recipe: Recipe, classes: list[str], live: dict[int, Live]) -> dict[str, Stream]:
    """The recipe's teachers by name: those in `live`, by number, as they are, the others with their weights loaded.

    Raises:
        UserError: a teacher cannot be loaded, does not fit the classes, or is to be trained first.
    """
    streams = {}
    for i, (name, teacher) in enumerate(named_teachers(with_live(recipe, live)).items()):
        role = f"teachers.{i}"
        if teacher.train:
            raise UserError(
                f"{role}: {name} has to be trained first. Train the recipe's teachers with `meco-timm train` or "
                "`distill`, and name their folders in its zoo: local-dir:FOLDER."
            )
        streams[name] = teacher_stream(teacher, recipe.alignment, classes, role=role)
    return streams
