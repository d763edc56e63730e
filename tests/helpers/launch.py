"""Other processes: forked ones, which start at once, and a shell with mounts of its own."""

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

import pytest
from conftest import ROOT

PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
OWN_MOUNTS = ["unshare", "-rm", "sh", "-e"]  # a shell that may mount, unseen by others
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["helpers.forked"])


class Forked:
    """`train.py` or another program in a process of its own, with the methods of `subprocess.Popen`.

    It is forked from a process that has imported what a run imports, which takes five seconds in a new one.
    """

    def __init__(
        self,
        *words: str,
        program: str = "train",
        log: Path | None = None,
        own_session: bool = False,
        **environment: str,
    ) -> None:
        from helpers.forked import run

        with patch.dict(os.environ, PYTHONPATH=PATHS):  # Python < 3.13 gives the server no other search path
            forkserver.ensure_running()
        self.log = str(log or tempfile.mktemp())
        self.process = SERVER.Process(target=run, args=(program, list(words), environment, self.log, own_session))
        self.process.start()
        assert self.process.pid
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    @property
    def said(self) -> tuple[str, str]:
        """What it has written to standard output and standard error."""
        out, err = (Path(f"{self.log}.{name}") for name in ("out", "err"))
        return (out.read_text() if out.exists() else ""), (err.read_text() if err.exists() else "")

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float = 120) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.process), timeout)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
            self.wait()


def launch(*words: str, processes: int, program: str = "train", **environment: str) -> list[Forked]:
    """So many processes of one group on the CPU, as `torchrun` starts them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = environment | {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    ranks = range(processes)
    return [Forked(*words, program=program, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in ranks]


def finished(processes: Sequence[Forked]) -> tuple[str, str]:
    """What all of them have written to standard output and standard error; each ends well."""
    for process in processes:
        assert process.wait() == 0, process.said[1][-3000:]
    outs, errs = zip(*(process.said for process in processes), strict=True)
    return "".join(outs), "".join(errs)


class Mounts:
    """A shell with mounts of its own, in a `with` statement. A `Forked` with `MOUNTS_OF=mounts.pid` sees them too."""

    def __enter__(self) -> "Mounts":
        self.shell = subprocess.Popen(OWN_MOUNTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = str(self.shell.pid)
        self.run("true")  # the mounts are its own from here on
        return self

    def __exit__(self, *error: object) -> None:
        self.shell.communicate()

    def run(self, command: str) -> None:
        assert self.shell.stdin
        assert self.shell.stdout
        self.shell.stdin.write(f"{command}\necho done\n")
        self.shell.stdin.flush()
        assert self.shell.stdout.readline() == "done\n", command

    def path(self, path: Path) -> Path:
        """Where a folder or file among its mounts is seen from outside."""
        return Path(f"/proc/{self.pid}/root{path}")


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*OWN_MOUNTS, "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not can_mount(), reason="user namespaces with mounts are not allowed here")
