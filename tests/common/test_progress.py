"""What is seen while a loop or a stage runs: one line on a terminal, a plain line now and then in a file."""

import os
import pty
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from meco_timm.cli import main
from meco_timm.common import ProgressBar, Status, format_seconds, progress
from meco_timm.networks.factory import make_network

STEPS = """
import time
from meco_timm.common import ProgressBar, log_to_screen
title, fields = {title!r}, ["1286 images/s", "top-1 97.50 %", "loss 19.375", "waiting for data 8%", "logits 0.125"]
with log_to_screen(), ProgressBar(title, 1000, 700) as bar:
    for step in range(700, 731):
        time.sleep(0.01)
        bar.step(step, fields)
"""
STAGES = """
import time
from meco_timm.common import ProgressBar, Status, log_to_screen
with log_to_screen(), Status("reading images") as status:
    time.sleep(0.3)
    status.update("measuring test_resnet")
    with ProgressBar("inner", 2) as bar:
        bar.step(1, ["hidden"])
    time.sleep(0.3)
print("done")
"""


def seen(code: str, columns: int = 80) -> list[str]:
    """The lines that a terminal of so many columns has shown, one a refresh."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": str(ROOT), "COLUMNS": str(columns)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                said += os.read(ours, 4096)
            except OSError:  # the other side has ended
                break
    os.close(ours)
    assert process.returncode == 0, said
    return re.sub(rb"\x1b\[[^a-zA-Z]*[a-zA-Z]", b"", said).decode().replace("\r", "\n").strip().splitlines()


@pytest.mark.parametrize(
    ("title", "columns", "end"),
    [
        ("student", 80, "  1286 images/s  top-1 97.50 %"),
        ("student", 110, "  1286 images/s  top-1 97.50 %  loss 19.375  waiting for data 8%"),
        ("teacher mobilenetv3_large_100.ra_in1k", 80, "left"),
        ("teacher convnext_xxlarge.clip_laion2b_soup_ft_in12k_in1k", 80, "left"),
    ],
)
def test_a_terminal_shows_name_step_and_time_left_and_fields_by_importance(title, columns, end):
    line = seen(STEPS.format(title=title), columns)[-1]
    shown = title if len(title) < 45 else title[:37]
    assert re.match(rf"{re.escape(shown)}\S* ━{{16}} 730/1000  \d+ s left", line), line
    assert line.endswith(end), line
    assert len(line) < columns


def test_a_terminal_shows_the_stage_and_takes_it_away():
    lines = seen(STAGES)
    assert "reading images … 0 s" in lines
    assert "measuring test_resnet … 0 s" in lines
    assert not any("inner" in line for line in lines)
    assert lines[-1] == "done"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (120, "2 min"), (12000, "3 h 20 min")])
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


def lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[str]:
    """100 steps of 10 seconds each, later of 1 second, fields after every fifth."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    with ProgressBar("student", 100, report_end=True) as bar:
        for step in range(1, 101):
            now.seconds += 10 if step <= 50 else 1
            bar.step(step, [f"note {step}"] if step % 5 == 0 else [])
    return caplog.messages


def test_in_a_file_there_is_a_line_every_half_minute_at_most(monkeypatch, caplog):
    found = lines(monkeypatch, caplog)
    steps = [int(re.match(r"student  step (\d+)/100  ", line)[1]) for line in found]  # type: ignore
    assert steps == [1, *range(4, 50, 3), 70, 100]
    assert found[-1] == "student  step 100/100  in 9 min  note 100"
    assert found[0] == "student  step 1/100  16 min left"


def test_in_a_file_a_stage_is_named_when_it_takes_long(monkeypatch, caplog):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.05)
    with Status("reading images") as status:
        status.update("measuring test_resnet")
        status.timer.join()
        status.update("writing")
    assert caplog.messages == ["measuring test_resnet …"]


def test_other_processes_are_silent(monkeypatch, caplog):
    monkeypatch.setenv("RANK", "1")
    assert lines(monkeypatch, caplog) == []


def test_a_bar_that_has_ended_says_how_long_it_took():
    code = STEPS.format(title="student", fields=[]).replace("1000, 700", "30").replace("700, 731", "31")
    assert re.match(r"student ━{16} 30/30  in \d+ s", seen(code)[-1])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["evaluate", "RUN", "--data", "DATA"], "images evaluated  step 18/18"),
        (["embed", "test_vit.r160_in1k", "IMAGES", "--nearest", "IMAGE"], "images  step 1"),
        (["zoo", "RUN/recipe.yaml"], "images evaluated  step "),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_no_command_is_silent_for_long(words, line, ended, shapes, tmp_path, monkeypatch, capsys):
    """Here not for 0 seconds."""
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr("meco_timm.evaluation.file_batches.make_network", without_weights)
    shutil.copytree(ended.parent, tmp_path / "ended")
    recipe = tmp_path / "ended/run/recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(ended.parent), str(tmp_path / "ended")))
    images = shapes / "train/circle"
    places = {"RUN": recipe.parent, "DATA": tmp_path / "ended/shapes", "IMAGES": images, "IMAGE": images / "000.png"}
    for name, place in sorted(places.items(), reverse=True):
        words = [word.replace(name, str(place)) if word.split("/")[0] == name else word for word in words]
    assert main(words) == 0
    assert line in capsys.readouterr().err


def without_weights(network, args, pretrained, size, role):
    return make_network(network, args, False, size, role)
