"""Folders of image files that a run refuses, with exit code 2 and the name of what is wrong."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import base_recipe, fill, refused, write
from helpers.data import load

from meco_timm.common.errors import UserError
from meco_timm.data.folders import read_folder


def flat_test(folder: Path) -> None:
    fill(folder, {"train/a": 2, "train/b": 2, "test": 3})


def empty(folder: Path) -> None:
    fill(folder, {"a": 2, "b": 2, "c": 0})
    (folder / "c/notes.txt").write_text("nothing")


def like_a_split(folder: Path) -> None:
    fill(folder, {"plane": 2, "Train": 2})


def two_of_one_split(folder: Path) -> None:
    fill(folder, {f"{split}/{name}": 2 for split in ("val", "valid") for name in ("a", "b")})


def by_case(folder: Path) -> None:
    fill(folder, {"Cat": 2, "cat": 2})


def by_space(folder: Path) -> None:
    fill(folder, {"train/cat": 2, "train/dog": 2, "test/cat ": 2})


def by_unicode(folder: Path) -> None:
    fill(folder, {unicodedata.normalize(form, "tür"): 2 for form in ("NFC", "NFD")})


def by_invisible_characters(folder: Path) -> None:
    fill(folder, {"hot dog": 2, "hot \u200b dog": 2})


def only_in_test(folder: Path) -> None:
    fill(folder, {"train/a": 2, "train/b": 2, "test/a": 2, "test/c": 2})


def not_listed(folder: Path) -> None:
    fill(folder, {"a": 2, "b": 2})
    (folder / "metadata.csv").write_text("file_name,label\na/000.png,x\n")


def listed_but_absent(folder: Path) -> None:
    fill(folder, {"p": 2})
    (folder / "metadata.csv").write_text("file_name,label\np/000.png,x\np/001.png,y\np/002.png,y\n")


def other_labels(folder: Path) -> None:
    fill(folder, {"a": 2, "b": 2})
    rows = ["a/000.png,x", "a/001.png,y", "b/000.png,x", "b/001.png,y"]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))


def bad_lines(folder: Path) -> None:
    fill(folder, {"p": 2})
    (folder / "metadata.jsonl").write_text('{"file_name": "p/000.png", "label": ')


def other_encoding(folder: Path) -> None:
    fill(folder, {"p": 2})
    (folder / "metadata.csv").write_bytes("file_name,label\np/000.png,größe\n".encode("latin-1"))


def linked_twice(folder: Path) -> None:
    fill(folder, {"train/a": 2, "train/b": 2, "test/a": 2})
    (folder / "test/b").symlink_to(folder / "train/b", target_is_directory=True)


def one_level_deeper(folder: Path) -> None:
    fill(folder, {"photos/a": 2, "photos/b": 2})


def two_levels_deeper(folder: Path) -> None:
    fill(folder, {"photos/photos/a": 2, "photos/photos/b": 2})


def link_to_nowhere(folder: Path) -> None:
    fill(folder, {"a": 2, "b": 2})
    (folder / "c").symlink_to(folder / "nowhere", target_is_directory=True)


def one_image_each(folder: Path) -> None:
    fill(folder, dict.fromkeys("abcde", 1))


def numbers_from_one(folder: Path) -> None:
    fill(folder, {"p": 9})
    rows = [f"p/{i:03}.png,{1 + i % 3}" for i in range(9)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))


def semicolons(folder: Path) -> None:
    fill(folder, {"": 2})
    (folder / "metadata.csv").write_text("file_name;label\n000.png;x\n001.png;y\n")


def other_file_column(folder: Path) -> None:
    fill(folder, {"": 2})
    (folder / "metadata.csv").write_text("filename,label\n000.png,x\n001.png,y\n")


def heic(folder: Path) -> None:
    fill(folder, {"a": 0})
    (folder / "a/IMG_1.HEIC").write_bytes(b"\0")


def archive(folder: Path) -> None:
    folder.mkdir()
    (folder / "images.zip").write_bytes(b"PK")


def images_and_tars(folder: Path) -> None:
    fill(folder, {"a": 2, "b": 2})
    (folder / "images.tar").write_bytes(b"")


def not_utf8(folder: Path) -> None:
    fill(folder, {"a": 2, "b": 2})
    os.rename(folder / "a/000.png", os.fsencode(folder) + b"/a/\xff.png")


REFUSED: dict[Callable[[Path], None], list[str]] = {
    flat_test: [
        "/test holds 3 image(s) and 0 class folder(s), so they have no labels",
        "To leave them out, write data.source=",
        "/train; for the student to learn from them without labels, also data.unlabelled=",
    ],
    empty: ["the class folder ", "/c is empty: it holds no image"],
    like_a_split: ["Train has the name of a split, but the folder(s) plane beside it do not"],
    two_of_one_split: ["the folders val, valid are all named as the validation split"],
    by_case: ["the classes 'Cat' and 'cat' differ only in case"],
    by_space: ["the classes 'cat' and 'cat ' differ only in case, spaces"],
    by_invisible_characters: ["the classes 'hot dog' and 'hot \\u200b dog' differ only in case, spaces"],
    by_unicode: ["differ only in case, spaces or the form of their Unicode"],
    only_in_test: ["the class(es) c, which the training split does not have. Its 2 classes are a, b."],
    not_listed: ["metadata.csv, column label lists 1 file(s), but not 'a/001.png', 'b/000.png', 'b/001.png'"],
    listed_but_absent: ["metadata.csv, column label lists 'p/002.png', which are not there"],
    other_labels: ["metadata.csv, column label and the class folders give other labels (a: x, a: y, b: x, b: y)"],
    bad_lines: ["metadata.jsonl: cannot be read"],
    other_encoding: ["metadata.csv: cannot be read: 'utf-8' codec can't decode"],
    linked_twice: ["train/b is the same folder as test/b"],
    one_level_deeper: ["holds 1 class folder(s) (photos)", "Did you mean ", "/photos?"],
    two_levels_deeper: ["holds 1 class folder(s) (photos)", "Did you mean ", "/photos/photos?"],
    link_to_nowhere: ["link(s) that lead nowhere, so it is not known which images they stand for: c"],
    one_image_each: ["with 0.2 of the images held out, none is left to train on of 1 class(es): "],
    numbers_from_one: ["empty class(es): 0.", "Labels that are numbers count from 0"],
    semicolons: ["No label column was found in metadata.csv (file_name;label)"],
    other_file_column: ["there is no column 'file_name'; it has filename, label. Rename 'filename' to file_name."],
    heic: ["holds no image file", "but 1 .heic"],
    archive: ["but 1 .zip. Unpack the archive"],
    images_and_tars: ["holds image files (a/000.png) and also images.tar"],
    not_utf8: ["the name 'a/\\udcff.png' is not valid UTF-8"],
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_is_not_clear_is_refused_by_name(tmp_path, capsys, make):
    make(tmp_path / "data")
    recipe = write(base_recipe(tmp_path / "data", tmp_path), tmp_path)
    message = refused(capsys, recipe, "--plan")
    assert message.startswith(("data.source: ", "data.test_fraction: "))
    assert all(words in message for words in REFUSED[make]), message


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path, {"a": 2, "b": 2})
    scandir = os.scandir

    def forbidden(path: str) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(UserError, match="/b: the folder cannot be read: Permission denied"):
        read_folder(tmp_path)


def test_the_recipes_label_column_settles_which_labels_count(tmp_path):
    other_labels(tmp_path / "data")
    assert load(tmp_path / "data", label_column="label", test_fraction=0.5, validation=0.0).classes == ["x", "y"]
    with pytest.raises(UserError, match="there is no column 'species'"):
        load(tmp_path / "data", label_column="species")
