"""docs/api.md and its notebook: the examples run as they stand, with small networks, images and recipes for theirs."""

import runpy
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
import timm
import torch
from conftest import ROOT, write
from helpers.documents import fenced, read
from helpers.launch import PATHS

NOTEBOOK = ROOT / "docs/notebook.ipynb"
EXAMPLES = fenced("docs/api.md", "python")
OBJECTS, FUNCTION, LIBRARIES = (
    next(block for block in EXAMPLES if word in block) for word in ("on_step=", "similarity=", "torchvision:")
)


@pytest.fixture(autouse=True)
def without_drawing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("meco_timm.reporting.drawing.Chart.svg", lambda self: "")
    monkeypatch.setattr("meco_timm.reporting.drawing.Chart.png", lambda self: b"")


def run(code: str, changes: dict[str, str]) -> dict[str, Any]:
    """The names of the example after it has run, with these changes."""
    for old, new in changes.items():
        assert old in code, old
        code = code.replace(old, new)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_live_networks_and_a_data_set(shapes, tmp_path):
    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model("test_vit", num_classes=3, img_size=32), tmp_path / "own")
    changes = {
        '"zalando-datasets/fashion_mnist"': repr(str(shapes)),
        "hf-hub:you/your-model": f"local-dir:{tmp_path}/own",
        "[own, ": '[{"model": own, "trust": True}, ',
        "resnet18": "test_resnet",
        "num_classes=10": "num_classes=3",
        '"image_size": 32': '"image_size": 32, "workers": 0, "verify": "none"',
        '"steps": 2000, "batch_size": 64': '"steps": 2, "batch_size": 8, "validations": 1',
    }
    names = run(OBJECTS, changes)
    assert [row.name for row in names["rows"]][-3:] == ["true ensemble", "student alone", "student"]
    assert len(names["losses"]) == 2


def test_a_loss_of_ones_own(recipe, tmp_path):
    recipe |= {"teachers": [{"train": "test_resnet"}], "loop": recipe["loop"] | {"steps": 1, "validations": 1}}
    names = run(FUNCTION, {'"quickstart"': repr(write(recipe, tmp_path))})
    assert names["rows"][-1].name == "student"
    assert "similarity: object:centred@" in (Path(recipe["run"]) / "recipe.yaml").read_text()


def test_teachers_from_three_libraries(tmp_path):
    """As far as its plan, which loads no weights, since the real ones are not here."""
    transformers = pytest.importorskip("transformers")
    small = {"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4}
    config = transformers.ResNetConfig(**small, num_labels=1000)
    config.save_pretrained(tmp_path / "resnet-50")
    transformers.ConvNextImageProcessor(size={"shortest_edge": 224}).save_pretrained(tmp_path / "resnet-50")
    changes = {"microsoft/resnet-50": str(tmp_path / "resnet-50"), "import distill": "import plan as distill"}
    table = run(LIBRARIES, changes)["rows"].split("\nnetwork ")[1].split("\n\n")[0]
    lines = [line.split() for line in table.splitlines()]
    assert [(line[0], line[4]) for line in lines if len(line) > 6][-3:] == [
        ("resnet50.a1_in1k", "224"),
        ("convnext_tiny@IMAGENET1K_V1", "224"),
        ("resnet-50", "224"),
    ]


def test_the_notebook_has_no_outputs_and_is_one_page():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
    assert sum(len(cell.source.splitlines()) for cell in notebook.cells) <= 70
    assert "(notebook.ipynb)" in read("docs/api.md")


QUICK = "from helpers import quick; quick.measure_no_speed(setattr); quick.draw_nothing(setattr)"


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATHS)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(QUICK))
    (cell,) = [cell for cell in notebook.cells if "steps = 400" in cell.source]
    cell.source = cell.source.replace("steps = 400", "steps = 2")
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "object:DatasetDict@" in printed
    assert "\nstudent alone " in printed
    assert "student  step 2/2  in " in printed  # progress is shown while it trains
    assert (tmp_path / "runs/notebook/student/model.safetensors").is_file()


def test_the_reference_is_that_of_the_docstrings(capsys):
    """When this fails: python docs/make_reference.py > docs/reference.md"""
    runpy.run_path(str(ROOT / "docs/make_reference.py"), run_name="__main__")
    assert capsys.readouterr().out == read("docs/reference.md")
