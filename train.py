"""From an ensemble of timm models to one student.

accelerate launch train.py recipes/quickstart.yaml [key.sub=value …] [--plan] [--fresh] [--store]

--plan    print networks, sizes, class maps, blocks, cost and memory, and train nothing
--fresh   move an older run of this recipe aside and start anew; trained teachers are kept
--store   only fill the store with what the teachers say of all images
"""

import sys

from meco_timm.errors import UserError
from meco_timm.reading import load_recipe

OPTIONS = {"--plan", "--fresh", "--store"}


def main(arguments: list[str]) -> int:
    if not set(arguments) - OPTIONS or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else UserError.exit_code
    try:
        path, *overrides = [argument for argument in arguments if argument not in OPTIONS]
        recipe = load_recipe(path, overrides)  # before torch is imported: a wrong recipe is told at once
        from meco_timm import distill, fill_store, plan

        if "--plan" in arguments:
            print(plan(recipe), end="")
        elif "--store" in arguments:
            fill_store(recipe)
        else:
            distill(recipe, fresh="--fresh" in arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # outside of a training's steps, which save their state first
        print("stopped; the same command goes on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
