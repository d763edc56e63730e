"""What a forked process does; the process that forks it has imported all that is imported here."""

import os
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

import meco_timm.hub
import meco_timm.pipeline  # noqa: F401  all that a run imports
import train
from helpers import processes, task_processes
from helpers.quick import no_speed, save_empty
from meco_timm.evaluation import backbone, table

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "train": train.main,
    "train as on a GPU": processes.train_as_on_a_gpu,
    "steps": processes.main,
    "task": task_processes.launched,
}


def run(program: str, words: list[str], environment: dict[str, str], log: str, own_session: bool) -> None:
    """Run a program with these words, as quickly as other tests; what it writes goes to LOG.out and LOG.err."""
    if own_session:
        os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(ROOT)
    os.environ |= environment
    torch.set_num_threads(1)
    Figure.savefig = save_empty  # type: ignore[method-assign]
    table.images_per_second = backbone.images_per_second = no_speed
    sys.exit(PROGRAMS[program](words))
