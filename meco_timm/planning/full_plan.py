"""The plan that a user asks for: that of a run, with the time on GPUs and on this device."""

from meco_timm.data import known_data, load_data
from meco_timm.networks import Stream
from meco_timm.planning.plan import make_plan
from meco_timm.planning.time_estimate import gpu_time_lines, measured_time_lines
from meco_timm.recipe import Recipe
from meco_timm.selection import check_local_teachers


def full_plan(recipe: Recipe, processes: int, utilisation: float | None, measure: bool) -> str:
    """The plan as text. `utilisation`: assumed share of a GPU's peak FLOP/s. `measure`: time a few steps here.

    Raises:
        UserError: the recipe does not fit the data or the networks.
    """
    listed = known_data(recipe.data)
    data = listed or load_data(recipe.data, recipe.seed, recipe.store.views)

    def time_lines(student: Stream, teachers: dict[str, Stream]) -> list[str]:
        lines = gpu_time_lines(recipe, student, teachers, data, processes, utilisation)
        if measure and not listed and processes == 1:
            lines += measured_time_lines(recipe, student, teachers, data)
        if not listed:
            lines += check_local_teachers(recipe, data, teachers) if measure else []
        note = f"note: {recipe.data.source} was not downloaded; its classes and counts are those it is published with"
        return [*lines, note] if listed else lines

    return make_plan(recipe, data, processes, time_lines)
