"""The application: its commands, and what all of them do first and last."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import meco_timm
from meco_timm.cli.networks import of_networks
from meco_timm.cli.recipes import from_recipes
from meco_timm.cli.runs import of_runs
from meco_timm.common import UserError, did_you_mean, log_to_screen, print_anything


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
for commands in (from_recipes, of_runs, of_networks):
    app.add_typer(commands)


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
