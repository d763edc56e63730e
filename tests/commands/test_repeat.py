"""`meco-timm repeat`: plain runs over seeds, continued where it was interrupted, and one table and page."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import base_recipe, write
from helpers.launch import ENVIRONMENT
from helpers.tables import table_of

import train
from meco_timm import UserError, load_recipe
from meco_timm.cli import main
from meco_timm.runs import repeating
from meco_timm.training import RunFolder


def without_speed(rows):
    return [row._replace(images_per_s=0, latency_ms=None) for row in rows]


@pytest.fixture
def path(shapes, tmp_path, monkeypatch):
    """The recipe's file, in the current folder."""
    monkeypatch.chdir(tmp_path)
    recipe = base_recipe(shapes, tmp_path)
    del recipe["run"]
    recipe["teachers"] = recipe["teachers"][:1]
    recipe["loop"] |= {"steps": 16, "checkpoint_steps": 2}
    return write(recipe, tmp_path)


class Here:
    """A run in this process, which is over when it has been started."""

    def __init__(self, run, jobs, logs):
        self.returncode = main(["train", run.path, *run.overrides, "--quiet"])

    def poll(self):
        return self.returncode


def test_killed_and_repeated_its_runs_are_single_runs(path, tmp_path, monkeypatch, capsys):
    """Seed 0 has ended before and is not run again; seed 1 is interrupted by a kill of the command and continues."""
    assert train.main([path, "seed=0", "--quiet"]) == 0
    first, second = (RunFolder(Path(load_recipe(path, [f"seed={seed}"]).run)) for seed in (0, 1))
    before = first.table.stat().st_mtime_ns
    words = [sys.executable, "-m", "meco_timm", "repeat", path, "--seeds", "2", "--quiet"]
    process = subprocess.Popen(words, env=ENVIRONMENT)
    while not list(second.path.glob("checkpoints/*")):
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not psutil.wait_procs(children, timeout=60)[1]  # a run does not outlive the command
    assert second.finished_rows() is None
    monkeypatch.setattr(repeating, "_start", Here)
    assert main(words[3:]) == 0
    assert first.table.stat().st_mtime_ns == before
    assert train.main([path, "seed=1", "--quiet", f"run={tmp_path / 'one'}", f"zoo.folder={tmp_path / 'other'}"]) == 0
    assert without_speed(second.finished_rows()) == without_speed(RunFolder(tmp_path / "one").finished_rows())
    page = (tmp_path / "repeat.html").read_text()
    assert all(str(folder.path) in page for folder in (first, second))
    capsys.readouterr()
    assert main(["repeat", path, "--seeds", "2", "-o", "pages/again.html"]) == 0  # all has ended: shown at once
    assert "recipe, 2 seeds: student − student alone " in capsys.readouterr().out
    assert (tmp_path / "pages/again.html").exists()


def test_runs_go_on_at_the_same_time_and_failures_name_their_messages(path, tmp_path, monkeypatch):
    """Here of commands that only sleep or fail."""
    started, running = [], []

    def start(run, jobs, logs):
        code = "import time; time.sleep(0.5)" if run.seed < 3 else "import sys; sys.exit(7)"
        running.append(sum(process.poll() is None for process in started))
        started.append(subprocess.Popen([sys.executable, "-c", code]))
        return started[-1]

    monkeypatch.setattr(repeating, "_start", start)
    monkeypatch.setattr(RunFolder, "finished_rows", lambda folder: None)
    runs = [repeating.plain_run("recipe", path, seed, []) for seed in range(4)]
    repeating.run_all(runs[:3], 2, tmp_path)
    assert max(running) == 1  # one beside the one that starts
    with pytest.raises(UserError, match=r"recipe, seed 3 ended with code 7. Its messages are in .*recipe-3.log"):
        repeating.run_all(runs, 2, tmp_path)
    assert all(process.poll() is not None for process in started)


def test_a_named_run_folder_is_one_for_each_seed(path):
    folders = [repeating.plain_run("recipe", path, seed, ["run=here"]).recipe.run for seed in (0, 1)]
    assert [Path(folder).name for folder in folders] == ["here-seed0", "here-seed1"]
    assert len({repeating.plain_run("recipe", path, seed, []).recipe.run for seed in (0, 1)}) == 2


def test_several_recipes_are_compared(path, tmp_path, monkeypatch, capsys):
    other = Path(path).with_name("other.yaml")
    other.write_text(Path(path).read_text())
    tables = {"recipe": 80.0, "other": 82.0}

    def run_all(runs, jobs, logs):
        assert all("loop.lr=0.1" in run.overrides for run in runs)
        return {run.title: table_of(tables[run.name] + run.seed, 70) for run in runs}

    monkeypatch.setattr(repeating, "run_all", run_all)
    assert main(["repeat", path, str(other), "loop.lr=0.1", "--seeds", "1,4"]) == 0
    assert "− student of recipe +2.00 ± 0.00 points (significant)" in capsys.readouterr().out
    assert "other" in (tmp_path / "repeat.html").read_text()


@pytest.mark.parametrize(("words", "message"), [(["--seeds", "x"], "no number"), (["a=1"], "at least one recipe")])
def test_wrong_words_are_refused(path, capsys, words, message):
    assert main(["repeat", *([path] if "--seeds" in words else []), *words]) == 2
    assert message in capsys.readouterr().err
