"""The command that trains, on one device or several. `train.py` in a clone of the repository is the same command.

accelerate launch -m meco_timm quickstart [key.sub=value …] [--plan | --store | --limit-steps N] [--fresh] [-q]

RECIPE is a file, or the name of a recipe that comes with the package: see `meco-timm recipes`.
"""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter

import meco_timm
from meco_timm.common import UserError, get_logger, keep_freed_memory, log_to_screen
from meco_timm.finished import show_finished
from meco_timm.recipe import headline, load_recipe

logger = get_logger("meco_timm.command")


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def parser(program: str = "train.py") -> ArgumentParser:
    options = ArgumentParser(program, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    options.add_argument("recipe", help="a recipe: a file, or the name of one that comes with the package (quickstart)")
    options.add_argument("overrides", nargs="*", metavar="key.sub=value", help="keys of the recipe to change")
    mode = options.add_mutually_exclusive_group()
    mode.add_argument("--plan", action="store_true", help="print networks, blocks, cost, memory, time; train nothing")
    mode.add_argument("--store", action="store_true", help="only precompute the teacher outputs into the store")
    mode.add_argument(
        "--limit-steps", type=positive, metavar="N", help="rehearse: N steps per training, random weights, few images"
    )
    options.add_argument(
        "--fresh", action="store_true", help="rename an older run folder of this recipe and start a new run"
    )
    shown = options.add_mutually_exclusive_group()
    shown.add_argument("-v", "--verbose", action="store_true", default=None, help="show all messages")
    shown.add_argument("-q", "--quiet", dest="verbose", action="store_false", help="show only warnings and results")
    options.add_argument(
        "--utilisation",
        type=float,
        help="assumed share of a GPU's peak FLOP/s (default: as measured)",
    )
    return options


def run(options: Namespace) -> None:
    # Before torch is imported, so that errors in the recipe, its first line and a finished run are shown at once.
    recipe = load_recipe(options.recipe, options.overrides)
    logger.info(headline(recipe))
    keep_freed_memory()
    if options.plan:
        print(meco_timm.plan(recipe, options.utilisation, measure=True), end="")
    elif options.store:
        meco_timm.fill_store(recipe)
    elif options.fresh or options.limit_steps or not show_finished(recipe):
        meco_timm.distill(recipe, fresh=options.fresh, limit_steps=options.limit_steps)


def main(arguments: list[str], program: str = "train.py") -> int:
    """Run the command and return its exit code; on a UserError print the message and return 2."""
    if not arguments:
        parser(program).print_help()
        return UserError.exit_code
    try:
        options = parser(program).parse_intermixed_args(arguments)
    except SystemExit as stop:  # after --help, or wrong options, for which argparse prints a message
        return int(stop.code or 0)
    try:
        with log_to_screen(options.verbose):
            run(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # outside of the training loop, which saves its state first
        print("Stopped. Repeat the command to continue.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python -m meco_timm"))
