"""Bad input: exit code 2, one screen of plain words, nothing written."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from conftest import CLASSES, ROOT, base_recipe, contents, draw_image, fill, image_folder, refused, tree, write


def test_a_missing_recipe_is_told_at_once(tmp_path):
    (tmp_path / "quickstart.yaml").touch()
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "train.py"), str(tmp_path / "quikstart.yaml")]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{tmp_path / 'quikstart.yaml'}: there is no such recipe. Did you mean '{tmp_path / 'quickstart.yaml'}'?\n"
    )
    assert time.monotonic() - started < 5  # in well under one on an idle machine; torch alone takes longer than five


def wrong_text(text: str | None) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        path = folder / "recipe.yaml"
        if text is not None:
            path.write_text(text)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "recipe.yaml: there is no such recipe."),
        ("", "recipe.yaml: the recipe is empty. Start from one that `meco-timm recipes` lists."),
        ("# only a comment\n", "recipe.yaml: the recipe is empty."),
        ("---\n", "recipe.yaml: the recipe is empty."),
    ],
    ids=["missing", "empty", "comment", "document"],
)
def test_a_recipe_that_is_not_there(tmp_path, capsys, text, told):
    assert told in refused(capsys, wrong_text(text)(tmp_path))


IN_THE_RECIPE: dict[str, tuple[str, str, list[str]]] = {
    # what: (key, value, what must be told)
    "unknown key": ("loop.batchsize", "8", ["loop.batchsize: there is no such key. Did you mean 'batch_size'?"]),
    "unknown section": ("lop.lr", "8", ["lop: there is no such key. Did you mean 'loop'?"]),
    "no teachers": ("teachers", "[]", ["teachers: the list of teachers is empty. Name at least one timm model"]),
    "null teachers": ("teachers", "null", ["teachers: input should be a valid list"]),
    "unknown similarity": (
        "losses.similarity",
        "kll",
        ["'kll' is not a value of this key: l1, l2, kl, ce, dist.", "'kl'"],
    ),
    "unknown block similarity": ("losses.block_similarity", "cosine", ["'cosine' is not a value of this key"]),
    "unknown adversary": (
        "discriminators.adversary",
        "minmax",
        ["'minmax' is not a value of this key: minimax, non_saturating, cooperative, none. Did you mean 'minimax'?"],
    ),
    "unknown sampling": ("zoo.sampling", "all", ["'all' is not a value of this key: random, average."]),
    "zero batch": ("loop.batch_size", "0", ["loop.batch_size: input should be greater than 0, but it is 0"]),
    "negative batch": ("loop.batch_size", "-8", ["loop.batch_size: input should be greater than 0, but it is -8"]),
    "zero epochs": ("loop.epochs", "0", ["loop.epochs: input should be greater than 0, but it is 0"]),
    "negative epochs": ("loop.epochs", "-1", ["loop.epochs: input should be greater than 0, but it is -1"]),
    "zero steps": ("loop.steps", "0", ["loop.steps: input should be greater than 0"]),
    "batch of a teacher": ("zoo.loop.batch_size", "0", ["zoo.loop.batch_size: input should be greater than 0"]),
    "weights of the wrong length": ("losses.blocks", "[1, 1, 1]", ["losses.blocks has 3 weights", "blocks is 2"]),
    "scale from large to small": (
        "data.augmentation.scale",
        "[1.0, 0.1]",
        ["data.augmentation: scale is written [smallest, largest], but 1.0 is larger than 0.1"],
    ),
    "negative weight": ("losses.blocks", "[1, -1]", ["losses.blocks.1: input should be greater than or equal to 0"]),
}


@pytest.mark.parametrize(("key", "value", "told"), IN_THE_RECIPE.values(), ids=IN_THE_RECIPE.keys())
@pytest.mark.parametrize("by", ["file", "command line"])
def test_a_wrong_recipe(recipe, tmp_path, capsys, key, value, told, by):
    if by == "command line":
        said = refused(capsys, write(recipe, tmp_path), f"{key}={value}")
        assert said.startswith("command line: ")
    else:
        section: Any = recipe
        *sections, last = key.split(".")
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = yaml.safe_load(value)
        path = write(recipe, tmp_path)
        said = refused(capsys, path)
        text = Path(path).read_text().splitlines()
        line = int(said.removeprefix(f"{path}:").split(":")[0])
        assert any(word in text[line - 1] for word in (last, sections[-1] if sections else last, "-"))
    assert all(words in said for words in told), said
    assert tree(tmp_path) == {"recipe.yaml"}


def one_class(folder: Path) -> list[str]:
    fill(folder, {"circle": 8})
    return ["holds 1 class folder(s) (circle); at least 2 are needed"]


def no_class(folder: Path) -> list[str]:
    folder.mkdir()
    draw_image(0, 0).save(folder / "lonely.png")
    return ["holds 1 image(s) and 0 class folder(s)"]


def empty_class(folder: Path) -> list[str]:
    fill(folder, {"circle": 8, "cross": 8, "dash": 0})
    return [f"the class folder {folder / 'dash'} is empty"]


def empty_class_in_one_split(folder: Path) -> list[str]:
    image_folder(folder)
    for file in (folder / "train/dash").iterdir():
        file.unlink()
    return [f"the class folder {folder / 'train/dash'} is empty"]


def parquet(folder: Path, labels: list[int], kind: Any) -> None:
    folder.mkdir(exist_ok=True)
    images = [{"bytes": (p := io.BytesIO(), draw_image(i % 3, i).save(p, "PNG"))[0].getvalue(), "path": None}
              for i in range(len(labels))]  # fmt: skip
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    if kind is not None:  # as a faulty file has it: the names say three classes, a label is beyond them
        meta = {"info": {"features": datasets.Features(image=datasets.Image(), label=kind).to_dict()}}
        import pyarrow.parquet

        arrow = table.data.table.replace_schema_metadata({"huggingface": json.dumps(meta)})
        pyarrow.parquet.write_table(arrow, folder / "train.parquet")
    else:
        table.to_parquet(folder / "train.parquet")


def negative_label(folder: Path) -> list[str]:
    parquet(folder, [0, 1, 2] * 5 + [-3], None)
    return ["labels out of range: row 15 of the train split has label -3", "3 classes (0 to 2)"]


def label_beyond_the_names(folder: Path) -> list[str]:
    parquet(folder, [0, 1, 2] * 5 + [7], datasets.ClassLabel(names=list(CLASSES)))
    return ["labels out of range: row 15 of the train split has label 7", "3 classes (0 to 2)"]


def gap_in_the_labels(folder: Path) -> list[str]:
    parquet(folder, [0, 1, 3] * 5, None)
    return ["empty class(es): 2"]


def too_few_images(folder: Path) -> list[str]:
    image_folder(folder, train_images=2)
    return ["loop.batch_size: 8", "more than the 4 training images", "Write at most 4"]


def not_there(folder: Path) -> list[str]:
    folder.with_name("dota").mkdir()
    return [f"there is no folder {folder}. Did you mean '{folder.with_name('dota')}'"]


DATA = [one_class, no_class, empty_class, empty_class_in_one_split, negative_label, label_beyond_the_names,
        gap_in_the_labels, too_few_images, not_there]  # fmt: skip


@pytest.mark.parametrize("make", DATA, ids=lambda make: make.__name__)
def test_data_that_cannot_be_used(tmp_path, capsys, make):
    told = make(tmp_path / "data")
    path = write(base_recipe(tmp_path / "data", tmp_path), tmp_path)
    before = contents(tmp_path)
    said = refused(capsys, path)
    assert "data.source: " in said or "loop.batch_size: " in said
    assert all(words in said for words in told), said
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("split", "workers"), [("train", 1), ("test", 0)])
def test_a_truncated_image_is_named(tmp_path, capsys, split, workers):
    image_folder(tmp_path / "data")
    broken = tmp_path / "data" / split / "cross/001.png"
    broken.write_bytes(broken.read_bytes()[:100])
    recipe = base_recipe(tmp_path / "data", tmp_path)
    recipe["data"] |= {"workers": workers, "validation": 0.0}
    recipe |= {"teachers": [{"train": "test_resnet"}], "loop": {"steps": 2, "batch_size": 8}}
    path = write(recipe, tmp_path)
    said = refused(capsys, path)
    assert "data.source: 1 image(s) cannot be read; nothing was trained" in said
    assert f"{broken}: " in said
    assert not (tmp_path / "run").exists()
    assert f"data.source: {broken}: the image cannot be read" in refused(capsys, path, "data.verify=none")


def test_more_labels_asked_for_than_there_are(recipe, tmp_path, capsys):
    path = write(recipe, tmp_path)
    assert "data.labelled: 100 must lie between 3" in refused(capsys, path, "data.labelled=100")
    assert "data.labelled: 2 must lie between 3" in refused(capsys, path, "data.labelled=2")
    assert tree(tmp_path) == {"recipe.yaml"}


@pytest.mark.parametrize(("key", "told"), [("train_split", "'nope' is not a split"), ("image_column", "no column")])
def test_names_that_the_data_do_not_have(recipe, tmp_path, capsys, key, told):
    said = refused(capsys, write(recipe, tmp_path), f"data.{key}=nope")
    assert f"data.{key}: " in said
    assert told in said


def test_an_unknown_policy_of_augmentation(recipe, tmp_path, capsys):
    said = refused(capsys, write(recipe, tmp_path), "data.augmentation.auto_augment=trivial", "--plan")
    assert said.startswith("data.augmentation.auto_augment: timm has no policy 'trivial'")


def test_a_folder_that_is_not_a_run_is_left_alone(recipe, tmp_path, capsys):
    fill(tmp_path / "run", {"photos": 1})
    before = contents(tmp_path / "run")
    said = refused(capsys, write(recipe, tmp_path))
    assert f"run: {tmp_path / 'run'} is not empty and not a run folder. Choose another with run=FOLDER." in said
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("place", ["file", "file/deep/run"])
def test_an_unwritable_run_folder(recipe, tmp_path, capsys, place):
    """Below a regular file nobody can write, whoever runs this."""
    (tmp_path / "file").write_text("mine")
    said = refused(capsys, write(recipe, tmp_path), f"run={tmp_path / place}")
    assert f"run: the folder {tmp_path / place} cannot be" in said
    assert (tmp_path / "file").read_text() == "mine"
    assert tree(tmp_path) == {"file", "recipe.yaml"}


def test_an_unwritable_zoo_folder(recipe, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    said = refused(capsys, write(recipe, tmp_path), f"zoo.folder={tmp_path / 'file/zoo'}")
    assert f"zoo.folder: {tmp_path / 'file/zoo'} cannot be written" in said
    assert (tmp_path / "file").read_text() == "mine"
