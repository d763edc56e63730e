"""From an ensemble of timm models to one student.

accelerate launch train.py recipes/quickstart.yaml [key.sub=value …] [--plan] [--fresh] [--store] [--limit-steps N]
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from meco_timm.common import UserError
from meco_timm.recipe import load_recipe


def positive(word: str) -> int:
    if (number := int(word)) < 1:
        raise ValueError
    return number


def parser() -> ArgumentParser:
    words = ArgumentParser("train.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    words.add_argument("recipe", help="a recipe, for example recipes/quickstart.yaml")
    words.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes of it")
    what = words.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="print networks, blocks, cost, memory, hours; train nothing")
    what.add_argument("--store", action="store_true", help="only fill the store with what the teachers say")
    what.add_argument(
        "--limit-steps", type=positive, metavar="N", help="rehearse: all parts, random weights, N steps each"
    )
    words.add_argument("--fresh", action="store_true", help="move an older run of this recipe aside and start anew")
    words.add_argument("--utilisation", type=float, help="of a GPU's stated FLOP/s, for the plan's hours (0.3)")
    return words


def main(arguments: list[str]) -> int:
    if not arguments:
        parser().print_help()
        return UserError.exit_code
    try:
        said = parser().parse_intermixed_args(arguments)
    except SystemExit as stop:  # after --help, or wrong options, which are told
        return int(stop.code or 0)
    try:
        recipe = load_recipe(said.recipe, said.overrides)  # before torch is imported: a wrong recipe is told at once
        from meco_timm import distill, fill_store, plan

        if said.plan:
            print(plan(recipe, said.utilisation, measure=True), end="")
        elif said.store:
            fill_store(recipe)
        else:
            distill(recipe, fresh=said.fresh, limit_steps=said.limit_steps)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # outside of a training's steps, which save their state first
        print("stopped; the same command goes on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
