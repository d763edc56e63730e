"""Terminals whose encoding lacks characters: every command prints all that it has to say."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ODD_CLASSES, ROOT, draw_image, write

from meco_timm.cli import main
from meco_timm.common.encoding import HANDLER, print_anything

ENCODINGS = ["cp1252", "ascii"]


class Screen:
    """Standard output and error of an encoding, as bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str):
        self.bytes = {name: io.BytesIO() for name in ("stdout", "stderr")}
        for name, buffer in self.bytes.items():
            monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding, write_through=True))
        self.encoding = encoding

    def text(self, name: str = "stdout") -> str:
        return self.bytes[name].getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_signs_are_replaced_and_letters_escaped(encoding, monkeypatch):
    screen = Screen(monkeypatch, encoding)
    print_anything()
    print("0.86 × the errors − 1…2 → ü ü ß 漢 \udc80")
    plain = screen.encoding == "ascii"
    letters = r"\xfc" if plain else "ü"
    sharp = r"\xdf" if plain else "ß"
    times = "x" if plain else "×"
    dots = "..." if plain else "…"
    assert screen.text() == rf"0.86 {times} the errors - 1{dots}2 -> {letters} {letters} {sharp} \u6f22 \udc80" + "\n"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command(ended, tmp_path, recipe, encoding, monkeypatch):
    """In one process; class names hold ü, $ and <, file names a minus sign and a letter of Hebrew."""
    screen = Screen(monkeypatch, encoding)
    image = tmp_path / "− א ü.png"
    draw_image(0, 900).save(image)
    path, student, source = write(recipe, tmp_path), str(ended / "student"), str(ended.parent / "shapes")
    monkeypatch.setattr("meco_timm.evaluation.table.images_per_second", lambda *_: 1.0)
    monkeypatch.setattr("meco_timm.reporting.drawing.Chart.svg", lambda self: "")
    commands = [
        ["recipes"],
        ["plan", path],
        ["train", path, "--plan"],
        ["train", str(ended.parent / "recipe.yaml")],  # it is finished: its table is shown
        ["evaluate", student, "--data", source],
        ["predict", student, str(image)],
        ["predict", student, str(image), "--csv"],
        ["predict", student, str(image), "--json"],
        ["report", str(ended)],
        ["publish", str(ended), "--repo", "me/student", "--dry-run"],
        ["teachers", str(ended.parent / "zoo")],
        ["zoo", str(ended.parent / "recipe.yaml")],
    ]
    for command in commands:
        assert main(command) == 0, (command, screen.text("stderr")[-2000:])
    text = screen.text()
    assert "The student makes" in text
    assert text.count(r"\u05d0") == 3  # of three forms of predict
    assert main(["predict", student, str(tmp_path / "− א")]) == 2
    assert r"- \u05d0" in screen.text("stderr")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_plan_into_a_file(recipe, tmp_path, encoding):
    """As a shell does it: in a process of its own, whose output is no terminal."""
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    with open(tmp_path / "plan.txt", "wb") as file:
        command = [sys.executable, str(ROOT / "train.py"), write(recipe, tmp_path), "--plan"]
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, env=environment, text=True)
    assert done.returncode == 0, done.stderr
    assert "test_resnet" in Path(tmp_path / "plan.txt").read_bytes().decode(encoding)


def test_the_usual_terminal_is_left_as_it_is(monkeypatch):
    screen = Screen(monkeypatch, "utf-8")
    print_anything()
    print(f"× {ODD_CLASSES[0]} ü")
    assert screen.text() == f"× {ODD_CLASSES[0]} ü\n"
    assert sys.stdout.errors == HANDLER
