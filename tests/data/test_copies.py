"""What the check of all images finds beside broken ones: copies in two splits or classes, values of a small range."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from conftest import CLASSES, ROOT, base_recipe, image_folder, write
from helpers.data import PLAIN, load
from helpers.image_tables import parquet
from PIL import Image

import train
from meco_timm.common import UserError
from meco_timm.data import verify
from meco_timm.data.decoding import decode_file
from meco_timm.recipe.sections import Data

MAKE = Path(os.environ.get("MECO_SHARED", ROOT.parent / "shared")) / "cases/make_pictures.py"


def checked(folder: Path, state: Path, **changes: Any) -> tuple[Any, list[str]]:
    """(the data, the plan's lines)."""
    data = load(folder, **changes)
    settings = Data.model_validate(PLAIN | {"source": str(folder)} | changes)
    return data, verify(data, settings, state, Accelerator())


# Copies


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """36 training and 12 test images; 2 test images are training images, and one image is in two classes."""
    folder = image_folder(tmp_path / "data")
    shutil.copy(folder / "train/cross/003.png", folder / "test/cross/001.png")
    shutil.copy(folder / "train/dash/004.png", folder / "test/dash/002.png")
    shutil.copy(folder / "train/dash/005.png", folder / "train/circle/006.png")
    return folder


def test_copies_are_counted_and_named_and_nothing_is_removed(copied, tmp_path):
    for state in ("state", "state"):  # the second from the stored result
        data, lines = checked(copied, tmp_path / state, validation=0.0)
        assert lines == [
            "warning: 2 of 12 test images are also training images, so figures on them say too much: "
            f"{copied}/test/cross/001.png = {copied}/train/cross/003.png, "
            f"{copied}/test/dash/002.png = {copied}/train/dash/004.png",
            "warning: 2 images are in two classes, such as "
            f"{copied}/train/circle/006.png (circle) and {copied}/train/dash/005.png (dash)",
            "data.copies=drop takes such images out of the training",
        ]
        assert len(data.train) == len(data.labelled) == 36
        assert len(data.notes) == 2
    assert checked(image_folder(tmp_path / "other"), tmp_path / "state")[1] == []


def test_copies_are_left_out_where_the_recipe_says_so(copied, tmp_path):
    whole = load(copied, validation=0.0)
    data, lines = checked(copied, tmp_path / "state", validation=0.0, copies="drop")
    assert lines[-1] == "4 training image(s) are left out (data.copies: drop)"
    paths = {one["path"].removeprefix(f"{copied}/train/") for one in data.train.split.read(data.train.rows)}
    assert len(paths) == len(data.labelled) == len(data.alone) == 32
    assert not paths & {"cross/003.png", "dash/004.png", "dash/005.png", "circle/006.png"}
    assert len(data.test) == 12
    assert data.identity != whole.identity
    with pytest.raises(UserError, match=r"data\.copies: .* Write data\.verify=all"):
        checked(copied, tmp_path / "state", copies="drop", verify="none")


def test_copies_in_tables_are_found_too(tmp_path):
    """The rows of the test file are drawn as the first of the training file."""
    parquet(tmp_path / "data", [i % 3 for i in range(12)])
    parquet(tmp_path / "data", [0, 1, 2, 0], name="test")
    learned, held = tmp_path / "data/train.parquet", tmp_path / "data/test.parquet"
    _, lines = checked(tmp_path / "data", tmp_path / "state", validation=0.0)
    pairs = ", ".join(f"{held}: row {i} = {learned}: row {i}" for i in range(3))
    assert lines[0].startswith("warning: 4 of 4 test images are also training images")
    assert lines[0].endswith(f"{pairs} and 1 more")


def test_no_class_may_be_lost_with_its_copies(tmp_path):
    folder = image_folder(tmp_path / "data", 2, 1)
    for file in (folder / "train/dash").iterdir():
        shutil.copy(file, folder / "test/dash" / f"again_{file.name}")
    with pytest.raises(UserError, match=r"data\.copies: without copies no training image is left of dash"):
        checked(folder, tmp_path / "state", validation=0.0, copies="drop")


def test_the_table_of_a_run_carries_a_note(copied, tmp_path, capsys):
    recipe = base_recipe(copied, tmp_path)
    recipe |= {"teachers": [{"train": "test_resnet"}], "losses": {}, "discriminators": {}}
    recipe["loop"] |= {"steps": 1, "validations": 1}
    recipe["data"]["validation"] = 0.0
    assert train.main([write(recipe, tmp_path)]) == 0
    said = capsys.readouterr()
    assert "2 of 12 test images are also training images" in " ".join((tmp_path / "run/plan.txt").read_text().split())
    note = "Note: 2 of 12 test images are also training images, so figures on them say too much."
    assert note in said.out
    assert note in (tmp_path / "run/report.html").read_text()
    assert note in (tmp_path / "run/student/README.md").read_text()


# Values


def drawn(folder: Path, change: Any) -> Path:
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(6):
            noise = np.random.default_rng([i, len(name)]).integers(0, 4096, (24, 24)).astype(np.uint16)
            Image.fromarray(change(noise)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda noise: noise, "warning: the images use values from 0 to 15 of 0 to 255, which is nearly black."),
        (lambda noise: noise * 0, "warning: all images look the same (values from 0 to 0 of 0 to 255)"),
        (lambda noise: 60000 + noise, "warning: the images use values from 234 to 250 of 0 to 255. If they hold"),
        (lambda noise: noise * 16, None),
    ],
)
def test_values_of_a_small_range_are_warned_of(tmp_path, change, line):
    _, lines = checked(drawn(tmp_path / "data", change), tmp_path / "state", test_fraction=0.25)
    values = [one for one in lines if "values from" in one]
    assert [one.startswith(line) for one in values] == [True] if line else values == []


# The collection of pictures that is kept outside of the repository


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not MAKE.exists():
        pytest.skip(f"there is no {MAKE}")
    folder = tmp_path_factory.mktemp("pictures")
    command = [sys.executable, str(MAKE), str(ROOT / "recipes/data/digits"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


FORMS = (
    "reference", "grey of 16 bits, PNG", "grey of 16 bits, TIFF", "12 bits in 16", "shape in alpha", "half see-through",
    "palette with a see-through colour", "all alike", "CMYK",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_picture_is_as_its_list_says(pictures, tmp_path, form):
    every = json.loads((pictures / "pictures.json").read_text())
    assert every.keys() == set(FORMS)
    about = every[form]
    files = sorted(path for path in (pictures / form).rglob("*") if path.is_file())
    for file in files[::10] if "pixels" in about else ():
        like = pictures / {"same": "reference", "on white": f"wanted/{form}"}[about["pixels"]]
        expected = np.asarray(Image.open(like / file.parent.name / f"{file.stem}.png").convert("RGB")).astype(int)
        assert np.abs(np.asarray(decode_file(str(file))) - expected).max() <= about.get("within", 0)
    _, lines = checked(pictures / form, tmp_path, test_fraction=0.25)
    warned = {"dark": "nearly black", "same": "look the same"}
    found = [word for word, said in warned.items() if any(said in line for line in lines)]
    assert found == ([about["warned"]] if "warned" in about else [])
