"""All commands: `meco-timm`, `python -m meco_timm` and, in a clone, `python train.py` are this application.

RECIPE in place of a command is `train RECIPE`. torch is imported only when a command runs, so that --help and errors in
a recipe appear at once. To train on several devices: `accelerate launch -m meco_timm RECIPE`.
"""

import sys
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import meco_timm
from meco_timm.cli_networks import Verbose, networks
from meco_timm.common import UserError, did_you_mean, get_logger, keep_freed_memory, log_to_screen, print_anything


class Commands(TyperGroup):
    """The commands; `train` is the one that is meant where the first word is none."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `train` before a recipe or an option of training."""
        own = {"--help", *(option for parameter in self.params for option in parameter.opts)}
        if args and args[0] not in self.commands and args[0] not in own:
            if args[0][0] != "-" and not Path(args[0]).exists() and (hint := did_you_mean(args[0], [*self.commands])):
                ctx.fail(f"No such command {args[0]!r}.{hint}")
            args = ["train", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. An interrupted training loop has saved its state before."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("Stopped. Repeat the command to continue.", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="meco-timm",
    cls=Commands,
    help="Compress an ensemble of timm models into one timm model. Without a command: train.",
    subcommand_metavar="COMMAND | RECIPE [ARGS]...",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(networks)


def print_version(version: bool) -> None:
    """Print the version and end."""
    if version:
        print(f"meco_timm {meco_timm.__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The options without a command."""


RecipePath = Annotated[
    Path,
    typer.Argument(
        help="A recipe: a file, or a name that `meco-timm recipes` lists.", metavar="RECIPE", show_default=False
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Keys of the recipe to change, for example loop.lr=5e-4.", metavar="[KEY=VALUE]..."),
]
Utilisation = Annotated[
    float | None, typer.Option(help="Assumed share of a GPU's peak FLOP/s in the plan; default: as measured.")
]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)]


def open_recipe(recipe: Path, overrides: list[str] | None) -> Any:
    """Read the recipe and show its first line, before torch is imported."""
    from meco_timm.recipe import headline, load_recipe

    loaded = load_recipe(recipe, overrides or [])
    get_logger(__name__).info(headline(loaded))
    keep_freed_memory()
    return loaded


def print_plan(recipe: Any, utilisation: float | None) -> None:
    """Print the plan in the width of the terminal."""
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    print(meco_timm.plan(recipe, utilisation, measure=True, width=width), end="")


@app.command()
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
    from meco_timm.finished import show_finished

    loaded = open_recipe(recipe, overrides)
    if plan:
        print_plan(loaded, utilisation)
    elif store:
        meco_timm.fill_store(loaded)
    elif fresh or limit_steps or not show_finished(loaded):
        meco_timm.distill(loaded, fresh=fresh, limit_steps=limit_steps)


@app.command()
def plan(
    recipe: RecipePath, overrides: Overrides = None, utilisation: Utilisation = None, verbose: Verbose = None
) -> None:
    """Print the networks, blocks, cost, memory and time estimate of a recipe; train nothing."""
    print_plan(open_recipe(recipe, overrides), utilisation)


@app.command()
def store(recipe: RecipePath, overrides: Overrides = None, verbose: Verbose = None) -> None:
    """Precompute the teacher outputs for every view (`store:` in the recipe), so that training loads no teacher."""
    meco_timm.fill_store(open_recipe(recipe, overrides))


@app.command()
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


@app.command()
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


@app.command()
def report(run: Run, verbose: Verbose = None) -> None:
    """Write report.html of a finished run again, from its folder only."""
    print(meco_timm.report(run))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("compare.html"),
    verbose: Verbose = None,
) -> None:
    """Write one page that compares several finished runs."""
    print(meco_timm.compare(list(runs), output))


@app.command()
def publish(
    run: Run,
    repo: Annotated[str | None, typer.Option(help="owner/name on the Hub; default: the recipe's publish.repo.")] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Visibility, if the repository is created.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch; default: main.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the student, by its Hub identifier.")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also upload ONNX files, in float32 and int8.")] = False,
    card: Annotated[str | None, typer.Option(help="Your template of the model card.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another model in the repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded; upload nothing.")] = False,
    verbose: Verbose = None,
) -> None:
    """Upload the student of a finished run to the Hub, in one commit."""
    options = {"repo": repo, "private": private, "revision": revision, "license": license, "card": card}
    options |= {"overwrite": overwrite or None, "onnx": onnx or None}
    from meco_timm.hub import publish_settings

    given = {key: value for key, value in options.items() if value is not None}
    meco_timm.publish(run, publish_settings(run, given), dry_run)


@app.command()
def teachers(
    folder: Annotated[Path, typer.Argument(help="Zoo folder.")] = Path("zoo"), verbose: Verbose = None
) -> None:
    """List the trained networks in a zoo folder, with their accuracy."""
    from meco_timm.zoo import list_teachers, print_teachers

    print_teachers(list_teachers(folder), folder)


@app.command()
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
    from meco_timm.selection import find_candidates, print_candidates, print_ranking

    found = find_candidates(candidates) if candidates else []
    if print_candidates(found) and not yes:
        typer.confirm("Download them?", abort=True)
    print_ranking(
        meco_timm.rank_teachers(loaded, images, [candidate.name for candidate in found]), str(loaded.data.source)
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code; on a UserError print the message and return 2."""
    print_anything()
    try:
        with log_to_screen():
            result: Any = app(arguments, standalone_mode=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return result or 0


if __name__ == "__main__":
    sys.exit(main())
