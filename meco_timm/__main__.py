"""`python -m meco_timm RECIPE …`: the same commands as `meco-timm`."""

import sys

from meco_timm.cli import main

if __name__ == "__main__":
    sys.exit(main())
