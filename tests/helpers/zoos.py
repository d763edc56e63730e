"""Zoos for tests, from a recipe."""

from collections.abc import Callable

from meco_timm.networks import ModuleEntry, Stream
from meco_timm.recipe import Recipe, named_teachers
from meco_timm.zoo import DeviceContext, Zoo, load_trained_teachers, with_live


def zoo_of(
    streams: dict[str, Stream], recipe: Recipe, context: DeviceContext, load: Callable[[str], Stream] | None = None
) -> Zoo:
    return Zoo(streams, recipe.zoo, recipe.seed, recipe.losses.temperature, context, load)


def teacher_streams(recipe: Recipe, classes: list[str], live: dict[int, ModuleEntry]) -> dict[str, Stream]:
    """The recipe's teachers, some of them networks that are there already, by number."""
    return load_trained_teachers(named_teachers(with_live(recipe.teachers, live)), recipe.alignment, classes)
