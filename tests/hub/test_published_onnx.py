"""A published student with `publish.onnx`, pulled by ONNX Runtime and by transformers.js from a stand-in of the Hub."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.hub import files
from PIL import Image
from test_exporting import metadata, outputs

from meco_timm.data import load_data
from meco_timm.hub import publish
from meco_timm.recipe import Data, Publish
from meco_timm.reporting import read_results

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# A folder in which `npm install --ignore-scripts @huggingface/transformers` was run.
LIBRARY = Path(os.environ.get("TRANSFORMERS_JS", ".")) / (
    "node_modules/@huggingface/transformers/dist/transformers.node.mjs"
)
SCRIPT = """
import { AutoModel, AutoImageProcessor, RawImage, env } from "%s";
env.remoteHost = "%s"; env.allowLocalModels = false; env.cacheDir = "%s";
const model = await AutoModel.from_pretrained("me/student", { dtype: "fp32" });
const processor = await AutoImageProcessor.from_pretrained("me/student");
const found = [];
for (const file of process.argv.slice(2)) {
  const { logits } = await model(await processor(await RawImage.read(file)));
  found.push(logits.data.indexOf(Math.max(...logits.data)));
}
console.log(JSON.stringify(found));
"""


def test_one_class_in_timm_onnx_runtime_and_transformers_js(ended, hub, tmp_path):
    run = Path(shutil.copytree(ended, tmp_path / "run"))
    publish(run, Publish(repo="me/student", onnx=True))
    pushed = files(hub)
    assert {"onnx/model.onnx", "onnx/model_int8.onnx", "preprocessor_config.json"} <= set(pushed)
    assert "transformers.js" in pushed["README.md"].decode()
    assert "student, int8" in pushed["README.md"].decode()

    keys = read_results(run).recipe
    data = load_data(Data.model_validate(keys["data"]), keys["seed"])
    splits = (data.labelled, data.validation, data.test)
    image = torch.cat([batch.image for images in splits for batch in data.in_order(images, 100)])[:50]
    assert len(image) == 50
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "pulled" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "pulled" / file).write_bytes(pushed[file])
    model = timm.create_model(f"local-dir:{tmp_path / 'pulled'}", pretrained=True).eval()
    place = tmp_path / "model.onnx"
    place.write_bytes(pushed["onnx/model.onnx"])
    mean, std = (torch.tensor(metadata(place)[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = (image.float() / 255 - mean) / std
    with torch.no_grad():
        classes = model(pixels).argmax(1).tolist()
    assert outputs(place, pixels).argmax(1).tolist() == classes

    processor = json.loads(pushed["preprocessor_config.json"])
    assert processor["crop_size"] == {"height": 32, "width": 32}
    assert processor["image_mean"] == pytest.approx(mean.flatten().tolist())
    if LIBRARY.exists() and shutil.which("node"):
        assert in_node(image, f"http://127.0.0.1:{hub.server_port}/", tmp_path) == classes


def in_node(image: torch.Tensor, host: str, folder: Path) -> list[int]:
    """The classes that transformers.js predicts for these images, as PNG files."""
    paths = []
    for i, pixels in enumerate(image.numpy()):
        paths.append(str(folder / f"{i}.png"))
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(paths[-1])
    script = folder / "classify.mjs"
    script.write_text(SCRIPT % (LIBRARY.resolve(), host, folder / "cache"))
    done = subprocess.run(["node", str(script), *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
