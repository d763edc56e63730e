"""A backbone as others get it: report, card, and features that plain timm gives after pulling it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT, backbone_recipe, draw_image
from helpers.browser import PROGRAM, Browser
from helpers.hub import TOKEN, card_errors, files
from huggingface_hub import ModelCard

from meco_timm import UserError, compare, distill, export_onnx, publish, report
from meco_timm.evaluation import load_pictures
from meco_timm.hub.card import model_card
from meco_timm.recipe import Publish
from meco_timm.reporting.results import Results, read_results


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of a backbone with a headless teacher and one with a head."""
    folder = tmp_path_factory.mktemp("backbone")
    distill(backbone_recipe(shapes, folder, steps=10))
    return folder / "run"


@pytest.fixture(scope="module")
def results(trained: Path) -> Results:
    return read_results(trained)


def test_the_card_is_valid_and_names_task_teachers_and_licences(results):
    origins = {
        name: {"start": f"timm/{i}", "hub": f"timm/{i}", "licence": licence}
        for i, (name, licence) in enumerate(zip(results.weights, ("dinov3-license", "apache-2.0"), strict=True))
    }
    there = results._replace(about=results.about | {"origins": origins})
    text = model_card(there, [], {}, Publish(repo="me/backbone", license="other:dinov3-license"))
    assert card_errors(text) == []
    data = ModelCard(text).data
    assert data.pipeline_tag == "image-feature-extraction"
    assert (data.license, data.license_name) == ("other", "dinov3-license")
    assert data.base_model == ["timm/0", "timm/1"]
    assert "The strictest of these licences is dinov3-license" in text
    assert 'timm.create_model("hf-hub:me/backbone", pretrained=True, num_classes=0)' in text
    assert 'timm.create_model("hf-hub:me/backbone", pretrained=True, features_only=True)' in text
    for row in results.rows:
        assert f"| {row.name.replace('_', '_')} | {row.knn:.2f} |" in text


def test_report_and_pictures(trained, results, tmp_path):
    page = report(trained).read_text()
    for heading in ("Features", "What the networks see", "Nearest images", "Training", "embedding: 1 − cosine"):
        assert heading in page
    pictures = load_pictures(trained / "pictures.safetensors")
    assert pictures is not None
    assert pictures.networks == [row.name for row in results.rows]
    for name in pictures.networks:
        assert pictures.colours[name].shape[0] == len(pictures.images) == 6
        shown = pictures.neighbours[name]
        assert shown.shape == (4, 6, 32, 32, 3)
    card = (trained / "student/README.md").read_text()
    named = set(re.findall(r"\]\((figures/[^)]+)\)", card))
    assert named == {"figures/features.png", "figures/nearest.png", "figures/curves.png"}
    assert all((trained / "student" / name).read_bytes().startswith(b"\x89PNG") for name in named)
    with pytest.raises(UserError, match="only runs of classifiers can be compared"):
        compare([trained, shutil.copytree(trained, tmp_path / "other")])


def test_its_embeddings_are_exported_and_it_has_no_space(trained, tmp_path):
    pytest.importorskip("onnxscript")
    assert export_onnx(trained, tmp_path).difference < 1e-5
    for settings in (Publish(repo="me/backbone", space="me/try"), Publish(repo="me/backbone", onnx=True)):
        with pytest.raises(UserError, match="onnx and space are for classifiers"):
            publish(trained, settings, dry_run=True)


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
def test_the_report_opens_without_complaint(trained):
    with Browser() as browser:
        browser.open(report(trained), 390)
        assert browser.complaints() == []
        assert browser.requests() == []
        assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


STRANGER = r"""
import re, sys
import timm, torch

torch.set_num_threads(1)
sys.modules["meco_timm"] = None
images = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
name = "hf-hub:me/backbone"
features = timm.create_model(name, pretrained=True, num_classes=0).eval()(images).detach()
pulled = [m.detach() for m in timm.create_model(name, pretrained=True, features_only=True).eval()(images)]
for lines in re.findall(r"```python\n(.*?)```", open(sys.argv[2]).read(), re.DOTALL):
    exec(lines)
torch.save((features, pulled, model(images).detach()), sys.argv[1])
"""


def test_what_is_pulled_gives_equal_features(hub, trained, tmp_path):
    """Pushed by `publish`, pulled by plain timm in a process of its own, and by the lines of the card."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    assert publish(run, Publish(repo="me/backbone", license="mit")) == "hf-hub:me/backbone"
    card = tmp_path / "card.md"
    card.write_bytes(files(hub, repo="me/backbone")["README.md"])
    draw_image(0, seed=0).save(tmp_path / "photo.jpg")
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": str(tmp_path / "hf/hub"), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-I", "-c", STRANGER, str(tmp_path / "features.pt"), str(card)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    features, maps, by_card = torch.load(tmp_path / "features.pt")
    images = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    place = f"local-dir:{run / 'student'}"
    here = timm.create_model(place, pretrained=True, num_classes=0).eval()(images).detach()
    assert torch.equal(features, here)
    assert torch.equal(by_card, here)
    wanted = timm.create_model(place, pretrained=True, features_only=True).eval()(images)
    assert all(torch.equal(a, b) for a, b in zip(maps, wanted, strict=True))


def test_a_backbone_that_is_not_what_the_table_says(hub, trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    table = run / "table.json"
    knn = read_results(run).row("student").knn
    text = table.read_text().replace(str(knn), str(knn + 40 if knn < 50 else knn - 40))
    table.write_text(text)
    with pytest.raises(UserError, match="but the table has"):
        publish(run, Publish(repo="me/backbone"))
    assert hub.requests == []
