"""From an ensemble of timm models to one student: `python train.py RECIPE [key.sub=value …] [options]`.

On several devices: `accelerate launch train.py RECIPE`. Without a clone of the repository: `meco-timm` or
`python -m meco_timm`. All commands are in meco_timm/cli/, the steps of a run in order in meco_timm/pipeline.py.
"""

import sys

from meco_timm.cli import main

if __name__ == "__main__":
    sys.exit(main())
