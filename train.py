"""From an ensemble of timm models to one student.

accelerate launch train.py recipes/quickstart.yaml [key.sub=value …]
"""

import sys

from meco_timm.errors import EXIT_CODE, UserError
from meco_timm.reading import load_recipe


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else EXIT_CODE
    try:
        recipe = load_recipe(arguments[0], arguments[1:])  # before torch is imported: a wrong recipe is told at once
        from meco_timm import distill

        distill(recipe)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
