"""From image files to class names: what plain timm says of them, one line each, and every bad file named."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from conftest import ODD_CLASSES, ROOT, draw_image
from helpers.checkpoints import local_dir, network
from PIL import Image

from meco_timm import predict
from meco_timm.cli import main
from meco_timm.common.errors import UserError
from meco_timm.networks import LOGITS_ONLY, export, student_stream
from meco_timm.recipe import Data
from meco_timm.recipe import Network as RecipeNetwork


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "a [1] ü").mkdir()
    for i in range(3):
        draw_image(i, 900 + i).save(folder / "a [1] ü" / f"{i}.PNG")
    draw_image(1, 950).save(folder / "other.jpg")
    return folder


def test_it_gives_what_plain_timm_gives(ended, photos):
    model = f"local-dir:{ended / 'student'}"
    found = predict(model, photos, top=3, batch_size=3)
    assert [Path(one.file).name for one in found] == ["0.PNG", "1.PNG", "2.PNG", "other.jpg"]
    net = timm.create_model(model, pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
    for one in found:
        shares = net(transform(Image.open(one.file).convert("RGB"))[None]).softmax(1)[0]
        assert one.classes == [ODD_CLASSES[i] for i in shares.argsort(descending=True)]
        np.testing.assert_allclose(
            one.probabilities, shares.sort(descending=True).values.detach(), rtol=1e-4, atol=1e-6
        )
    assert [one.classes[0] for one in found[:3]] == list(ODD_CLASSES)  # the run has learned them


def test_names_and_shares_are_printed(ended, photos, capsys):
    assert main(["predict", f"local-dir:{ended / 'student'}", str(photos / "other.jpg"), "--top", "1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{re.escape(str(photos))}/other.jpg: {re.escape(ODD_CLASSES[1])} \d+\.\d%", line)


def test_csv_has_a_line_for_each_image(ended, photos, capsys):
    assert main(["predict", f"local-dir:{ended / 'student'}", str(photos), "--csv", "--top", "2"]) == 0
    head, *lines = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    assert head == ["file", "class", "share", "class_2", "share_2"]
    assert len(lines) == 4
    assert all(float(line[2]) >= float(line[4]) for line in lines)
    assert {line[1] for line in lines} == set(ODD_CLASSES)


def test_json_and_a_list_of_paths_on_standard_input(ended, photos, tmp_path, capsys, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    files = [str(photos / "other.jpg"), str(tmp_path / "broken.png"), str(photos / "a [1] ü/0.PNG")]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*files, ""])))
    assert main(["predict", str(ended), "-", "--json"]) == 2  # a run folder
    said = capsys.readouterr()
    good, bad, other = map(json.loads, said.out.splitlines())
    assert [one["file"] for one in (good, bad, other)] == files
    assert (good["classes"], good["fault"]) == (predict(str(ended), files[0])[0].classes, None)
    assert good["probabilities"] == pytest.approx(predict(str(ended), files[0])[0].probabilities, rel=1e-4)
    assert "cannot identify image file" in bad["fault"]
    assert said.err.startswith("predict: 1 image(s) cannot be read:\n")
    assert main(["predict", str(ended), files[0], "--csv", "--json"]) == 2
    assert "--csv and --json exclude each other" in capsys.readouterr().err


def test_bad_images_are_named_at_the_end_and_lose_no_other(ended, photos, tmp_path, capsys, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    Image.new("1", (300, 300)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)  # Pillow refuses twice as many
    names = [str(tmp_path / "broken.png"), str(tmp_path / "large.png"), str(photos / "other.jpg")]
    assert main(["predict", f"local-dir:{ended / 'student'}", *names, "--csv"]) == 2
    said = capsys.readouterr()
    assert [line.split(",")[0] for line in said.out.strip().split("\n")] == ["file", names[2]]
    assert said.err.startswith("predict: 2 image(s) cannot be read:\n")
    assert f"{names[0]}: cannot identify image file" in said.err
    assert f"{names[1]}: Image size (90000 pixels) exceeds limit" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("path", "said"),
    [("nothing.jpg", r"predict: there is no file or folder nothing.jpg \(relative to /"), (".", "holds no images")],
)
def test_no_file_and_an_empty_folder(ended, tmp_path, monkeypatch, capsys, path, said):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", f"local-dir:{ended / 'student'}", path]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_networks_without_names_grey_ones_and_those_of_imagenet(photos, tmp_path):
    image = photos / "other.jpg"
    data_config = {"input_size": (1, 48, 48), "mean": (0.5,), "std": (0.5,)}
    grey = local_dir(tmp_path / "grey", network("test_resnet", 4, in_chans=1), data_config=data_config)
    (found,) = predict(grey, image, top=9)
    assert sorted(found.classes) == ["0", "1", "2", "3"]
    assert sum(found.probabilities) == pytest.approx(1, abs=1e-4)
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    (named,) = predict(grey, image, classes=str(tmp_path / "names.txt"))
    assert named.classes[0] == "abcd"[int(found.classes[0])]
    with pytest.raises(UserError, match="has 4 names, the network 1000 classes"):
        predict(local_dir(tmp_path / "large", network("test_resnet", 1000)), image, 3, str(tmp_path / "names.txt"))
    (words,) = predict(f"local-dir:{tmp_path / 'large'}", image, top=1000)
    assert "goldfish, Carassius auratus" in words.classes
    blind = local_dir(tmp_path / "blind", network("test_vit", 0))
    with pytest.raises(UserError, match="has no head, so it gives no classes"):
        predict(blind, image)


def test_the_cards_lines_go_from_a_file_to_a_class(ended, photos, tmp_path):
    """In a fresh process that knows only timm."""
    (lines,) = re.findall(r"```python\n(.*?)```", (ended / "student/README.md").read_text(), re.DOTALL)
    (tmp_path / "photo.jpg").write_bytes((photos / "other.jpg").read_bytes())
    (tmp_path / "student").symlink_to(ended / "student")
    code = "import sys\nsys.modules['meco_timm'] = None\n" + lines
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(ODD_CLASSES[1])
    (found,) = predict(f"local-dir:{ended / 'student'}", photos / "other.jpg", top=1)
    assert float(done.stdout.rsplit(" ", 1)[1]) == pytest.approx(found.probabilities[0], rel=1e-3)


FORMS = {
    "RGBA": lambda image: Image.merge("RGBA", [*image.split(), image.convert("L")]),
    "LA": lambda image: Image.merge("LA", [image.convert("L"), image.getchannel(2)]),
    "palette": lambda image: image.quantize(16),
    "16 bits": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_cards_lines_predict_transparent_and_deep_images_as_predict_does(ended, photos, tmp_path, form):
    with Image.open(photos / "other.jpg") as photo:
        options = {"transparency": bytes(range(0, 256, 16))} if form == "palette" else {}
        FORMS[form](photo).save(tmp_path / "photo.png", **options)
    (lines,) = re.findall(r"```python\n(.*?)```", (ended / "student/README.md").read_text(), re.DOTALL)
    lines = re.sub(r'"local-dir:[^"]+"', repr(f"local-dir:{ended / 'student'}"), lines)
    names: dict[str, Any] = {}
    exec(lines.replace("photo.jpg", str(tmp_path / "photo.png")), names)
    (found,) = predict(f"local-dir:{ended / 'student'}", tmp_path / "photo.png", top=1)
    assert found.classes == [names["model"].pretrained_cfg["label_names"][names["index"].item()]]
    assert found.probabilities[0] == pytest.approx(names["prob"].item(), rel=1e-4)


def test_a_student_knows_its_background(tmp_path):
    """A red square that is transparent elsewhere, on black and on white."""
    stream = student_stream(RecipeNetwork(model="test_resnet"), LOGITS_ONLY, 3, 32, seed=0)
    alpha = Image.new("L", (32, 32), 0)
    alpha.paste(255, (8, 8, 24, 24))
    Image.merge("RGBA", [Image.new("L", (32, 32), shade) for shade in (255, 0, 0)] + [alpha]).save(tmp_path / "a.png")
    found = {}
    for name, background in (("white", [255, 255, 255]), ("black", [0, 0, 0])):
        export(stream, tmp_path / name, list("abc"), Data(source="x", crop_pct=1.0, background=background), {})
        on = Image.new("RGB", (32, 32), name)
        on.paste((255, 0, 0), (8, 8, 24, 24))
        on.save(tmp_path / f"{name}.png")
        network = f"local-dir:{tmp_path / name}"
        one, same = predict(network, [tmp_path / "a.png", tmp_path / f"{name}.png"])
        assert one.probabilities == pytest.approx(same.probabilities, rel=1e-5)
        found[name] = one.probabilities
    assert found["white"] != pytest.approx(found["black"], rel=1e-3)


@pytest.mark.parametrize("document", ["README.md", "docs/publish.md"])
def test_the_documents_have_the_same_lines(document, ended):
    card = re.findall(r"```python\n(.*?)```", (ended / "student/README.md").read_text(), re.DOTALL)[0]
    text = (ROOT / document).read_text(encoding="utf-8")
    assert re.sub(r'"(local-dir|hf-hub):[^"]+"', "NAME", card) in re.sub(r'"(local-dir|hf-hub):[^"]+"', "NAME", text)
