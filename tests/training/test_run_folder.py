"""One recipe's run and nothing else: what may change in it under way, what may not, and when it has ended."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import timm
from conftest import refused, tree, write
from safetensors.torch import save_file

import train
from meco_timm.common import reseed
from meco_timm.training import run_folder
from meco_timm.training.state import TrainingState


class Interrupted(Exception):
    pass


def interrupted(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Run until the student's second step is saved, then end as a killed process does."""
    save = TrainingState.save

    def stop(self: TrainingState, teachers: dict[str, str]) -> None:
        save(self, teachers)
        if self.job.title == "student" and self.step == 2:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", stop)
        with pytest.raises(Interrupted):
            train.main([path])


@pytest.fixture
def begun(recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe whose run was cut off after two of the student's four steps; its teacher's weights lie in a file."""
    save_weights(tmp_path / "teacher.safetensors", seed=0)
    recipe["teachers"] = [{"model": "test_vit", "weights": str(tmp_path / "teacher.safetensors"), "trust": True}]
    recipe["loop"] |= {"checkpoint_steps": 2, "patience": 4}
    path = write(recipe, tmp_path)
    interrupted(monkeypatch, path)
    return path


def save_weights(file: Path, seed: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        file.unlink()
    reseed(seed)
    save_file(timm.create_model("test_vit", num_classes=3).state_dict(), file)


def test_what_is_safe_to_change_under_way(begun, tmp_path, capsys):
    changes = [
        "loop.steps=6",
        "loop.validations=3",
        "loop.patience=5",
        "loop.log_every=2",
        "loop.checkpoint_minutes=9.0",
    ]
    assert train.main([begun, *changes, "data.workers=1"]) == 0
    assert "student: continuing from step 2" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "total" in line] == [1, 2, 4, 6]
    assert "steps: 6" in (tmp_path / "run/recipe.yaml").read_text()
    assert "loop.steps" in refused(capsys, begun, "loop.steps=8")  # it has ended


def test_all_else_is_refused_with_the_list_of_changed_keys(begun, tmp_path, capsys):
    before = tree(tmp_path)
    told = refused(capsys, begun, "loop.lr=1e-4", "loop.steps=6", "alignment.length=64")
    assert "holds the run of another recipe; it differs in alignment.length, loop.lr, loop.steps" in told
    assert "run=FOLDER" in told
    assert "--fresh" in told
    assert tree(tmp_path) == before


def test_another_teacher_under_the_same_name_is_refused(begun, tmp_path, capsys):
    save_weights(tmp_path / "teacher.safetensors", seed=1)
    told = refused(capsys, begun)
    assert "holds a run with other weights of teachers.0" in told
    assert "--fresh" in told
    save_weights(tmp_path / "teacher.safetensors", seed=0)
    assert train.main([begun]) == 0


def test_killed_between_its_table_and_its_end_it_has_ended(begun, tmp_path, capsys, monkeypatch):
    """Until the table is there, the checkpoints are."""

    def killed(self: run_folder.RunFolder) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "drop_checkpoints", killed)
        with pytest.raises(Interrupted):
            train.main([begun])
    assert (tmp_path / "run/checkpoints").exists()
    capsys.readouterr()
    assert train.main([begun]) == 0
    assert "nothing is trained again" in capsys.readouterr().err
    assert not (tmp_path / "run/checkpoints").exists()
