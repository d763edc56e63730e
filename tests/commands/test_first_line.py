"""What appears at once: the line of a recipe, and a finished run, without torch."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT

HEAVY = ("torch", "timm", "torchvision", "accelerate", "datasets", "matplotlib", "pandas")
WITHOUT = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None  # any import of it fails
"""
COMMANDS = {
    "train.py": "import train; code = train.main({arguments!r})",
    "python -m meco_timm": "from meco_timm.__main__ import main; code = main({arguments!r})",
    "meco-timm": "from meco_timm.cli import main; code = main({arguments!r})",
    "meco-timm train": "from meco_timm.cli import main; code = main(['train', *{arguments!r}])",
}


def without_torch(command: str, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"{WITHOUT}\n{COMMANDS[command].format(arguments=arguments)}\nsys.exit(code)"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.fixture
def finished(ended: Path, tmp_path: Path) -> Path:
    """The recipe of a finished run."""
    shutil.copytree(ended.parent, tmp_path / "ended")
    recipe = (tmp_path / "ended/run/recipe.yaml").read_text().replace(str(ended.parent), str(tmp_path / "ended"))
    (tmp_path / "ended/run/recipe.yaml").write_text(recipe)
    (tmp_path / "recipe.yaml").write_text(recipe)
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_finished_run_is_shown_without_torch(finished, command):
    done = without_torch(command, [str(finished)])
    assert done.returncode == 0, done.stderr
    run = finished.parent / "ended/run"
    head, holds = done.stderr.splitlines()
    assert head.startswith("test_resnet, test_efficientnet → ")
    assert head.endswith(f" in {run}")
    assert holds == f"{run} holds this run, finished; nothing is trained again."
    assert " true ensemble " in done.stdout
    assert "The student makes " in done.stdout
    assert f"Report: {run / 'report.html'}" in done.stdout
    assert f'timm.create_model("local-dir:{run / "student"}", pretrained=True)' in done.stdout


def test_other_processes_of_a_launch_show_nothing(finished):
    done = without_torch("train.py", [str(finished)], RANK="1", WORLD_SIZE="2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_other_data_are_refused_without_torch(finished):
    source = finished.parent / "ended/shapes/train.parquet"
    source.write_bytes(source.read_bytes() + b"more")
    done = without_torch("train.py", [str(finished)])
    assert done.returncode == 2
    assert "holds a run with other data" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_line_comes_before_torch(command, tmp_path):
    done = without_torch(command, ["recipes/quickstart.yaml", f"run={tmp_path / 'run'}"])
    assert done.returncode != 0  # a run that is not finished needs it
    line = done.stderr.splitlines()[0]
    assert line == (
        f"test_resnet, test_efficientnet, test_vit → test_mambaout, on recipes/data/digits, in {tmp_path / 'run'}"
    )


@pytest.mark.parametrize("room", [path.parent.name for path in (ROOT / "meco_timm").glob("*/__init__.pyi")])
def test_every_export_of_a_room_can_be_imported(room):
    """Rooms import their modules when something is used, so a name that is not there would be found late."""
    module = import_module(f"meco_timm.{room}")
    assert len([getattr(module, name) for name in module.__all__]) > 10
