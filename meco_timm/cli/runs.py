"""The commands about finished runs and a zoo folder: report, compare, publish, teachers."""

from pathlib import Path
from typing import Annotated

import typer

import meco_timm
from meco_timm.cli.options import Run, Verbose

of_runs = typer.Typer()


@of_runs.command()
def report(run: Run, verbose: Verbose = None) -> None:
    """Write report.html of a finished run again, from its folder only."""
    print(meco_timm.report(run))


@of_runs.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("compare.html"),
    verbose: Verbose = None,
) -> None:
    """Write one page that compares several finished runs."""
    print(meco_timm.compare(list(runs), output))


@of_runs.command()
def publish(
    run: Run,
    repo: Annotated[str | None, typer.Option(help="owner/name on the Hub; default: the recipe's publish.repo.")] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Visibility, if the repository is created.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch; default: main.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the student, by its Hub identifier.")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also upload ONNX files, in float32 and int8.")] = False,
    space: Annotated[str | None, typer.Option(help="owner/name of a Space, to try the student in a browser.")] = None,
    examples: Annotated[
        bool, typer.Option("--examples", help="Upload three images of the validation split to the Space.")
    ] = False,
    card: Annotated[str | None, typer.Option(help="Your template of the model card.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another model in the repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded; upload nothing.")] = False,
    verbose: Verbose = None,
) -> None:
    """Upload the student of a finished run to the Hub, in one commit."""
    options = {"repo": repo, "private": private, "revision": revision, "license": license, "space": space, "card": card}
    options |= {"overwrite": overwrite or None, "onnx": onnx or None, "examples": examples or None}
    from meco_timm.hub import publish_settings

    given = {key: value for key, value in options.items() if value is not None}
    meco_timm.publish(run, publish_settings(run, given), dry_run)


@of_runs.command()
def teachers(
    folder: Annotated[Path, typer.Argument(help="Zoo folder.")] = Path("zoo"), verbose: Verbose = None
) -> None:
    """List the trained networks in a zoo folder, with their accuracy."""
    from meco_timm.zoo import list_teachers, print_teachers

    print_teachers(list_teachers(folder), folder)
