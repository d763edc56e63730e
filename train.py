"""From an ensemble of timm models to one student.

accelerate launch train.py recipes/quickstart.yaml [key.sub=value …] [--plan | --store | --limit-steps N] [--fresh] [-q]

Without a clone of the repository it is `accelerate launch -m meco_timm quickstart`. Options: meco_timm/__main__.py; the
steps of a run in order: meco_timm/pipeline.py.
"""

import sys

from meco_timm.__main__ import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "train.py"))
