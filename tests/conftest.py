"""What all tests share: one thread per process, private caches, tiny data sets and recipes.

The environment is set before torch and `datasets` are imported, and subprocesses inherit it.
"""
# ruff: noqa: E402

import os
import tempfile
from pathlib import Path
from typing import Any

_CACHE = tempfile.TemporaryDirectory(prefix="meco-timm-tests-")
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HOME": _CACHE.name,
    "HF_DATASETS_CACHE": f"{_CACHE.name}/datasets",
    "HF_HUB_CACHE": f"{_CACHE.name}/hub",
    "HF_HUB_OFFLINE": "1",
    "ACCELERATE_USE_CPU": "true",
}

import gc
import signal
from collections.abc import Iterator

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from helpers.checkpoints import local_dir, network
from helpers.hub import hub, run, unchecked  # noqa: F401  fixtures
from helpers.quick import draw_nothing, measure_no_speed
from PIL import Image

import meco_timm.pipeline  # noqa: F401  all that a run imports
import train

torch.set_num_threads(1)
gc.freeze()  # each training ends with a collection, which need not look at every module again

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("circle", "cross", "dash")
SIZE = 16  # pixels of the stored images; recipes ask for 32


def draw_image(label: int, seed: int) -> Image.Image:
    """A noisy picture of class `label`: a brighter band at the label's height."""
    pixels = np.random.default_rng(seed).integers(0, 60, (SIZE, SIZE, 3))
    pixels[5 * label + 1 : 5 * label + 4] += 150
    return Image.fromarray(pixels.astype("uint8"))


def fill(folder: Path, counts: dict[str, int], first_seed: int = 0) -> Path:
    """Class folders of PNG files: `counts` says how many of each class."""
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            draw_image(label % 3, first_seed + 1000 * label + i).save(folder / name / f"{i:03}.png")
    return folder


def image_folder(folder: Path, train_images: int = 12, test_images: int = 4) -> Path:
    """A data set of class folders under train/ and test/, so many images per class."""
    fill(folder / "train", dict.fromkeys(CLASSES, train_images))
    fill(folder / "test", dict.fromkeys(CLASSES, test_images), first_seed=500)
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three classes, 12 training and 4 test images each. Read only."""
    return image_folder(tmp_path_factory.mktemp("data") / "shapes")


def base_recipe(source: Path | str, folder: Path) -> dict[str, Any]:
    """The smallest recipe that does everything; runs and zoo below `folder`. Change it and `write` it."""
    return {
        "run": str(folder / "run"),
        "data": {
            "source": str(source),
            "image_size": 32,
            "crop_pct": 1.0,
            "workers": 0,
            "validation": 0.25,
            "augmentation": {"scale": [0.7, 1.0], "hflip": 0},
        },
        "teachers": [{"train": "test_resnet"}, {"train": "test_vit"}],
        "student": "test_efficientnet",
        "alignment": {"blocks": 2, "method": "grid", "length": 32},
        "zoo": {"folder": str(folder / "zoo"), "sampling": "random"},
        "losses": {"blocks": 0.3},
        "discriminators": {"adversary": "minimax", "on": "all"},
        "loop": {"steps": 4, "batch_size": 8, "lr": 2e-3, "validations": 2, "log_every": 1},
    }


def backbone_recipe(source: Path, folder: Path, steps: int) -> dict[str, Any]:
    """The smallest recipe of a backbone: a headless teacher and one with ten classes that nobody knows."""
    headless = local_dir(folder / "headless", network("test_vit", 0, img_size=32))
    classifier = local_dir(folder / "classifier", network("test_resnet", 10))
    return {
        "task": "backbone",
        "run": str(folder / "run"),
        "data": {"source": str(source), "image_size": 32, "crop_pct": 1.0, "workers": 0},
        "teachers": [{"model": headless, "size": 32}, {"model": classifier, "size": 32}],
        "student": "test_efficientnet",
        "alignment": {"blocks": 2, "length": 256},
        "zoo": {"folder": str(folder / "zoo")},
        "loop": {"steps": steps, "batch_size": 8, "lr": 2e-3, "log_every": 1},
    }


def write(recipe: dict[str, Any], folder: Path, name: str = "recipe.yaml") -> str:
    """The recipe as a YAML file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return str(path)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Benchmarks set a handler for SIGTERM, which processes that a later test forks would inherit."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def quick_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no speeds, and draw the charts of a run only in the tests of pages and cards."""
    measure_no_speed(monkeypatch.setattr)
    if not {"reporting", "hub"} & set(request.path.parts):
        draw_nothing(monkeypatch.setattr)


@pytest.fixture
def recipe(shapes: Path, tmp_path: Path) -> dict[str, Any]:
    return base_recipe(shapes, tmp_path)


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator()


def tree(folder: Path) -> set[str]:
    """All files below `folder`, relative to it; the zoo's locks, checked images and kept logits do not count."""
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {str(file) for file in files if not {".locks", ".images", ".logits"} & set(file.parts)}


def contents(folder: Path) -> dict[str, bytes]:
    """All files below `folder` and what is in them."""
    return {name: (folder / name).read_bytes() for name in tree(folder)}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command; it must end with code 2 and one screen of plain words on stderr, which are returned."""
    capsys.readouterr()
    code = train.main(["--quiet", *arguments])
    printed = capsys.readouterr()
    assert code == 2, printed
    assert "Traceback" not in printed.out + printed.err
    assert 0 < len(printed.err.strip().splitlines()) <= 24
    return printed.err


ODD_CLASSES = ("<img src=x onerror=alert(1)>", "[cross](javascript:x) *b* |c|", "dash & $\\frac$ `q`\u2028 _u_")


@pytest.fixture(scope="session")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that learned to tell three classes with odd names apart. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("ended")
    (folder / "shapes").mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(ODD_CLASSES))})
    for part, count, seed in (("train", 36, 0), ("test", 18, 500)):
        images = {"image": [draw_image(i % 3, seed + i) for i in range(count)], "label": [i % 3 for i in range(count)]}
        datasets.Dataset.from_dict(images, features).to_parquet(folder / "shapes" / f"{part}.parquet")
    recipe = base_recipe(folder / "shapes", folder)
    recipe |= {
        "losses": {"labels": 10.0, "blocks": 0.3},
        "teachers": [{"train": "test_resnet"}, {"train": "test_efficientnet"}],
    }
    recipe["loop"] |= {"steps": 30, "batch_size": 16, "lr": 5e-3}
    assert train.main([write(recipe, folder)]) == 0
    return folder / "run"
