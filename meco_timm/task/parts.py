"""Make the parts of a task, the method, the student's stream and the zoo, from the caller's arguments."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from meco_timm.common import UserError
from meco_timm.networks import ModuleEntry, Stream, architecture_name, wrap_student
from meco_timm.recipe import Recipe, check_recipe, named_teachers
from meco_timm.zoo import (
    DeviceContext,
    TeacherLike,
    Zoo,
    check_targets,
    load_trained_teachers,
    recipe_entries,
    with_live,
)

UNUSED_KEYS = {
    "discriminators": ("lr",),
    "zoo": ("loop", "folder"),
}  # the caller has the optimizer


class Parts(NamedTuple):
    """The method, the student's stream and the teachers."""

    recipe: Recipe
    student: Stream
    zoo: Zoo


def parts_of_zoo(student: nn.Module, zoo: Zoo, recipe: Recipe | None, data_config: dict[str, Any] | None) -> Parts:
    """Make the parts from a Zoo and the recipe that it was made with.

    Raises:
        UserError: there is no recipe, or one of another alignment; the zoo has a store or no teachers any more, or the
            student other classes.
    """
    if recipe is None or recipe.alignment != zoo.alignment:
        raise UserError("recipe: a Zoo has teachers and no losses. Pass recipe=RECIPE, the one that it was made with.")
    if zoo.store is not None or not zoo.streams:
        raise UserError(
            "teachers: a Zoo with a store finds outputs by image and view, which timm's loaders do not give. Make one "
            "without store.folder."
        )
    stream = wrap_student(student, recipe.alignment, data_config, recipe.is_backbone)
    count = stream.model.num_classes
    for name, teacher in zoo.streams.items():
        own = teacher.model.num_classes if teacher.class_map is None else len(teacher.class_map)
        if teacher.has_logits and own != count:
            raise UserError(
                f"teachers: {name} has {own} classes, the student {count}. Create the student with num_classes={own}."
            )
    return Parts(recipe, stream, zoo)


def parts_of_teachers(
    student: nn.Module,
    teachers: TeacherLike | Sequence[TeacherLike],
    method: dict[str, Any],
    classes: list[str] | None,
    data_config: dict[str, Any] | None,
    device: torch.device,
) -> Parts:
    """Make the parts from teachers by name or as modules. `method`: keys of a recipe.

    Raises:
        UserError: a key or value is wrong, or a network cannot be used.
    """
    entries, live = recipe_entries(teachers)
    keys = {"data": {"source": "a loader of timm"}, "teachers": entries, "student": architecture_name(student)}
    if not getattr(student, "num_classes", True):
        keys["task"] = "backbone"
    recipe = check_recipe({**method, **keys}, "EnsembleDistillation")
    if recipe.zoo.calibrate or recipe.zoo.weights == "validation":
        raise UserError(
            "zoo.calibrate, zoo.weights: a task has no validation images to fit temperatures or weights on. Write "
            "zoo.weights as a list with a number for each teacher."
        )
    stream = wrap_student(student, recipe.alignment, data_config, recipe.is_backbone)
    _check_shared_weights(student, live)
    recipe.teachers = with_live(recipe.teachers, live)
    count = stream.model.num_classes
    if classes is not None and len(classes) != count:
        raise UserError(f"classes: {len(classes)} names, but the student has {count} classes.")
    names = [str(i) for i in range(count)] if classes is None else list(classes)
    streams = load_trained_teachers(named_teachers(recipe.teachers), recipe.alignment, names)
    check_targets(streams, recipe.method)
    context = DeviceContext(device)
    return Parts(recipe, stream, Zoo(streams, recipe.zoo, recipe.seed, recipe.losses.temperature, context))


def check_alone(owner: str, given: dict[str, Any]) -> None:
    """Raises: UserError: keywords beside a recipe or Zoo."""
    if names := [name for name, value in given.items() if value is not None]:
        raise UserError(f"{', '.join(names)}: written beside {owner}, which has its own. Keep one.")


def check_sections(sections: dict[str, Any]) -> None:
    """Raises: UserError: a key that has no meaning in a task."""
    for name, keys in UNUSED_KEYS.items():
        section = sections.get(name)
        for key in set(keys) & set(section if isinstance(section, dict) else ()):
            raise UserError(
                f"{name}.{key}: not used by a task: the optimizer is yours, the teachers are trained. Leave it out."
            )


def _check_shared_weights(student: nn.Module, teachers: dict[int, ModuleEntry]) -> None:
    """Raises: UserError: a teacher shares weights with the student, which would be frozen with it."""
    own = {id(p) for p in student.parameters()}
    for i, teacher in teachers.items():
        if any(id(p) in own for p in teacher.module.parameters()):
            raise UserError(f"teachers.{i}: it shares weights with the student. Pass a copy: copy.deepcopy(model).")
