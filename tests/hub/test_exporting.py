"""Export to ONNX: the file gives PyTorch's logits, says how to prepare images, and can have eight bits."""

import json
import re
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ODD_CLASSES
from PIL import Image
from timm.data import create_transform, resolve_data_config

from meco_timm.common import UserError, require_extra
from meco_timm.data import load_data
from meco_timm.evaluation import Row
from meco_timm.hub import export_onnx
from meco_timm.hub.card import model_card
from meco_timm.hub.exporting import compare_int8
from meco_timm.networks import bare_stream, onnx_file
from meco_timm.recipe import Data, Network, Publish
from meco_timm.reporting import read_results

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def outputs(file, image):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]


def metadata(file):
    return {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}


@pytest.fixture(scope="module")
def exported(ended, tmp_path_factory):
    """A run with both files, and what was returned."""
    run = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(ended, run)
    return run, export_onnx(run, int8=True)


def test_the_file_has_the_accuracy_of_the_table_to_the_image(exported):
    """Longhand: the images of the test split, prepared with numpy from the file's metadata."""
    run, export = exported
    results = read_results(run)
    facts, data = metadata(export.file), load_data(Data.model_validate(results.recipe["data"]), results.recipe["seed"])
    batch = next(iter(data.in_order(data.test, 100)))
    mean, std = (np.float32(facts[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    image = torch.from_numpy((np.float32(batch.image.numpy()) / 255 - mean) / std)
    right = outputs(export.file, image).argmax(1) == batch.label.numpy()
    assert 100 * right.mean() == pytest.approx(results.row("student").top1)
    assert facts["classes"] == list(ODD_CLASSES)
    assert facts["input_size"] == [3, 32, 32]
    assert (facts["crop_pct"], facts["interpolation"], facts["normalised_inside"]) == (1.0, "bicubic", False)


def test_the_lines_of_the_card_give_timms_pixels(exported, tmp_path, monkeypatch):
    """For images whose sides differ, and a network that sees the middle of them."""
    run = shutil.copytree(exported[0], tmp_path / "run")
    config = json.loads((run / "student/config.json").read_text())
    config["pretrained_cfg"] |= {"crop_pct": 0.8, "interpolation": "bilinear"}
    (run / "student/config.json").write_text(json.dumps(config))
    model, file = onnx.load(exported[1].file), str(tmp_path / "model.onnx")
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in model.metadata_props} | {
        "crop_pct": "0.8", "interpolation": '"bilinear"',
    })  # fmt: skip
    onnx.save(model, file)
    card = model_card(read_results(run), ["a", "b", "c"], {}, Publish(repo="me/student", onnx=True))
    card = card.replace("photo.jpg", "photo.png").replace("hf-hub:me/student", f"local-dir:{run}/student")
    by_timm, by_onnx = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: file)
    rng = np.random.default_rng(0)
    for shape in ((31, 77, 3), (90, 41, 4), (29, 29), (32, 32, 3)):
        Image.fromarray(rng.integers(0, 256, shape).astype("uint8")).save("photo.png")
        timms: dict[str, Any] = {}
        onnxs: dict[str, Any] = {}
        exec(by_timm, timms)
        exec(by_onnx, onnxs)
        pixels = timms["transform"](timms["image"])
        np.testing.assert_allclose(onnxs["pixels"].transpose(2, 0, 1), pixels, atol=1e-6)
        np.testing.assert_allclose(onnxs["logits"], timms["model"](pixels[None])[0].detach(), atol=1e-4)


def test_rows_of_the_files_are_in_the_table_card_and_page(exported):
    run, _ = exported
    results = read_results(run)
    assert [row.name for row in results.exports] == ["student, ONNX", "student, int8"]
    exact, eight = results.exports
    assert exact.top1 == results.row("student").top1
    assert abs(eight.top1 - exact.top1) <= 100 / 18 * 2
    assert eight.megabytes < exact.megabytes
    assert eight.latency_ms > 0
    assert "student, int8" in (run / "report.html").read_text()
    assert results.teachers == ["test_resnet", "test_efficientnet"]  # the files are no teachers
    export_onnx(run)
    assert [row.name for row in read_results(run).exports] == ["student, ONNX", "student, int8"]


def test_with_preprocessing_inside_any_rgb_image_is_normalised(tmp_path):
    export = export_onnx("test_resnet", tmp_path, preprocess=True, size=64)
    stream = bare_stream(Network(model="test_resnet"), 64)
    image = torch.rand(3, 3, 64, 64)
    assert metadata(export.file)["normalised_inside"] is True
    assert outputs(export.file, image).shape == (3, 1000)
    assert export.difference < 1e-4
    with torch.no_grad():
        assert outputs(export.file, image) == pytest.approx(stream.logits(image).numpy(), abs=1e-4)


def test_metadata_are_timms_config(tmp_path):
    facts = metadata(export_onnx("test_vit", tmp_path).file)
    config = resolve_data_config(model=bare_stream(Network(model="test_vit")).model)
    assert facts["crop_pct"] == config["crop_pct"]
    assert facts["interpolation"] == config["interpolation"]
    assert tuple(facts["mean"]) == config["mean"]
    assert create_transform(**config)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda output: output + 0.01, "differ from PyTorch's by"),
        (lambda output: output * float("nan"), "differ from PyTorch's by nan"),
    ],
)
def test_a_file_that_computes_something_else_is_an_error(tmp_path, monkeypatch, wrong, message):
    export = onnx_file._export

    class Other(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, image):
            return wrong(self.network(image))

    monkeypatch.setattr(onnx_file, "_export", lambda network, example: export(Other(network).eval(), example))
    with pytest.raises(UserError, match=message):
        export_onnx("test_resnet", tmp_path, size=32)


def test_what_cannot_be_exported_is_one_line(tmp_path, monkeypatch):
    def forward(image):
        raise RuntimeError("data-dependent control flow\nsecond line")

    def broken(network, example):
        forward(example)

    monkeypatch.setattr(onnx_file, "_export", broken)
    with pytest.raises(UserError) as error:
        export_onnx("test_resnet", tmp_path, size=32)
    assert str(error.value) == ("export: torch cannot export ResNet to ONNX: RuntimeError: data-dependent control flow")
    assert not list(tmp_path.iterdir())


def test_eight_bits_need_images(tmp_path):
    with pytest.raises(UserError, match="--data"):
        export_onnx("test_resnet", tmp_path, int8=True)


def test_a_missing_library_is_named():
    message = r"not installed: nosuch \(extra `export`\). Write: pip install nosuch$"
    with pytest.raises(UserError, match=message):
        require_extra("export", "torch", "nosuch")


def test_a_loss_above_a_point_is_called_one():
    row = Row("student, ONNX", 90.0, None, 0.3, 2.0, 1, 1, 1.0, 90.0, {}, latency_ms=2.0, megabytes=4.0)
    assert compare_int8(row, row._replace(top1=89.5, latency_ms=1.0, megabytes=1.0)) == (
        "With eight bits: −0.50 points of top-1, 4.0 times smaller, 2.0 times as fast."
    )
    assert "This is a loss" in compare_int8(row, row._replace(top1=88.9))
