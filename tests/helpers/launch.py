"""Other processes: their environment, a launcher of two, and a shell with mounts of its own."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
OWN_MOUNTS = ["unshare", "-rm", "sh", "-ec"]  # a shell that may mount, unseen by others


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*OWN_MOUNTS, "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not can_mount(), reason="user namespaces with mounts are not allowed here")
