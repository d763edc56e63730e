"""The commands that take a recipe: train, plan, store, repeat, zoo; and the list of recipes."""

import sys
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated, Any

import typer

import meco_timm
from meco_timm.cli.options import Overrides, RecipePath, Utilisation, Verbose
from meco_timm.common import Status, get_logger, keep_freed_memory

from_recipes = typer.Typer()


def open_recipe(recipe: Path, overrides: list[str] | None) -> Any:
    """Read the recipe and show its first line, before torch is imported."""
    from meco_timm.recipe import headline, load_recipe

    loaded = load_recipe(recipe, overrides or [])
    get_logger(__name__).info(headline(loaded))
    keep_freed_memory()
    return loaded


def import_libraries() -> None:
    """Import what a run needs, which takes seconds, and say so."""
    with Status("importing PyTorch and timm"):
        import meco_timm.pipeline  # noqa: F401


def print_plan(recipe: Any, utilisation: float | None) -> None:
    """Print the plan in the width of the terminal."""
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    print(meco_timm.plan(recipe, utilisation, measure=True, width=width), end="")


@from_recipes.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the plan; train nothing, as `meco-timm plan`.")] = False,
    store: Annotated[
        bool, typer.Option("--store", help="Only precompute the teacher outputs, as `meco-timm store`.")
    ] = False,
    limit_steps: Annotated[
        int | None, typer.Option(min=1, help="Rehearse: N steps per training, random weights, few images.", metavar="N")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Rename an older run folder of this recipe and start a new run.")
    ] = False,
    utilisation: Utilisation = None,
    verbose: Verbose = None,
) -> None:
    """Train the teachers, distil the student, evaluate all networks and write the report.

    On several devices: accelerate launch -m meco_timm RECIPE.
    """
    if plan + store + (limit_steps is not None) > 1:
        raise typer.BadParameter("--plan, --store and --limit-steps exclude each other.")
    loaded = open_recipe(recipe, overrides)
    from meco_timm.runs import show_finished

    if not (plan or store or fresh or limit_steps) and show_finished(loaded):
        return
    import_libraries()
    if plan:
        print_plan(loaded, utilisation)
    elif store:
        meco_timm.fill_store(loaded)
    else:
        meco_timm.distill(loaded, fresh=fresh, limit_steps=limit_steps)


@from_recipes.command()
def plan(
    recipe: RecipePath, overrides: Overrides = None, utilisation: Utilisation = None, verbose: Verbose = None
) -> None:
    """Print the networks, blocks, cost, memory and time estimate of a recipe; train nothing."""
    loaded = open_recipe(recipe, overrides)
    import_libraries()
    print_plan(loaded, utilisation)


@from_recipes.command()
def store(recipe: RecipePath, overrides: Overrides = None, verbose: Verbose = None) -> None:
    """Precompute the teacher outputs for every view (`store:` in the recipe), so that training loads no teacher."""
    loaded = open_recipe(recipe, overrides)
    import_libraries()
    meco_timm.fill_store(loaded)


@from_recipes.command()
def repeat(
    recipes: Annotated[
        list[str],
        typer.Argument(help="Recipes, and keys to change in all of them.", metavar="RECIPE... [KEY=VALUE]..."),
    ],
    seeds: Annotated[str, typer.Option(help="How many, from 0 on; or a list such as 0,3,4.")] = "5",
    jobs: Annotated[int, typer.Option(help="Runs at the same time.", min=1)] = 1,
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write.")] = Path("repeat.html"),
    verbose: Verbose = None,
) -> None:
    """Run recipes with several seeds, and compare the students with intervals over seeds.

    Each is a plain run. What has ended is not run again, so the command can be interrupted and repeated.
    """
    overrides = [word for word in recipes if "=" in word]
    named = [word for word in recipes if "=" not in word]
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--seeds: {seeds!r} is no number and no list such as 0,3,4.") from None
    if not named:
        raise typer.BadParameter("name at least one recipe.")
    meco_timm.repeat(named, numbers if "," in seeds else range(numbers[0]), overrides, jobs, output)


@from_recipes.command()
def zoo(
    recipe: RecipePath,
    overrides: Overrides = None,
    images: Annotated[
        int | None, typer.Option(min=2, help="At most so many labelled images; default: all of the validation split.")
    ] = None,
    candidates: Annotated[
        str | None, typer.Option(help="More networks: a file with one a line, or a pattern of timm names with weights.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download the candidates without asking.")] = False,
    verbose: Verbose = None,
) -> None:
    """Rank the teachers of a recipe: what each adds to the ensemble, and which suffice; train nothing."""
    loaded = open_recipe(recipe, overrides)
    import_libraries()
    from meco_timm.selection import find_candidates, print_candidates, print_ranking

    found = find_candidates(candidates) if candidates else []
    if print_candidates(found) and not yes:
        typer.confirm("Download them?", abort=True)
    print_ranking(
        meco_timm.rank_teachers(loaded, images, [candidate.name for candidate in found]), str(loaded.data.source)
    )


@from_recipes.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="The recipe to write to this folder.", show_default=False)] = None,
    verbose: Verbose = None,
) -> None:
    """List the recipes that come with the package, or write one to the current folder, to be edited."""
    from meco_timm.recipe import RECIPES, purpose, shipped_recipes, write_recipe

    if name is not None:
        print(write_recipe(name, Path()))
        return
    for title, file in shipped_recipes().items():
        print(f"{title:<24}{purpose(file)}")
    print(f"\nEdit one: meco-timm recipes NAME. Run one: python -m meco_timm NAME\nFolder: {RECIPES}")
