"""Terminals whose encoding lacks characters: every command prints all that it has to say."""

import io
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ODD_CLASSES, draw_image, write
from helpers.launch import Forked, finished
from typer.main import get_command

from meco_timm.cli import app, main
from meco_timm.common.encoding import HANDLER, print_anything
from meco_timm.evaluation import Latency

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


def every_command(run: Path, path: str, source: str, folder: Path) -> dict[str, list[list[str]]]:
    """Arguments of each command. run: a finished one. path: a recipe whose run has not begun. source: the data of the
    run. folder: for what is written."""
    student, own, image = str(run / "student"), str(run / "recipe.yaml"), folder / "− א ü.png"
    draw_image(0, 900).save(image)
    shutil.copytree(run, folder / "again-seed0")
    of_store = [own, f"store={{folder: {folder / 'store'}, views: 1}}"]
    return {
        "recipes": [[]],
        "plan": [[path]],
        "train": [[own]],  # it is finished: its table is shown
        "store": [of_store],
        "repeat": [[own, f"run={folder / 'again'}", "--seeds", "1", "-o", str(folder / "repeat.html")]],
        "report": [[str(run)]],
        "compare": [[str(run), str(folder / "again-seed0"), "-o", str(folder / "compare.html")]],
        "publish": [[str(run), "--repo", "me/student", "--dry-run"]],
        "teachers": [[str(run.parent / "zoo")]],
        "zoo": [[own]],
        "evaluate": [[student, "--data", source]],
        "predict": [[student, str(image), *form] for form in ([], ["--csv"], ["--json"])],
        "embed": [[student, str(image), "-o", str(folder / "ü.parquet"), "--nearest", str(image)]],
        "export": [[str(run), "-o", str(folder / "ü onnx")]],
        "latency": [[str(run), "test_vit", "--size", "32"]],
        "students": [["--budget", "100M", "--image-size", "32", "--pattern", "test_vit"]],
    }


def test_every_command(ended, tmp_path, recipe, monkeypatch):
    """In one process; class names hold ü, $ and <, file names a minus sign and a letter of Hebrew."""
    run = shutil.copytree(ended, tmp_path / "rün א")
    shutil.copytree(ended.parent / "zoo", run.parent / "zoo")
    text = (run / "recipe.yaml").read_text(encoding="utf-8").replace(str(ended), str(run))
    (run / "recipe.yaml").write_text(text.replace(str(ended.parent / "zoo"), str(run.parent / "zoo")), encoding="utf-8")
    commands = every_command(run, write(recipe, tmp_path), str(ended.parent / "shapes"), tmp_path)
    assert commands.keys() == get_command(app).commands.keys()
    monkeypatch.setattr("meco_timm.reporting.drawing.Chart.svg", lambda self: "")
    monkeypatch.setattr("meco_timm.planning.plan.measured_time_lines", lambda *_: ["here    4 × 1 s − …"])
    monkeypatch.setattr("meco_timm.hub.latency_table.find_spec", lambda _: None)  # PyTorch only
    monkeypatch.setattr("meco_timm.hub.latency_table.measure_latency", lambda *_: Latency(2.0, 3.0))
    screen = Screen(monkeypatch, "ascii")
    for name, calls in commands.items():
        for words in [*calls, ["--help"]]:
            before = screen.text("stdout") + screen.text("stderr")
            assert main([name, *words]) == 0, (name, words, screen.text("stderr")[-2000:])
            assert len(screen.text("stdout") + screen.text("stderr")) > len(before), (name, words)
    text = screen.text()
    assert "The student makes" in text
    assert text.count(r"\u05d0") > 3  # of all forms of predict
    assert main(["predict", str(run / "student"), str(tmp_path / "− א")]) == 2
    assert r"- \u05d0" in screen.text("stderr")


def test_a_plan_into_a_file(recipe, tmp_path):
    """In a process of its own, whose output is no terminal."""
    words = [write(recipe, tmp_path), "--plan"]
    code = f"import sys, train; sys.stdout.reconfigure(encoding='ascii'); sys.exit(train.main({words!r}))"
    finished([Forked(code, program="code", log=tmp_path / "plan")])
    assert "test_resnet" in (tmp_path / "plan.out").read_text("ascii")


def test_the_usual_terminal_is_left_as_it_is(monkeypatch):
    screen = Screen(monkeypatch, "utf-8")
    print_anything()
    print(f"× {ODD_CLASSES[0]} ü")
    assert screen.text() == f"× {ODD_CLASSES[0]} ü\n"
    assert sys.stdout.errors == HANDLER
