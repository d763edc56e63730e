"""All commands: `meco-timm`, `python -m meco_timm` and, in a clone, `python train.py` are this application.

RECIPE in place of a command is `train RECIPE`. torch is imported only when a command runs, so that --help and errors in
a recipe appear at once. To train on several devices: `accelerate launch -m meco_timm RECIPE`.

In: the words of the command line. Out: what the commands print, and an exit code.
Never: does more than call what Python users call.
"""

from meco_timm.cli.app import app, main

__all__ = ["app", "main"]
