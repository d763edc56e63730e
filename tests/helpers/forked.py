"""What a forked process does; the process that forks it has imported all that is imported here."""

import ctypes
import multiprocessing
import os
import sys
from pathlib import Path

import torch

import meco_timm.hub
import meco_timm.pipeline  # noqa: F401  all that a run imports
import train
from helpers import processes, task_processes
from helpers.quick import draw_nothing, measure_no_speed

ROOT = Path(__file__).resolve().parents[2]


def train_by_a_copy(words: list[str]) -> int:
    """COPY RECIPE: train by the package in the folder COPY, which is imported anew."""
    for name in [name for name in sys.modules if name.split(".")[0] == "meco_timm"]:
        del sys.modules[name]
    sys.path.insert(0, words[0])
    import meco_timm.cli

    assert Path(meco_timm.cli.__file__).is_relative_to(words[0])
    return meco_timm.cli.main(words[1:])


def join_mounts(pid: int) -> None:
    """See the mounts of another process."""
    libc = ctypes.CDLL(None, use_errno=True)
    for namespace in ("user", "mnt"):
        if libc.setns(os.open(f"/proc/{pid}/ns/{namespace}", os.O_RDONLY), 0):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


PROGRAMS = {
    "train": train.main,
    "train as on a GPU": processes.train_as_on_a_gpu,
    "train by a copy": train_by_a_copy,
    "steps": processes.main,
    "task": task_processes.launched,
    "code": lambda words: exec(words[0], {}),
}


def run(program: str, words: list[str], environment: dict[str, str], log: str, own_session: bool) -> None:
    """Run a program with these words, as quickly as other tests; what it writes goes to LOG.out and LOG.err."""
    if own_session:
        os.setsid()
    if "MOUNTS_OF" in environment:
        join_mounts(int(environment["MOUNTS_OF"]))
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(ROOT)
    os.environ |= environment
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # loaders start as in any other process, not by a server
    measure_no_speed(setattr)
    draw_nothing(setattr)
    sys.exit(PROGRAMS[program](words))
