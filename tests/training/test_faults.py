"""Real faults: killed, a full disk, a read-only folder, a lost process, a clock that goes back, a picture with NaN.

What one module can be tested for is tested there: a dead loader, a damaged checkpoint, a loss that is not finite.
"""

import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import fill, tree, write
from helpers.launch import Forked, Mounts, finished, launch, needs_mounts
from PIL import Image

from benchmarks import resume
from meco_timm.common.errors import UserError
from meco_timm.data.loading import load_data
from meco_timm.data.views import Steps
from meco_timm.recipe.sections import Data

ROOT = Path(__file__).parents[2]


def test_killed_three_times_it_ends_as_if_nothing_had_happened(shapes, tmp_path, monkeypatch):
    """`kill -9` at random moments, with views cut by the batch; left alone, without the cache. benchmarks/resume.py
    kills more often."""
    monkeypatch.setattr(resume, "launch", lambda words, log: Forked(words[-1], log=log))
    alone, recipe = (
        resume.RECIPE
        | {"data": {"source": str(shapes), "image_size": 32} | changes | {"workers": 0}}
        | {"zoo": {"loop": {"steps": 10}}, "loop": resume.RECIPE["loop"] | {"steps": 20, "batch_size": 8}}
        for changes in resume.WAYS["views by the batch"]
    )
    duration = resume.to_the_end(tmp_path / "whole", alone)
    moments = random.Random(1)
    places = [resume.killed_after(tmp_path / "cut", recipe, moments.uniform(0, duration / 2)) for _ in range(3)]
    assert all(places)
    resume.to_the_end(tmp_path / "cut", recipe)
    assert resume.result(tmp_path / "cut") == resume.result(tmp_path / "whole")


@needs_mounts
def test_a_full_disk_loses_nothing(recipe, tmp_path):
    """A run folder of 300 kB: no checkpoint and no student fits. With room made, the same command ends."""
    recipe["loop"]["checkpoint_steps"] = 2
    path, run = write(recipe, tmp_path), tmp_path / "run"
    run.mkdir()
    with Mounts() as mounts:
        mounts.run(f"mount -t tmpfs -o size=300k tmpfs {run}")
        first = stopped(Forked(path, MOUNTS_OF=mounts.pid))
        mounts.run(f"mount -o remount,size=90m {run}")
        finished([Forked(path, MOUNTS_OF=mounts.pid)])
        files = tree(mounts.path(run))
    assert "warning: the checkpoint of step 2 could not be written" in first
    assert "cannot be written" in first.splitlines()[-1]
    assert "No space left" in first.splitlines()[-1]
    assert "the same command continues" in first.splitlines()[-1]
    assert {"table.json", "student/model.safetensors", "metrics.jsonl"} < files


def stopped(process: Forked) -> str:
    """What a process says that ends with code 2 and plain words."""
    assert process.wait() == 2, process.said
    told = process.said[1]
    assert "Traceback" not in told
    return told


@needs_mounts
@pytest.mark.parametrize("begun", [False, True])
def test_a_read_only_run_folder_is_told(recipe, tmp_path, begun):
    path, run = write(recipe, tmp_path), tmp_path / "run"
    run.mkdir()
    if begun:
        (run / "recipe.yaml.tmp").write_text("")
    with Mounts() as mounts:
        mounts.run(f"mount --bind {run} {run}; mount -o remount,bind,ro {run}")
        told = stopped(Forked(path, MOUNTS_OF=mounts.pid))
    assert str(run) in told
    assert "Read-only file system" in told


@needs_mounts
def test_a_disk_that_turns_read_only_amid_the_run_loses_nothing(recipe, tmp_path):
    """As a file system does after an error of its device."""
    recipe["loop"] |= {"steps": 160, "checkpoint_steps": 4}  # long enough for a moment without a file open for writing
    recipe |= {"teachers": recipe["teachers"][:1], "zoo": recipe["zoo"] | {"loop": {"steps": 2}}}
    path, run = write(recipe, tmp_path), tmp_path / "run"
    run.mkdir()
    with Mounts() as mounts:
        mounts.run(f"mount -t tmpfs -o size=90m tmpfs {run}")
        process = Forked(path, MOUNTS_OF=mounts.pid)
        wait_for(lambda: list(mounts.path(run).glob("checkpoints/step-*")), [process])
        mounts.run(f"until mount -o remount,ro {run} 2> /dev/null; do kill -0 {process.pid}; done")
        first = stopped(process)
        mounts.run(f"mount -o remount,rw {run}")
        second = finished([Forked(path, MOUNTS_OF=mounts.pid)])[1]
        files = tree(mounts.path(run))
    assert re.search(r"warning: the checkpoint .* \(.*Read-only file system.*\); that of step \d+ remains", first)
    assert "the same command continues" in first.splitlines()[-1]
    assert "student: continuing from step" in second
    assert {"table.json", "student/model.safetensors", "metrics.jsonl"} < files


@pytest.mark.parametrize("dead", [0, 1])
def test_when_one_process_of_two_dies_the_other_says_so_and_stops(recipe, tmp_path, dead):
    recipe["loop"] |= {"steps": 100_000, "checkpoint_steps": 50}
    recipe["zoo"]["loop"] = {"steps": 2}
    path = write(recipe, tmp_path)
    processes = launch(path, processes=2)
    try:
        wait_for(lambda: list((tmp_path / "zoo").glob("*.training/checkpoints/step-*.pt")), processes)
        processes[dead].send_signal(signal.SIGKILL)
        told = stopped(processes[1 - dead])
    finally:
        for process in processes:
            process.kill()
    assert "another process was lost" in told
    assert "the same command continues from the last checkpoint" in told


@contextmanager
def amid_a_training(recipe: dict[str, Any], folder: Path) -> Iterator[Forked]:
    """A process with two loaders, all in a group of their own, that has a teacher's first checkpoint behind it."""
    recipe["loop"] |= {"steps": 100_000, "checkpoint_steps": 5}
    recipe["data"]["workers"] = 2
    process = Forked(write(recipe, folder), own_session=True)
    try:
        wait_for(lambda: list(folder.glob("zoo/*.training/checkpoints/step-*.pt")), [process])
        yield process
    finally:
        process.kill()


def test_a_loader_process_that_is_killed_is_told(recipe, tmp_path):
    """As the kernel does when memory is short."""
    with amid_a_training(recipe, tmp_path) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        told = stopped(process)
    assert "data.workers: a loader process died (DataLoader worker" in told
    assert "write a smaller number; the same command continues from the last checkpoint" in told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_it_and_its_loaders_ends_it_in_time_with_its_state_saved(recipe, tmp_path, number):
    """As Slurm does, and Ctrl-C."""
    with amid_a_training(recipe, tmp_path) as process:
        os.killpg(process.pid, number)
        code = process.wait(timeout=60)
    _, told = process.said
    assert code == 143, told
    stopped = re.search(
        r"^teacher test_resnet: stopped at step (\d+); the same command continues.$", told, re.MULTILINE
    )
    assert stopped, told
    assert "Traceback" not in told
    checkpoints = sorted(path.name for path in tmp_path.glob("zoo/*.training/checkpoints/step-*.pt"))
    assert int(checkpoints[-1].split("-")[1]) == int(stopped[1])


def wait_for(seen: Any, processes: Sequence[Forked], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not seen():
        assert all(process.poll() is None for process in processes), processes[0].said
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_clock_that_goes_back_changes_nothing(recipe, tmp_path, monkeypatch):
    """Time is told by a clock that cannot (`monotonic`); the wall's may jump, as it does when a node is set right."""
    import train

    tables = []
    for name in ("plain", "jumping"):
        path = write(recipe | {"run": str(tmp_path / name)}, tmp_path)
        if name == "jumping":
            wall = iter(range(2_000_000_000, 0, -3600))
            monkeypatch.setattr(time, "time", lambda wall=wall: float(next(wall)))
        assert train.main([path]) == 0
        rows = json.loads((tmp_path / name / "table.json").read_text())["rows"]
        tables.append([(row["name"], row["top1"], row["nll"]) for row in rows])
    assert tables[0] == tables[1]


def test_an_image_with_nan_reaches_no_network(tmp_path):
    """A float TIFF with NaN is refused by name, so that no loss comes from it."""
    fill(tmp_path / "train", {"a": 8, "b": 8})
    fill(tmp_path / "test", {"a": 2, "b": 2})
    broken = np.full((32, 32), np.nan, np.float32)
    Image.fromarray(broken).save(tmp_path / "train/a/broken.tiff")
    settings = {"source": str(tmp_path), "image_size": 32, "workers": 0, "validation": 0.0}
    data = load_data(Data.model_validate(settings), seed=0)
    with pytest.raises(UserError, match=r"broken\.tiff: .*its floats range from nan to nan"):
        list(data.batches(data.train, Steps(17, seed=0, start=0, stop=1)))
