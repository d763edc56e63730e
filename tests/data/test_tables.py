"""Labels of tables and tars: classes by name in every file, missing labels, and columns that hold no classes."""

import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CLASSES, ROOT, base_recipe, draw_image, write
from helpers.data import load, refused
from helpers.image_tables import parquet, picture, tar

import train
from meco_timm.common import UserError

SHARED = Path(os.environ.get("MECO_SHARED", ROOT.parent / "shared"))
MAKE = SHARED / "cases/make_tables.py"
NAMES = list(CLASSES)
CASES = (
    "classes in another order in the test split", "labels missing, text null", "labels missing, empty text",
    "labels missing, NaN", "labels missing, whole numbers null", "several labels an image",
    "names that differ in a space", "two columns that could be the label", "hidden labels in the test split",
    "tars, dots in folders", "tars, dots in names",
)  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not MAKE.exists():
        pytest.skip(f"there is no {MAKE}")
    folder = tmp_path_factory.mktemp("tables")
    command = [sys.executable, str(MAKE), str(ROOT / "recipes/data/digits"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def counted(data: Any) -> dict[str, Any]:
    """Number of images of each class, of the training images (with validation) and the test images."""
    counts = data.class_counts()
    found = {"train": counts["train"] + counts["validation"], "test": counts["test"]}
    named = {part: {n: int(c) for n, c in zip(data.classes, its, strict=True) if c} for part, its in found.items()}
    return {**named, "unlabelled": int((data.labelled.labels < 0).sum())}


@pytest.mark.parametrize("case", CASES)
def test_each_case_is_read_or_refused_as_its_list_says(cases, case):
    every = json.loads((cases / "tables.json").read_text())
    assert every.keys() == set(CASES)
    if words := every[case].get("refused"):
        message = refused(cases / case)
        assert all(word in message for word in words), message
    else:
        assert counted(load(cases / case)) == every[case]


# Classes


def class_label(names: list[str]) -> datasets.ClassLabel:
    return datasets.ClassLabel(names=names)


@pytest.mark.parametrize("split", ["test", "train-2"])
def test_the_same_classes_in_another_order_are_the_same_classes(tmp_path, split):
    """Of a test split, and of a second file of the training split."""
    parquet(tmp_path, [0, 1, 2] * 4, class_label(NAMES), name="train-1")
    parquet(tmp_path, [2, 1, 0, 0], class_label(NAMES[::-1]), name=split)
    data = load(tmp_path, validation=0.0, test_fraction=0.25)
    assert data.classes == NAMES
    if split == "test":
        assert data.test.labels.tolist() == [0, 1, 2, 2]
    else:
        counts = counted(data)
        both = Counter(counts["train"]) + Counter(counts["test"])
        assert both == {NAMES[0]: 5, NAMES[1]: 5, NAMES[2]: 6}


OTHERS = {
    "a class that is not trained on": (
        [0, 1, 2], class_label(["circle", "cross", "ring"]),
        "column label has the class(es) ring, which the training split does not have. Its 3 classes are",
    ),
    "words for numbers": (["circle", "x", "dash"], datasets.Value("string"), "has the class(es) x, which"),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_a_test_split_with_other_classes_is_refused(tmp_path, what):
    labels, kind, message = OTHERS[what]
    parquet(tmp_path, [0, 1, 2] * 4, class_label(NAMES))
    parquet(tmp_path, labels, kind, name="test")
    assert message in refused(tmp_path)


def test_files_of_one_split_must_agree(tmp_path):
    parquet(tmp_path, [0, 1, 2] * 4, class_label(NAMES), name="train-1")
    parquet(tmp_path, [0, 1, 2] * 4, class_label(["x", "y", "z"]), name="train-2")
    assert "train-2.parquet: column label has other classes than the first file" in refused(tmp_path)
    parquet(tmp_path, [0, 1, 2] * 4, datasets.Value("int64"), name="train-2")
    assert "has names of classes in some files and numbers in others" in refused(tmp_path)
    parquet(tmp_path, [0, 1, 2] * 4, name="train-2", column="kind")
    assert "train-2.parquet: there is no column 'label'; it has image, kind" in refused(tmp_path)


# Missing labels

MISSING = {
    "null": ([None, "a", "b", "a", "b", None], "string"),
    "an empty text": (["", "a", "b", "a", "b", " "], "string"),
    "NaN": ([float("nan"), 0.0, 1.0, 0.0, 1.0, float("nan")], "float64"),
    "no whole number": ([None, 0, 1, 0, 1, None], "int64"),
    "minus one": ([-1, 0, 1, 0, 1, -1], "int64"),
}


@pytest.mark.parametrize("what", MISSING)
def test_a_missing_label_is_none(tmp_path, what, capsys):
    """The student learns from these images, nobody else does; in a split to measure on they are refused."""
    labels, kind = MISSING[what]
    parquet(tmp_path / "data", labels, datasets.Value(kind))
    parquet(tmp_path / "data", labels[1:5], datasets.Value(kind), name="test")
    data = load(tmp_path / "data", validation=0.0)
    assert data.classes == (["a", "b"] if kind == "string" else ["0", "1"])
    assert data.train.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.train.labels.tolist() == [-1, 0, 1, 0, 1, -1]
    assert data.labelled.rows.tolist() == data.alone.rows.tolist() == [1, 2, 3, 4]
    assert load(tmp_path / "data", validation=0.5).validation.rows.tolist() != [0, 5]
    assert train.main([write(base_recipe(tmp_path / "data", tmp_path), tmp_path), "--plan", "loop.batch_size=2"]) == 0
    plan = capsys.readouterr().out
    assert "labels: column label" in plan
    assert "2 training image(s) have no label: only the student learns from them" in plan
    parquet(tmp_path / "data", labels, datasets.Value(kind), name="test")
    message = refused(tmp_path / "data")
    assert "2 of the 6 images of the test split have no label, so nothing can be measured on them" in message
    assert "Write data.test_split=train, which holds out data.test_fraction=0.2 of its images." in message
    parquet(tmp_path / "data", labels[1:5], datasets.Value(kind), name="validation")
    assert "Write data.test_split=validation." in refused(tmp_path / "data")


def test_labels_that_are_held_out_are_known(tmp_path):
    """No image without a label is drawn for the test or for validation, and labels are counted without them."""
    parquet(tmp_path, [None if i % 2 else "ab"[i % 4 // 2] for i in range(40)], datasets.Value("string"))
    data = load(tmp_path, validation=0.25, test_fraction=0.2)
    for images in (data.test, data.validation, data.labelled):
        assert (images.labels[images.rows] >= 0).all()
    assert (len(data.test), len(data.validation), len(data.labelled), len(data.train)) == (4, 4, 12, 32)
    assert "must lie between 2 (one per class) and 12" in refused(tmp_path, labelled=20)


def test_no_label_at_all_is_refused(tmp_path):
    parquet(tmp_path, [None] * 6, datasets.Value("string"))
    assert "none of the 6 images of the train split has a label" in refused(tmp_path)


# Columns that hold no classes

NO_CLASSES = {
    "several labels": (
        [["a", "b"]] * 4,
        datasets.List(datasets.Value("string")),
        "such as ['a', 'b']: several labels of an image",
    ),
    "one-hot": (
        [[0, 1, 0]] * 4,
        datasets.List(datasets.Value("int64")),
        "lists of 3 numbers with one 1. Write the",
    ),
    "one-hot of one length": (
        [[0.0, 1.0, 0.0]] * 4,
        datasets.List(datasets.Value("float32"), length=3),
        "lists of 3 numbers with one 1",
    ),
    "measures": ([0.5, 1.25, 2.0, 3.0], datasets.Value("float32"), "holds numbers such as 0.5, which are no classes"),
    "infinite": ([0.0, 1.0, float("inf"), 1.0], datasets.Value("float64"), "numbers such as inf, which are no classes"),
    "identifiers": ([1, 2**40, 1, 2], datasets.Value("int64"), "holds numbers such as 1099511627776, which are"),
    "large floats": ([1.0, 1e30, 1.0, 2.0], datasets.Value("float64"), "holds numbers such as 1e+30, which are no"),
    "bytes": ([b"a"] * 4, datasets.Value("binary"), "label is of type binary. An image has one class."),
    "look alike": (["a", "b", "A", "b"], datasets.Value("string"), "the classes 'A' and 'a' differ only in case"),
}


@pytest.mark.parametrize("what", NO_CLASSES)
def test_columns_without_classes_are_refused_as_what_they_are(tmp_path, what):
    labels, kind, message = NO_CLASSES[what]
    assert message in refused(parquet(tmp_path, labels, kind))


def test_a_text_that_stands_for_a_missing_label_is_warned_of(tmp_path, capsys):
    """As `astype(str)` of pandas makes of a missing one."""
    parquet(tmp_path / "data", ["nan", "a", "b", "c"] * 4, datasets.Value("string"))
    assert train.main([write(base_recipe(tmp_path / "data", tmp_path), tmp_path), "--plan", "loop.batch_size=2"]) == 0
    assert "warning: nan is read as a class; a missing label is null or an empty text" in capsys.readouterr().out


def of_arrow(folder: Path, label: pa.Array, image: pa.Array | None = None, **more: pa.Array) -> Path:
    """A parquet file as other programs write it, without the types of `datasets`."""
    folder.mkdir(exist_ok=True)
    image = pa.array([picture(i % 3, i) for i in range(len(label))]) if image is None else image
    pq.write_table(pa.table({"image": image, "label": label, **more}), folder / "train.parquet")
    return folder


def test_tables_of_other_programs(tmp_path):
    """Images as bytes, texts as views (polars), and a column of a type that `datasets` does not know."""
    words = pa.array(["a", "b", None] * 4)
    options = {"image_column": "image", "validation": 0.0, "test_fraction": 0.25}
    extra = pa.array([[("x", 1)]] * 12, pa.map_(pa.string(), pa.int64()))
    for source in (
        of_arrow(tmp_path / "plain", words),
        of_arrow(tmp_path / "view", words.cast(pa.string_view())),
        of_arrow(tmp_path / "map", words, extra=extra),
    ):
        data = load(source, **options)
        assert counted(data) == {"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 1}, "unlabelled": 4}
        assert next(data.in_order(data.test, 2)).image.shape == (2, 3, 32, 32)
    named = of_arrow(tmp_path / "paths", words, pa.array(["a.png"] * 12))
    assert "data.image_column: image is of type string; images are the bytes of" in refused(named, **options)


def test_two_columns_that_could_be_the_label_are_refused(tmp_path):
    parquet(tmp_path, ["a", "b"] * 4, datasets.Value("string"), source=(class_label(["x", "y"]), [0, 0, 1, 1] * 2))
    assert "data.label_column: several fit (label, source); name one of the columns" in refused(tmp_path)
    assert load(tmp_path, label_column="source", validation=0.0).classes == ["x", "y"]


# Tars and single files


def pictures(**more: Any) -> dict[str, Any]:
    """Six pictures with a word each in `.cls`."""
    members = {f"v1__0___{i}__png": picture(i % 3, i) for i in range(6)}
    return dict(sorted({**members, **{f"v1__0___{i}__cls": NAMES[i % 3] for i in range(6)}, **more}.items()))


def test_words_in_tars_are_classes_and_dots_in_folders_do_no_harm(tmp_path):
    tar(tmp_path / "train.tar", **pictures(v1__0___3__cls=""))
    tar(tmp_path / "test.tar", **pictures())
    data = load(tmp_path, validation=0.0)
    assert counted(data) == {
        "train": {"circle": 1, "cross": 2, "dash": 2}, "test": dict.fromkeys(NAMES, 2), "unlabelled": 1
    }  # fmt: skip
    assert data.label_column == "cls"


def in_json(label: list[Any]) -> dict[str, Any]:
    members = {f"{i}__png": picture(i % 3, i) for i in range(len(label))}
    return dict(
        sorted({**members, **{f"{i}__json": json.dumps({"label": its}) for i, its in enumerate(label)}}.items())
    )


def test_a_null_in_the_json_of_a_tar_is_a_missing_label(tmp_path):
    tar(tmp_path / "train.tar", **in_json([None if i == 4 else i % 2 for i in range(6)]))
    data = load(tmp_path, validation=0.0, test_fraction=0.4)
    assert data.classes == ["0", "1"]
    assert (len(data.train), len(data.labelled), len(data.test)) == (4, 3, 2)
    assert data.label_column == "json"


def test_numbers_in_the_json_of_a_tar(tmp_path):
    """2.0 is the number 2, NaN is a missing label, and what is no class is refused as what it is."""
    tar(tmp_path / "train.tar", **in_json([0.0, 1.0, float("nan"), 0, 1, 1.0]))
    data = load(tmp_path, validation=0.0, test_fraction=0.4)
    assert data.classes == ["0", "1"]
    assert (len(data.train), len(data.labelled), len(data.test)) == (4, 3, 2)
    tar(tmp_path / "train.tar", **in_json([["a", "b"], ["a"], ["b"], ["a"]]))
    assert "json holds ['a', 'b']: several labels. An image has one class." in refused(tmp_path)
    tar(tmp_path / "train.tar", **in_json([0.5, 1.25, 2.0, 3.0]))
    assert "json holds numbers such as 0.5, which are no classes" in refused(tmp_path)


@pytest.mark.parametrize("name", ["img_{c}__{i}", "img__{i}"])
def test_dots_in_names_of_members_are_refused(tmp_path, name):
    members = {name.format(c=i % 3, i=i) + "__png": picture(i % 3, i) for i in range(6)}
    members |= {name.format(c=i % 3, i=i) + "__cls": NAMES[i % 3] for i in range(6)}
    tar(tmp_path / "train.tar", **dict(sorted(members.items())))
    message = refused(tmp_path)
    assert "img" in message
    assert "first dot of a member's name is its extension: take" in message


def test_words_in_the_test_tar_are_not_numbers_of_the_training(tmp_path):
    tar(
        tmp_path / "train.tar",
        **{name: i % 3 if "cls" in name else its for i, (name, its) in enumerate(pictures().items())},
    )
    tar(tmp_path / "test.tar", **pictures())
    assert "has the class(es) circle, cross, dash, which the training split does not have" in refused(tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    assert load(tmp_path).test.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_splits_inside_of_a_tar_are_refused(tmp_path):
    """Its test images would be trained on."""
    members = {
        f"photos___{s}___{NAMES[i % 3]}___{i}__png": picture(i % 3, i) for s in ("train", "test") for i in range(6)
    }
    tar(tmp_path / "all.tar", **members)
    assert "the folders test, train in the tar are splits. Unpack it, or make a tar of each." in refused(tmp_path)


@pytest.mark.parametrize("length", [0.5, 0.9, 2])
def test_a_tar_that_is_cut_off_or_followed_by_another_is_refused(tmp_path, length):
    """`tarfile` ends at a header that is cut off as at the end of a file, and at the end of the first of two."""
    tar(tmp_path / "train.tar", **pictures())
    content = (tmp_path / "train.tar").read_bytes()
    part = content[: int(length * len(content.rstrip(b"\0"))) // 512 * 512]
    (tmp_path / "train.tar").write_bytes(part if length < 1 else content + content)
    assert "train.tar: the tar cannot be read: " in refused(tmp_path)


def test_a_member_that_stands_twice_in_a_tar_is_refused(tmp_path):
    tar(tmp_path / "train.tar", **pictures())
    with tarfile.open(tmp_path / "train.tar", "a") as file:
        file.addfile(tarfile.TarInfo("v1.0/2.png"))
    assert "train.tar: the tar cannot be read: v1.0/2.png stands in it twice" in refused(tmp_path)


def test_a_tar_without_images_is_refused_and_every_ending_of_an_image_is_one(tmp_path):
    tar(tmp_path / "train.tar", a__cls="a")
    assert "train.tar: no member of the tar is an image." in refused(tmp_path)
    tar(tmp_path / "train.tar", **{f"{NAMES[i % 3]}___{i}__jp2": picture(i % 3, i) for i in range(12)})
    assert load(tmp_path, validation=0.0).classes == sorted(NAMES)


def test_a_single_file_is_a_source(tmp_path):
    parquet(tmp_path / "a", [0, 1, 2] * 4)
    tar(tmp_path / "b/all.tar", **pictures())
    for place, count in ((tmp_path / "a/train.parquet", 12), (tmp_path / "b/all.tar", 6)):
        data = load(place, validation=0.0, test_fraction=0.5)
        assert (len(data.train), len(data.test)) == (count // 2, count // 2)
        assert list(data.manifest.entries) == [place.name]


FILE_NAMES = {
    "Train Test": "Test.parquet is named as the test split, but not in small letters, so all files would be training",
    "train_site train_test_site": "train_test_site.parquet has names of two splits, train and test. Rename it.",
}


@pytest.mark.parametrize("names", FILE_NAMES)
def test_files_whose_names_leave_their_split_open_are_refused(tmp_path, names):
    """`datasets` takes capitals for no split, and a file with two words into both: test images would be trained on."""
    for name in names.split():
        parquet(tmp_path, [0, 1, 2] * 4, name=name)
    assert FILE_NAMES[names] in refused(tmp_path)


def test_a_file_of_no_split_is_named(tmp_path, caplog):
    for name in ("train", "extra"):
        parquet(tmp_path, [0, 1, 2] * 4, name=name)
    data = load(tmp_path, validation=0.0)
    assert len(data.train) + len(data.test) == 12
    assert "not used, since no split is in the name: extra.parquet" in caplog.text


def test_what_datasets_saved_to_disk(tmp_path):
    given = datasets.load_dataset("parquet", data_files=str(parquet(tmp_path / "p", [0, 1, 2] * 4) / "train.parquet"))
    given.save_to_disk(tmp_path / "all")
    given["train"].save_to_disk(tmp_path / "one")
    wanted = load(tmp_path / "p", test_fraction=0.25)
    for place in ("all", "one"):
        data = load(tmp_path / place, test_fraction=0.25)
        assert (data.classes, data.test.labels.tolist()) == (NAMES, wanted.test.labels.tolist())


REFUSED = {
    "a.zip": "a.zip holds no image file, no parquet file and no tar, but 1 .zip. Unpack the archive.",
    "a.txt": "a.txt holds no image file, no parquet file and no tar, but 1 .txt.",
    "https://huggingface.co/datasets/me/mine/tree/main": "This data set of the Hub is data.source=me/mine.",
    "https://example.org/a.zip": "files are not downloaded from addresses. Download and unpack it, and give the folder",
}


@pytest.mark.parametrize("source", REFUSED)
def test_other_files_and_addresses_are_told_what_is_possible(tmp_path, source):
    place = source if "://" in source else str(tmp_path / source)
    if place != source:
        draw_image(0, 0).save(tmp_path / source, "PNG")
    with pytest.raises(UserError, match=REFUSED[source].replace(".", r"\.")):
        load(place)
