"""What is seen while a loop runs: a bar on a terminal, a plain line now and then in a file."""

import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from meco_timm.common import Ticker, progress

STEPS = """
from meco_timm.common import Ticker, log_to_screen

with log_to_screen(), Ticker("student", 3, 1) as ticker:
    ticker.step(2, "30 images/s  waiting for data 40%")
    ticker.step(3)
"""


def test_on_a_terminal_there_is_a_bar():
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", STEPS], env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                said += os.read(ours, 4096)
            except OSError:  # the other side has ended
                break
    os.close(ours)
    assert process.returncode == 0, said
    last = re.sub(rb"\x1b\[[^a-zA-Z]*[a-zA-Z]", b"", said).decode().replace("\r", "\n").strip().splitlines()[-1]
    assert re.search(r"student ━+ 3/3 .*30 images/s  waiting for data 40%", last), said
    assert b"\x1b[" in said


def lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[str]:
    """100 steps of 10 seconds each, later of 1 second, a note after every fifth."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    with Ticker("student", 100, 0) as ticker:
        for step in range(1, 101):
            now.seconds += 10 if step <= 50 else 1
            ticker.step(step, f"note {step}" if step % 5 == 0 else "")
    return caplog.messages


def test_in_a_file_there_is_a_line_now_and_then(monkeypatch, caplog):
    """Every note of a slow run; of a fast one a line every 15 seconds, and the last."""
    found = lines(monkeypatch, caplog)
    steps = [int(re.match(r"student  step (\d+)/100  \d+ s left  note \1$", line)[1]) for line in found]  # type: ignore
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 70, 90, 100]
    assert found[-1] == "student  step 100/100  0 s left  note 100"
    assert "student  step 50/100  500 s left" in found[9]


def test_other_processes_are_silent(monkeypatch, caplog):
    monkeypatch.setenv("RANK", "1")
    assert lines(monkeypatch, caplog) == []
