"""`distill` with networks, data sets and functions: the same student as by names, ended by `on_step`, rehearsed."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import timm
import torch
from conftest import tree
from torch import Tensor, nn

from meco_timm import UserError, distill


@pytest.fixture(autouse=True)
def without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meco_timm.reporting.drawing.Chart.svg", lambda self: "")
    monkeypatch.setattr("meco_timm.reporting.drawing.Chart.png", lambda self: b"")


def network(name: str = "test_resnet", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=3)


def losses_of(run: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("images_per_s", "data_wait")} for line in lines]


def test_objects_make_the_student_that_their_names_do(recipe, shapes, tmp_path):
    """Teachers and data set by name and as objects, equal to the bit in every line of metrics."""
    teacher, folder = network(), tmp_path / "teacher"
    timm.models.save_for_hf(teacher, folder, safe_serialization=True)
    by_name = recipe | {"teachers": [{"model": f"local-dir:{folder}", "size": 32, "trust": True}]}
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    rows = distill(by_name | {"run": str(tmp_path / "by_name")})
    live = distill(
        recipe | {"run": str(tmp_path / "objects"), "teachers": []},
        teachers=[{"model": teacher, "size": 32, "trust": True}],
        data=datasets.load_dataset(str(shapes)),
    )
    assert losses_of(str(tmp_path / "objects")) == losses_of(str(tmp_path / "by_name"))
    assert [(row.top1, row.nll) for row in live[-2:]] == [(row.top1, row.nll) for row in rows[-2:]]
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def huber(teacher: Tensor, student: Tensor) -> Tensor:
    return nn.functional.huber_loss(student, teacher)


def test_on_step_ends_a_run_of_objects(recipe, tmp_path, caplog):
    recipe["loop"] |= {"steps": 6, "validations": 1}
    first, second = ({"model": network(seed=seed), "size": 32, "trust": True} for seed in (0, 1))
    teachers = [first, second, {"model": timm.create_model("test_vit", img_size=32), "train": True}]
    student, seen = network("test_efficientnet"), []

    def on_step(step: int, losses: dict[str, float]) -> bool:
        seen.append((step, losses["similarity/logits"]))
        return step == 2

    objects: dict[str, Any] = {"student": student, "teachers": teachers, "similarity": huber, "on_step": on_step}
    rows = distill(recipe, **objects)
    assert [step for step, _ in seen] == [1, 2]
    run = Path(recipe["run"])
    assert [line["step"] for line in losses_of(str(run)) if "validation/top1" in line][-1] == 2
    assert json.loads((run / "table.json").read_text())["about"]["steps"] == 2
    assert distill(recipe, **objects) == rows
    assert len(seen) == 2  # nothing is trained again
    kept = timm.create_model(f"local-dir:{run}/student", pretrained=True).state_dict()
    assert any(not torch.equal(tensor, student.state_dict()[name]) for name, tensor in kept.items())
    zoo = {path.name.split("-")[0] for path in (tmp_path / "zoo").iterdir()}
    assert zoo == {
        ".images",
        ".logits",
        ".locks",
        "test_efficientnet",
        "test_vit",
    }  # the student alone, and what was to be trained
    with pytest.raises(UserError, match=r"holds the run of another recipe; it differs in teachers.0.model\."):
        distill(recipe, **objects | {"teachers": [second, second, teachers[2]]})


def test_objects_are_rehearsed(recipe, tmp_path, capfd):
    rows = distill(
        recipe,
        limit_steps=1,
        student=network("test_efficientnet"),
        teachers=[{"model": network(), "size": 32}],
        similarity=huber,
    )
    assert [row.name for row in rows] == ["test_resnet", "true ensemble", "student alone", "student"]
    assert tree(tmp_path) == set()
