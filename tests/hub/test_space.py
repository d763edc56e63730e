"""The Space of a student: what is uploaded, that its app predicts as `predict` does, and that it works in a browser."""

import io
import json
import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from conftest import draw_image
from helpers.browser import PROGRAM, Browser
from helpers.hub import TOKEN, files
from huggingface_hub import metadata_load
from PIL import Image

from meco_timm import UserError, predict, publish
from meco_timm.cli import main
from meco_timm.hub.space import space_files
from meco_timm.recipe import Publish
from meco_timm.reporting import read_results

SETTINGS = Publish(repo="me/student", space="me/try", examples=True, license="mit")
SPACE = "spaces/me/try"
NAMED = {"app.py", "requirements.txt", "README.md", "examples/1.png", "examples/2.png", "examples/3.png"}


pytestmark = pytest.mark.usefixtures("unchecked")


def test_the_space_goes_to_the_hub_beside_the_student(hub, run, tmp_path):
    publish(run, SETTINGS)
    pushed = files(hub, repo=SPACE)
    assert pushed.keys() == NAMED
    (tmp_path / "README.md").write_bytes(pushed["README.md"])
    front = metadata_load(tmp_path / "README.md")
    assert front is not None
    assert (front["sdk"], front["app_file"], front["models"], front["license"]) == (
        "gradio", "app.py", ["me/student"], "mit",
    )  # fmt: skip
    assert 'timm.create_model("hf-hub:me/student", pretrained=True)' in pushed["app.py"].decode()
    assert "https://huggingface.co/spaces/me/try" in files(hub)["README.md"].decode()
    publish(run, SETTINGS)  # again: the same
    assert files(hub, repo=SPACE) == pushed
    publish(run, SETTINGS.model_copy(update={"examples": False}))
    assert files(hub, repo=SPACE).keys() == NAMED - {f"examples/{i}.png" for i in (1, 2, 3)}


def test_examples_are_of_the_validation_split_and_nothing_but_pixels(run):
    results = read_results(run)
    made = space_files(results, SETTINGS)
    assert made.keys() == NAMED
    opened = [Image.open(io.BytesIO(made[name])) for name in sorted(NAMED) if name.startswith("examples")]
    assert {(image.mode, image.size) for image in opened} == {("RGB", (16, 16))}
    assert len({image.tobytes() for image in opened}) == 3
    train = [np.asarray(draw_image(i % 3, i)).tobytes() for i in range(36)]  # validation is a part of it
    assert all(image.tobytes() in train for image in opened)
    without = space_files(results, Publish(repo="me/student", space="me/try"))
    assert without.keys() == {"app.py", "requirements.txt", "README.md"}


def test_it_is_listed_and_as_private_as_the_student(hub, run, capsys):
    assert main(["publish", str(run), "--repo", "me/student", "--space", "me/try", "--examples", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "To the Space me/try, in one commit:" in printed
    assert all(f"  {name}\n" in printed for name in NAMED)
    assert hub.requests == []
    publish(run, SETTINGS.model_copy(update={"private": True}))
    assert hub.repos[SPACE].private
    assert main(["publish", str(run), "--repo", "me/student", "--space", "try"]) == 2
    assert "space is written owner/name" in capsys.readouterr().err


def test_a_space_of_others_is_not_replaced_unasked(hub, run):
    theirs = {"app.py": b"print()", "README.md": b"---\nsdk: gradio\n---\n"}
    hub.new_repo(SPACE, theirs)
    with pytest.raises(UserError, match=r"me/try contains another app \(.gitattributes, README.md, app.py\)"):
        publish(run, SETTINGS)
    assert files(hub, repo=SPACE) == theirs
    publish(run, SETTINGS.model_copy(update={"overwrite": True}))
    assert files(hub, repo=SPACE).keys() == NAMED


def pictures(folder: Path) -> dict[str, Path]:
    """An image file of each kind that a network could take in another way than it was trained on."""
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (20, 31)).astype("uint16")
    made = {
        "photo.png": draw_image(0, 7),
        "wide.png": Image.fromarray(rng.integers(0, 256, (50, 90, 3)).astype("uint8")),
        "transparent.png": Image.fromarray(rng.integers(0, 256, (24, 24, 4)).astype("uint8")),
        "palette.png": draw_image(1, 7).convert("P"),
        "grey.png": draw_image(2, 7).convert("L"),
        "deep.png": Image.fromarray(deep),
    }
    for name, image in made.items():
        image.save(folder / name, **({"transparency": 0} if name == "palette.png" else {}))
    return {name: folder / name for name in made}


def test_the_app_predicts_as_predict_does(run, tmp_path, monkeypatch):
    """Its code, without Gradio, on images of many kinds."""
    gradio = MagicMock()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    app = (
        space_files(read_results(run), SETTINGS)["app.py"]
        .decode()
        .replace("hf-hub:me/student", f"local-dir:{run}/student")
    )
    names: dict[str, Any] = {}
    exec(app, names)
    gradio.Interface.return_value.launch.assert_called_once()
    assert gradio.Image.call_args.kwargs["image_mode"] is None  # else it would convert the file
    paths = pictures(tmp_path)
    for one in predict(str(run), list(paths.values()), top=3, batch_size=1):
        said = names["classify"](one.file)
        assert one.fault is None
        assert max(said, key=said.get) == one.classes[0]
        assert [said[name] for name in one.classes] == pytest.approx(one.probabilities, abs=1e-6)
    assert names["classify"](None) == {}


@pytest.mark.skipif(PROGRAM is None or find_spec("gradio") is None, reason="needs Chromium and Gradio")
def test_it_classifies_an_image_in_a_browser(hub, run, tmp_path):
    """Started as the Hub would start it, with the student from the Hub."""
    publish(run, SETTINGS)
    folder = tmp_path / "space"
    for name, content in files(hub, repo=SPACE).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": str(tmp_path / "hf/hub"), "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(tmp_path / "gradio"),
    }  # fmt: skip
    paths = pictures(tmp_path)
    with subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=environment) as app:
        try:
            until = time.monotonic() + 120
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert app.poll() is None
                assert time.monotonic() < until
                time.sleep(0.2)
            with Browser() as browser:
                for name in ("transparent.png", "deep.png"):
                    browser.open(f"http://127.0.0.1:{port}", 1200)
                    browser.wait("!!document.querySelector('input[type=file]')")
                    browser.give(paths[name])
                    (one,) = predict(str(run), paths[name], top=1)
                    said = f"{' '.join(one.classes[0].split())} {100 * one.probabilities[0]:.0f}%"
                    browser.wait(f"document.body.innerText.replace(/\\s+/g, ' ').includes({json.dumps(said)})")
                browser.open(f"http://127.0.0.1:{port}", 1200)
                browser.wait("document.querySelectorAll('.gallery-item img').length == 3")
                browser.run("document.querySelector('.gallery-item').click()")
                browser.wait("document.body.innerText.includes('%')")
        finally:
            app.terminate()
