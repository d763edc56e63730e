"""Checkpoints that are whole or not there; when to stop and to save."""

import os
import pickle
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tree

from meco_timm.common import StopSign, listen
from meco_timm.training import checkpoint
from meco_timm.training.checkpoint import Checkpoints, Watch


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((1000,), float(step))}


def saved(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    assert all(checkpoints.save(step, state(step)) for step in steps)
    return checkpoints


def test_what_is_saved_is_found_and_the_last_two_are_kept(tmp_path):
    checkpoints = saved(tmp_path, 1, 20, 300)
    assert sorted(name.rpartition("-")[0] for name in tree(tmp_path)) == ["step-000000020", "step-000000300"]
    found = checkpoints.newest()
    assert found is not None
    assert found["step"] == 300
    assert torch.equal(found["weights"], state(300)["weights"])
    assert Checkpoints(tmp_path / "none").newest() is None


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_newest_is_named_and_the_one_before_is_taken(tmp_path, caplog, damage):
    checkpoints = saved(tmp_path, 1, 2)
    newest = max(tmp_path.iterdir())
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes({"truncated": data[:-100], "one bit": data, "empty": b""}[damage])
    found = checkpoints.newest()
    assert found is not None
    assert found["step"] == 1
    assert f"the checkpoint of step 2 is damaged and skipped ({newest})" in caplog.text


def test_killed_while_it_is_written(tmp_path):
    """A child process that is killed once a part of the file is there."""
    saved(tmp_path, 1)
    beside = tmp_path / "unfinished.tmp"
    child = os.fork()
    if child == 0:
        while True:
            Checkpoints(tmp_path).save(2, {"weights": torch.zeros(5_000_000), "step": 2})
            next(path for path in tmp_path.glob("step-000000002*")).unlink()  # too fast: again
    while not (beside.exists() and beside.stat().st_size):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for path in tmp_path.glob("step-000000002*"):
        path.unlink()
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert found["step"] == 1
    saved(tmp_path, 2)
    assert not beside.exists()


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    saved(tmp_path, 1)
    Checkpoints(tmp_path).save(2, {"step": Evil()})
    with pytest.raises(pickle.UnpicklingError):
        Checkpoints(tmp_path).newest()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_sign_and_then_as_before(number):
    before = signal.getsignal(number)
    with listen() as stop:
        assert not stop.seen
        os.kill(os.getpid(), number)
        assert stop.seen
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher may send its own after the group's
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


class Several:
    """Four processes, of which the others say what `others` says; counts how often they are asked."""

    num_processes, device = 4, torch.device("cpu")

    def __init__(self, others: list[float]):
        self.others, self.asked = torch.tensor(others), 0

    def reduce(self, mine: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return mine + self.others


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_one_process_looks_after_each_step(clock):
    stop = StopSign()
    watch = Watch(SimpleNamespace(num_processes=1), 1.0, 0, stop)
    assert watch.look(1) == (False, False)
    clock.seconds = 61
    assert watch.look(2) == (False, True)
    watch.saved()
    stop.seen = True
    assert watch.look(3) == (True, False)


@pytest.mark.parametrize(("pace", "asked"), [(0.01, 11), (0.19, 21), (10.0, 100)])
def test_many_processes_ask_each_other_every_second(clock, pace, asked):
    """Which is well within the 30 s that launchers leave between SIGTERM and SIGKILL."""
    others = Several([0.0, 0.0, 3 * pace])
    watch = Watch(others, 1e9, 7, StopSign())
    for step in range(8, 1008 if pace < 0.1 else 108):
        clock.seconds += pace
        assert watch.look(step) == (False, False)
    assert others.asked == pytest.approx(asked, abs=2)


@pytest.mark.parametrize(("others", "told"), [([1.0, 0.0, 0.0], (True, False)), ([0.0, 2.0, 0.0], (False, True))])
def test_what_one_process_wants_all_do(clock, others, told):
    clock.seconds = 1.0
    assert Watch(Several(others), 1.0, 0, StopSign()).look(1) == told
