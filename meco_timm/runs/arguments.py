"""What `distill` and `plan` take: a recipe as a file, a dict or a `Recipe`, and objects in place of its names."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from meco_timm.common import UserError
from meco_timm.data import data_of
from meco_timm.distillation import check_similarity, similarity_name
from meco_timm.networks import ModuleEntry
from meco_timm.recipe import Recipe, check_recipe, fingerprint, read_keys, recipe_key, with_run, written_run
from meco_timm.zoo import TeacherLike, recipe_entries, with_live, with_network

AnyRecipe = Recipe | dict[str, Any] | str | Path
Similarity = Callable[[Tensor, Tensor], Tensor]  # teacher's and student's logits B×K → a number
DRAFT = "given in Python"  # stands in a recipe until its object has been looked at


def as_recipe(
    recipe: AnyRecipe,
    *,
    student: str | nn.Module | None = None,
    teachers: Sequence[TeacherLike] | None = None,
    data: Any = None,
    similarity: Similarity | None = None,
) -> Recipe:
    """The recipe, with the objects in place of what it names; a `Recipe` is not changed.

    Raises:
        UserError: an unknown key, a value that does not fit, or an object that cannot be used.
    """
    if isinstance(recipe, Recipe) and all(given is None for given in (student, teachers, data, similarity)):
        return recipe
    raw, name, lines, stem = _keys(recipe)
    live: dict[int, ModuleEntry] = {}
    if student is not None:
        raw["student"] = DRAFT if isinstance(student, nn.Module) else student
    if teachers is not None:
        raw["teachers"], live = recipe_entries(teachers)
    if data is not None:
        raw["data"] = _section(raw.get("data")) | {"source": str(data) if isinstance(data, (str, Path)) else DRAFT}
    checked = check_recipe(raw, name, lines)
    checked.teachers = with_live(checked.teachers, live)
    if isinstance(student, nn.Module):
        checked.student = with_network(
            checked.student, ModuleEntry(deepcopy(student))
        )  # as it is now: it may be a teacher too
    if data is not None and not isinstance(data, (str, Path)):
        checked.data = data_of(checked.data, data)
        _check_publish(checked)
    if similarity is not None:
        check_similarity(similarity)
        checked.losses = checked.losses.with_object(similarity, similarity=similarity_name(similarity))
    return with_run(checked, stem)


def _keys(recipe: AnyRecipe) -> tuple[dict[str, Any], str, dict[Any, Any], str]:
    """(its keys, its name for messages, the line of each key, the beginning of its run folder's name)."""
    if isinstance(recipe, Recipe):
        sections = {key: getattr(recipe, key) for key in Recipe.model_fields}
        stem = Path(recipe.run or "run").name.rpartition("-")[0]
        return sections | {"run": written_run(recipe)}, "recipe", {}, stem or "run"
    if isinstance(recipe, dict):
        return dict(recipe), "recipe", {}, "run"
    raw, path, lines = read_keys(recipe)
    return raw, str(path), lines, path.stem


def _section(given: Any) -> dict[str, Any]:
    return given.model_dump() if hasattr(given, "model_dump") else dict(given or {})


def _check_publish(recipe: Recipe) -> None:
    if recipe.publish:
        raise UserError(
            "publish: the student is evaluated again before it is uploaded, and a data set given in Python is gone "
            "then. Name a folder or a Hub id in data.source, or leave `publish` out."
        )


def check_same(recipe: Recipe, accelerator: Accelerator) -> None:
    """Raises: UserError: the processes of a launch were given other recipes or objects."""
    keys = gather_object([fingerprint(recipe_key(recipe))]) if accelerator.num_processes > 1 else []
    if len(set(keys)) > 1:
        raise UserError(
            "recipe: the processes were given different recipes or objects. Seed every process alike before networks "
            "with random weights are created: torch.manual_seed(0)."
        )
