"""14 · The console command `meco-timm`, over the functions that Python has too. train.py stays what a launcher starts.

Nothing here imports torch before there is something to do, so that --help and a wrong recipe are told at once.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from meco_timm.common import UserError, log_to_screen, set_verbosity

app = typer.Typer(
    name="meco-timm",
    help="Compress an ensemble of timm models into one timm model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Recipe_ = Annotated[Path, typer.Argument(help="A recipe, for example recipes/quickstart.yaml.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value changes of the recipe, as in loop.lr=5e-4.")]
Verbose = Annotated[
    bool | None,
    typer.Option(
        "--verbose/--quiet",
        "-v/-q",
        callback=set_verbosity,
        help="Show all messages, or only warnings and results.",
        show_default=False,
    ),
]
Run = Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)]


@app.command()
def plan(
    recipe: Recipe_,
    overrides: Overrides = None,
    utilisation: Annotated[float | None, typer.Option(help="Of a GPU's stated FLOP/s, for its hours; 0.3.")] = None,
    verbose: Verbose = None,
) -> None:
    """Show networks, sizes, class maps, blocks, cost, memory and hours of a recipe; train nothing."""
    from meco_timm.recipe import load_recipe

    read = load_recipe(recipe, overrides or [])  # before torch is imported
    from meco_timm.pipeline import plan as make

    print(make(read, utilisation, measure=True), end="")


@app.command()
def train(
    recipe: Recipe_,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Move an older run of this recipe aside and start anew.")
    ] = False,
    limit_steps: Annotated[
        int | None, typer.Option(min=1, help="Rehearse: all parts, random weights, few images, so many steps each.")
    ] = None,
    verbose: Verbose = None,
) -> None:
    """Train what is not trained yet, distil, judge and report, in one process.

    On several devices: accelerate launch train.py RECIPE.
    """
    from meco_timm.recipe import load_recipe

    read = load_recipe(recipe, overrides or [])
    from meco_timm.pipeline import distill

    distill(read, fresh=fresh, limit_steps=limit_steps)


@app.command()
def store(recipe: Recipe_, overrides: Overrides = None, verbose: Verbose = None) -> None:
    """Keep on disk what the teachers say of all images (`store:` in the recipe); a training then needs none of them."""
    from meco_timm.recipe import load_recipe

    read = load_recipe(recipe, overrides or [])
    from meco_timm.pipeline import fill_store

    fill_store(read)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A timm name, hf-hub:owner/name or local-dir:path.", show_default=False)],
    data: Annotated[
        str, typer.Option(help="A folder of class folders or parquet files, or a Hub id.", show_default=False)
    ],
    split: Annotated[str | None, typer.Option(help="Split; test, else validation, else the first.")] = None,
    size: Annotated[int | None, typer.Option(help="Input size in pixels; the network's own.")] = None,
    classes: Annotated[str | None, typer.Option(help="File of the network's class names, one a line.")] = None,
    mask: Annotated[bool, typer.Option("--mask", help="Allow classes that the network does not know.")] = False,
    batch_size: Annotated[int, typer.Option(help="Images at once.", min=1)] = 64,
    verbose: Verbose = None,
) -> None:
    """Judge any timm network on any data set: accuracy, calibration, cost."""
    from pydantic import ValidationError

    from meco_timm.recipe import Teacher

    try:
        network = Teacher(model=model, size=size, classes=classes, missing="mask" if mask else "error")
    except ValidationError as error:
        raise UserError(f"evaluate: --{error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}.") from None
    from meco_timm.evaluation import evaluate as judge
    from meco_timm.evaluation import print_table

    print_table([judge(network, data, split, batch_size)], f"{split or 'Test'} split of {data}")


@app.command()
def report(run: Run, verbose: Verbose = None) -> None:
    """Write report.html of a finished run anew, without a device or the data."""
    from meco_timm.reporting import report as write

    print(write(run))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the page goes.")] = Path("compare.html"),
    verbose: Verbose = None,
) -> None:
    """Write one page over several runs."""
    from meco_timm.reporting import compare as write

    print(write(list(runs), output))


@app.command()
def publish(
    run: Run,
    repo: Annotated[
        str | None, typer.Option(help="owner/name on the Hub; by default the recipe's publish.repo.")
    ] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="Of a repository that is made.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch; main by default.")] = None,
    license: Annotated[str | None, typer.Option(help="The student's licence, as the Hub names it.")] = None,
    card: Annotated[str | None, typer.Option(help="Your own template of the card.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another model in the repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded; upload nothing.")] = False,
    verbose: Verbose = None,
) -> None:
    """Upload the student of a finished run to the Hub, in one commit."""
    said = {"repo": repo, "private": private, "revision": revision, "license": license, "card": card}
    said |= {"overwrite": overwrite or None}
    from meco_timm.hub import publish as upload
    from meco_timm.hub import publish_settings

    upload(run, publish_settings(run, {key: value for key, value in said.items() if value is not None}), dry_run)


@app.command()
def teachers(
    folder: Annotated[Path, typer.Argument(help="The zoo's folder.")] = Path("zoo"), verbose: Verbose = None
) -> None:
    """List the trained networks of a zoo, with their accuracy."""
    from meco_timm.zoo import list_teachers, print_teachers

    print_teachers(list_teachers(folder), folder)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 2 and plain words where the user can mend it."""
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
