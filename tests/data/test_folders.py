"""Folders of image files: every image and class that lies there is used, named as passed over, or refused by name."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSES, ROOT, base_recipe, draw_image, fill, image_folder, write
from helpers.data import load, refused

import train
from benchmarks.data import seconds_to_walk
from meco_timm.data.names import split_name

SHARED = Path(os.environ.get("MECO_SHARED", ROOT.parent / "shared"))
MAKE = SHARED / "cases/make_folders.py"


# The collection of folders that is kept outside of the repository


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not MAKE.exists():
        pytest.skip(f"there is no {MAKE}")
    folder = tmp_path_factory.mktemp("cases")
    command = [sys.executable, str(MAKE), str(ROOT / "recipes/data/digits"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


CASES = (
    "plain", "class names with train in them", "file names with train and test in them", "one file called train.png",
    "train and test", "Train and Test", "capitals TRAIN and TEST", "Training and Testing", "training and testing",
    "train, valid and test", "nested", "one class nested", "a stray image beside the classes",
    "metadata.csv beside the classes", "a README.md beside the classes", "files of desktops", "brackets [2024]",
    "a space and ü", "linked class folders", "a linked root", "capital extensions",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_case_is_read_as_it_lies_there(cases, case):
    every = json.loads((cases / "cases.json").read_text(encoding="utf-8"))
    assert every.keys() == set(CASES)
    expected = every[case]
    data = load(cases / case, validation=0.1, test_fraction=0.25)
    assert data.classes == expected["classes"]
    test = expected["test"] or expected["train"] // 4
    assert len(data.test) == test
    assert len(data.train) + len(data.validation) == expected["train"] + (expected["test"] or 0) - test
    assert sum(len(paths) for paths in data.folders[0].skipped.values()) == expected["skipped"]


# The worst of them, and others of their kinds


def renamed(folder: Path) -> Path:
    """Class names that hold the name of a split, spaces, a bracket, ü, or begin with underscores."""
    return fill(folder / "[2024] ü", dict.fromkeys(["train_interior", "test tube", "__other__", "größe"], 8))


def split_words_in_files(folder: Path) -> Path:
    fill(folder, dict.fromkeys(CLASSES, 8))
    for name in CLASSES:
        for i, word in enumerate(("train", "test_1", "valid", "dev", "eval.1")):
            (folder / name / f"{i:03}.png").rename(folder / name / f"{word}.png")
    return folder


def capitals(folder: Path) -> Path:
    fill(folder / "Seg_Training Set", dict.fromkeys(CLASSES, 6))
    fill(folder / "TEST", dict.fromkeys(CLASSES, 2))
    return folder


def three_splits(folder: Path) -> Path:
    for name, count in (("train", 5), ("valid", 1), ("testing", 2)):
        fill(folder / name, dict.fromkeys(CLASSES, count))
    return folder


def nested(folder: Path) -> Path:
    fill(folder, dict.fromkeys(CLASSES, 4))
    for name in CLASSES:
        fill(folder / name, {"train": 2, "b/c": 2})
    return folder


def stray(folder: Path) -> Path:
    fill(folder, dict.fromkeys(CLASSES, 8))
    draw_image(0, 0).save(folder / "cover.png")
    return folder


def metadata_without_labels(folder: Path) -> Path:
    fill(folder, dict.fromkeys(CLASSES, 8))
    (folder / "metadata.csv").write_text("file_name,text\ncircle/000.png,a circle\n")
    return folder


def desktops(folder: Path) -> Path:
    fill(folder, dict.fromkeys(CLASSES, 8))
    for place in (".ipynb_checkpoints", "__MACOSX", "circle/@eaDir"):
        fill(folder / place, {"circle": 1})
    (folder / "dash/._000.png").write_bytes(b"\0")
    (folder / "dash/Thumbs.db").write_bytes(b"\0")
    return folder


def links(folder: Path) -> Path:
    """Linked class folders, a linked root, a loop, and a link to a folder of the same class."""
    fill(folder / "real", dict.fromkeys(CLASSES, 8))
    (folder / "classes").mkdir()
    for name in CLASSES:
        (folder / "classes" / name).symlink_to(folder / "real" / name, target_is_directory=True)
    (folder / "real/dash/loop").symlink_to(folder / "real/dash", target_is_directory=True)
    (folder / "real/dash/up").symlink_to(folder, target_is_directory=True)
    (folder / "root").symlink_to(folder / "classes", target_is_directory=True)
    return folder / "root"


def endings(folder: Path) -> Path:
    fill(folder, dict.fromkeys(CLASSES, 8))
    for i, ending in enumerate((".PNG", ".Tga", ".webp", ".jfif", ".jp2", ".avif")):
        file = folder / "cross" / f"{i:03}.png"
        file.rename(file.with_suffix(ending))
    return folder


def metadata(folder: Path) -> Path:
    """Labels in a file, images in one folder."""
    fill(folder, {"pictures": 24})
    rows = [f"pictures/{i:03}.png,{CLASSES[i % 3]},{i}" for i in range(24)]
    (folder / "metadata.csv").write_text("\ufefffile_name,label,number\n" + "\n".join(rows), encoding="utf-8")
    return folder


def metadata_by_hand(folder: Path) -> Path:
    """Spaces after the commas, a dot before the paths, lines as Windows ends them."""
    fill(folder, {"pictures": 24})
    rows = [f"./pictures/{i:03}.png, {CLASSES[i % 3]}" for i in range(24)]
    (folder / "metadata.csv").write_bytes("\r\n".join(["file_name, label", *rows]).encode())
    return folder


def metadata_with_a_capital(folder: Path) -> Path:
    fill(folder, {"pictures": 24})
    rows = [f"pictures/{i:03}.png,{CLASSES[i % 3]}" for i in range(24)]
    (folder / "metadata.csv").write_text("\n".join(["file_name , Label", *rows]))
    return folder


def metadata_whose_first_row_has_no_label(folder: Path) -> Path:
    fill(folder, {"p": 25})
    lines = [{"file_name": f"p/{i:03}.png", "label": CLASSES[i % 3]} for i in range(25)]
    del lines[0]["label"]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def metadata_lines(folder: Path) -> Path:
    """The same as JSON lines, one file per split, with numbers for labels."""
    for split, count in (("train", 18), ("test", 6)):
        fill(folder, {split: count})
        lines = [json.dumps({"file_name": f"{i:03}.png", "label": i % 3}) for i in range(count)]
        (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


WORST: dict[Callable[[Path], Path], tuple[list[str], int, int]] = {  # classes, images in all, image files passed over
    renamed: (["__other__", "größe", "test tube", "train_interior"], 32, 0),
    split_words_in_files: (sorted(CLASSES), 24, 0),
    capitals: (sorted(CLASSES), 24, 0),
    three_splits: (sorted(CLASSES), 24, 0),
    nested: (sorted(CLASSES), 24, 0),
    stray: (sorted(CLASSES), 24, 1),
    metadata_without_labels: (sorted(CLASSES), 24, 0),
    desktops: (sorted(CLASSES), 24, 4),
    links: (sorted(CLASSES), 24, 0),
    endings: (sorted(CLASSES), 24, 0),
    metadata: (sorted(CLASSES), 24, 0),
    metadata_by_hand: (sorted(CLASSES), 24, 0),
    metadata_with_a_capital: (sorted(CLASSES), 24, 0),
    metadata_whose_first_row_has_no_label: (sorted(CLASSES), 25, 0),
    metadata_lines: (["0", "1", "2"], 24, 0),
}


@pytest.mark.parametrize("make", WORST, ids=lambda make: make.__name__)
def test_what_lies_there_is_used(tmp_path, make):
    classes, images, passed_over = WORST[make]
    data = load(make(tmp_path / "data"), test_fraction=0.25)
    assert data.classes == classes
    assert len(data.train) + len(data.validation) + len(data.test) == images
    assert sum(map(len, data.folders[0].skipped.values())) == passed_over
    counts = data.class_counts()
    assert (counts["train"] + counts["validation"] + counts["test"] == images // len(classes)).all()


def test_a_validation_folder_beside_a_test_folder_is_the_validation_split(tmp_path):
    data = load(three_splits(tmp_path))
    paths = data.validation.split.read(data.validation.rows)
    assert {Path(one["path"]).parts[-3] for one in paths} == {"valid"}
    assert (len(data.train), len(data.validation), len(data.test)) == (15, 3, 6)
    assert not set(data.train.rows) & set(data.validation.rows)
    assert len(load(tmp_path, validation=0.0).validation) == 0
    assert len(load(tmp_path, test_split="valid").test) == 3  # by the folder's own name


def test_a_validation_folder_without_a_test_folder_is_the_test_split(tmp_path):
    fill(tmp_path / "train", dict.fromkeys(CLASSES, 6))
    fill(tmp_path / "val", dict.fromkeys(CLASSES, 2))
    assert len(load(tmp_path).test) == 6


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(name, "train") for name in ("train", "Training", "TRAIN_SET", "seg_train", "trainset", "train2017")],
        *[(name, "validation") for name in ("val", "valid", "Validation Set", "dev", "eval", "val_images")],
        *[(name, "test") for name in ("test", "Testing", "test-data", "seg_test", "testset")],
        *[
            (name, None)
            for name in ("train_interior", "railway", "trainer", "contest", "train_test", "images", "strain")
        ],
    ],
)
def test_names_of_splits(name, split):
    assert split_name(name) == split


def test_images_without_labels_are_read_from_any_folder(tmp_path):
    fill(tmp_path / "more", {"": 3, "deeper/still": 2})
    data = load(image_folder(tmp_path / "data"), unlabelled=str(tmp_path / "more"))
    assert len(data.train) == 27 + 5


# The plan


def test_the_plan_shows_what_was_found(tmp_path, capsys):
    desktops(stray(tmp_path / "data"))
    (tmp_path / "data/notes.txt").write_text("mine")
    fill(tmp_path / "data", {f"class {i:02}": 4 for i in range(12)} | {"a long name of a class": 20})
    assert train.main([write(base_recipe(tmp_path / "data", tmp_path), tmp_path), "--plan"]) == 0
    plan = " ".join(capsys.readouterr().out.split())
    assert "16 classes" in plan
    assert "… and 6 more" in plan
    assert "smallest: class 00 2 1 1" in plan
    assert "largest: a long name of a class 1" in plan
    assert "passed over: 1 image(s) beside the class folders: cover.png" in plan
    assert "passed over: 4 image(s) in hidden files and folders or those of a desktop: " in plan
    assert "not images: 1 .db, 1 .txt" in plan
    assert "no test folder: 0.2 of the images are held out as the test split" in plan


def test_the_plan_names_folders_in_class_folders_and_files_without_labels(tmp_path, capsys):
    fill(tmp_path / "data", {f"{name}/{inner}": 4 for name in CLASSES for inner in ("train", "test", "day 1")})
    (tmp_path / "data/metadata.csv").write_text("file_name,species\ndash/test/000.png,wren\n")
    assert train.main([write(base_recipe(tmp_path / "data", tmp_path), tmp_path), "--plan"]) == 0
    plan = " ".join(capsys.readouterr().out.split())
    inner = "day 1 (12 images), test (12 images), train (12 images)"
    assert f"folders in class folders, whose images count to the class: {inner}" in plan
    assert "warning: folders in class folders are no splits: test, train. Splits must be on the top level" in plan
    assert "no labels in metadata.csv (file_name, species)" in plan


def test_many_files_are_walked_quickly(tmp_path):
    """200,000 take under 2 s of CPU here; a tenth must take less than 2 s anywhere."""
    assert seconds_to_walk(tmp_path, 20_000, 100) < 2


PARTLY = {
    "words": (["circle", "", "dash", "circle", " ", "dash"], ["circle", "dash"]),
    "numbers": (["0", "", "1", "0", "-1", "1"], ["0", "1"]),
    "numbers as pandas writes them": (["0.0", "", "1.0", "0.0", "nan", "1.0"], ["0", "1"]),
    "JSON": ([0, None, 1, 0, float("nan"), 1], ["0", "1"]),
}


@pytest.mark.parametrize("what", PARTLY)
def test_rows_of_metadata_without_a_label_are_unlabelled_images(tmp_path, what, capsys):
    """As in tables: the student learns from them; in a split to measure on they are refused, with their number."""
    written, classes = PARTLY[what]

    def list_labels(split: str, labels: list[Any]) -> None:
        fill(tmp_path / "data", {split: len(labels)})
        named = [(f"{i:03}.png", label) for i, label in enumerate(labels)]
        if what == "JSON":
            lines = [json.dumps({"file_name": name, "label": label}) for name, label in named]
        else:
            lines = ["file_name,label", *(f"{name},{label}" for name, label in named)]
        (tmp_path / "data" / split / f"metadata.{'jsonl' if what == 'JSON' else 'csv'}").write_text("\n".join(lines))

    list_labels("train", written)
    list_labels("test", [written[i] for i in (0, 2)])
    data = load(tmp_path / "data", validation=0.0)
    assert data.classes == classes
    assert data.train.labels.tolist() == [0, -1, 1, 0, -1, 1]
    assert data.train.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.labelled.rows.tolist() == [0, 2, 3, 5]
    assert data.test.labels.tolist() == [0, 1]
    recipe = base_recipe(tmp_path / "data", tmp_path)
    assert train.main([write(recipe, tmp_path), "--plan", "loop.batch_size=2", "--quiet"]) == 0
    assert "2 training image(s) have no label: only the student learns from them" in capsys.readouterr().out
    list_labels("test", written)
    message = refused(tmp_path / "data")
    assert "2 of the 6 images of the test split have no label, so nothing can be measured on them" in message
