"""Teachers given in Python: by name, as a network that is there already, or as a dict with a recipe's keys."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from meco_timm.common import UserError
from meco_timm.networks import Stream, name_of, teacher_of, teacher_stream
from meco_timm.recipe import Recipe, Teacher
from meco_timm.zoo.teachers import named_teachers

Given = str | nn.Module | Teacher | dict[str, Any]
INPUT = ("mean", "std", "interpolation")  # of timm's data config, which a recipe has no keys for


class Live(NamedTuple):
    """A network that is there already, and how its images are prepared where that is not in its `pretrained_cfg`."""

    module: nn.Module
    config: dict[str, Any]


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


def teacher_streams(recipe: Recipe, classes: list[str], live: dict[int, Live]) -> dict[str, Stream]:
    """The recipe's teachers by name: those in `live`, by number, as they are, the others with their weights loaded.

    Raises:
        UserError: a teacher cannot be loaded, does not fit the classes, or is to be trained first.
    """
    streams = {}
    for i, (name, teacher) in enumerate(named_teachers(recipe).items()):
        role = f"teachers.{i}"
        if teacher.train:
            raise UserError(
                f"{role}: {name} has to be trained first. Train the recipe's teachers with `meco-timm train` or "
                "`distill`, and name their folders in its zoo: local-dir:FOLDER."
            )
        if i in live:
            module, config = live[i]
            streams[name] = teacher_of(module, teacher, recipe.alignment, classes, role=role, config=config)
        else:
            streams[name] = teacher_stream(teacher, recipe.alignment, classes, role=role)
    return streams
