"""A benchmark that is terminated leaves no child that goes on training."""

import signal
import subprocess
import sys

import psutil
from conftest import ROOT

BENCHMARK = """
import subprocess, sys
from benchmarks.form import arguments

arguments("", 1).parse_args()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


def test_its_children_end_with_it():
    with subprocess.Popen([sys.executable, "-c", BENCHMARK], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()
