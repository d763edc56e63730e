"""The examples of the README and of docs/api.md run as they stand, with small networks and images for theirs."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.documents import fenced
from helpers.timm_loop import CLASSES, network

EXAMPLES = {
    page: block for page in ("README.md", "docs/api.md") for block in fenced(page, "python") if "task = " in block
}


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """A teacher in a folder, as `local-dir:`."""
    timm.models.save_for_hf(network("test_vit"), tmp_path / "teacher", safe_serialization=True)
    return f"local-dir:{tmp_path / 'teacher'}"


def replaced(code: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in code, old
        code = code.replace(old, new)
    return code


def test_the_example_of_the_readme(shapes, teacher, caplog):
    code = EXAMPLES["README.md"]
    changes = {
        "mobilenetv3_small_100": "test_mambaout",
        "num_classes=1000": f"num_classes={CLASSES}",
        "imagenet/train": str(shapes / "train"),
        ", 64, is_training=True": ", 8, is_training=True, num_workers=0, persistent_workers=False",
        "resnet50.a1_in1k": teacher,
        "vit_small_patch16_224.augreg_in1k": teacher,
    }
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(replaced(code, changes), names)
    assert names["task"].step == len(names["loader"]) > 2
    assert names["input"].shape[2:] == (64, 64)
    assert "WARNING" not in caplog.text
    torch.manual_seed(0)
    fresh = timm.create_model("test_mambaout", num_classes=CLASSES)
    assert not any(map(torch.equal, names["student"].parameters(), fresh.parameters()))


def test_the_loop_of_the_documentation(shapes, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {
        "mobilenetv3_small_100": "test_resnet",
        "num_classes=1000": f"num_classes={CLASSES}",
        '"img_size": 160': '"img_size": 32',
        "imagenet/train": str(shapes / "train"),
        ", 64, is_training=True": ", 8, is_training=True, num_workers=0, persistent_workers=False",
        '"resnet18.a1_in1k", pretrained=True': f'"test_efficientnet", num_classes={CLASSES}',
        '"size": 288': '"size": 48',
        "resnet50.a1_in1k": teacher,
        "vit_small_patch16_224.augreg_in1k": teacher,
        "range(10)": "range(2)",
    }
    names: dict[str, Any] = {}
    exec(replaced(EXAMPLES["docs/api.md"], changes), names)
    task = names["task"]
    assert task.step == 2 * len(names["loader"]) > 2
    assert {"loss", "output", "similarity/logits", "similarity/0", "labels", "adversary/0"} < names["result"].keys()
    saved = torch.load(tmp_path / "last.pth.tar", weights_only=False)
    assert saved["task_state"]["step"] == task.step
    network("test_resnet").load_state_dict(saved["state_dict"])
    images = torch.rand(2, 3, 32, 32)
    assert names["averaged"].eval()(images).shape == names["student"].eval()(images).shape == (2, CLASSES)
    assert not torch.equal(names["averaged"](images), names["student"](images))
