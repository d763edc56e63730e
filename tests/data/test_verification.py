"""Broken images are listed before anything is trained; a run, a zoo and the result of the check know their images."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from conftest import CLASSES, base_recipe, contents, draw_image, fill, image_folder, refused, tree, write
from helpers.data import load
from PIL import Image

import train
from meco_timm.common.errors import UserError
from meco_timm.data.folders import read_folder
from meco_timm.data.manifest import Entry, Manifest, changes, manifest_of
from meco_timm.data.verification import Content, verify
from meco_timm.training import Inputs, RunFolder


def checked(folder: Path, state: Path, **changes: object) -> str:
    """The refusal of the check, or nothing."""
    data = load(folder, **changes)
    settings = base_settings(folder, **changes)
    try:
        verify(data, settings, state, Accelerator())
    except UserError as error:
        return str(error)
    return ""


def base_settings(folder: Path, **changes: object) -> object:
    from helpers.data import PLAIN

    from meco_timm.recipe.sections import Data

    return Data.model_validate(PLAIN | {"source": str(folder)} | changes)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """36 training and 12 test images, of which two training images and one test image are broken in different ways."""
    folder = image_folder(tmp_path / "data")
    truncated = folder / "train/cross/003.png"
    truncated.write_bytes(truncated.read_bytes()[:100])
    (folder / "train/dash/004.png").write_bytes(b"")
    (folder / "test/dash/001.png").unlink()
    (folder / "test/dash/001.png").symlink_to(folder / "nowhere.png")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_all_broken_images_are_listed(broken, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("meco_timm.data.loading.FEW", 0)
    message = checked(broken, tmp_path / "state", workers=workers)
    assert "data.source: 3 image(s) cannot be read; nothing was trained" in message
    assert "train/cross/003.png: image file is truncated" in message
    assert "train/dash/004.png: it is of no known kind" in message
    assert "test/dash/001.png: No such file or directory" in message
    assert len((tmp_path / "state/bad_images.txt").read_text().splitlines()) == 3


def test_training_images_may_be_bad_where_the_recipe_allows_it(broken, tmp_path, caplog):
    message = checked(broken, tmp_path / "state", max_bad=2, validation=0.0)
    assert "3 image(s) cannot be read" in message  # one of them is a test image
    (broken / "test/dash/001.png").unlink()
    assert checked(broken, tmp_path / "state", max_bad=2, validation=0.0) == ""
    assert "data.max_bad: " in caplog.text
    assert "data.max_bad allows 1 of the 2" in checked(broken, tmp_path / "state", max_bad=1, validation=0.0)


def test_each_image_is_decoded_once(tmp_path, monkeypatch):
    folder, state, seen = image_folder(tmp_path / "data"), tmp_path / "state", []
    check = Content._check
    monkeypatch.setattr(Content, "_check", lambda self, *one: seen.append(one) or check(self, *one))
    for expected in (48, 48):
        assert checked(folder, state) == ""
        assert len(seen) == expected
    draw_image(0, 99).save(folder / "train/cross/003.png")
    assert checked(folder, state) == ""
    assert len(seen) == 49


def test_images_of_parquet_files_are_checked_too(tmp_path, monkeypatch):
    import datasets

    rows = [{"bytes": (tmp_path / "x").write_bytes(b"junk") and b"junk", "path": None}] * 2
    good = draw_image(0, 0)
    good.save(tmp_path / "good.png")
    rows = [{"bytes": (tmp_path / "good.png").read_bytes(), "path": None}] * 6 + rows
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    for name in ("train", "test"):
        table = datasets.Dataset.from_dict({"image": rows, "label": [0, 1] * 4}, features)
        table.to_parquet(tmp_path / f"data/{name}.parquet")
    for _ in range(2):  # the second from the stored result
        message = checked(tmp_path / "data", tmp_path / "state", validation=0.0)
        assert "4 image(s) cannot be read" in message
        assert "train.parquet: row 6: it is of no known kind" in message
        assert "test.parquet: row 7: it is of no known kind" in message
        monkeypatch.setattr(Content, "_check", None)


def test_none_and_a_large_set_are_not_checked(broken, tmp_path, monkeypatch):
    assert checked(broken, tmp_path / "state", verify="none") == ""
    monkeypatch.setattr("meco_timm.data.verification.AUTO", 40)
    assert checked(broken, tmp_path / "state") == ""
    assert "3 image(s)" in checked(broken, tmp_path / "state", verify="all")


@pytest.mark.parametrize("readable", [True, False])
def test_an_image_with_too_many_pixels_is_named(tmp_path, monkeypatch, readable):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200 if readable else 100)
    message = checked(image_folder(tmp_path / "data", 4, 2), tmp_path / "state")
    assert ("exceeds limit of" in message) != readable


# What has changed


def of(folder: Path) -> Manifest:
    return manifest_of([read_folder(folder)])


def test_changes_in_words(tmp_path):
    folder = fill(tmp_path / "data", dict.fromkeys(CLASSES, 4))
    before = of(folder)
    assert changes(before, of(folder)) == ""
    fill(folder, {"ten": 70})
    assert changes(before, of(folder)).startswith("70 images and the class(es) 'ten' are new (ten/000.png, ")
    shutil.rmtree(folder / "ten")
    (folder / "dash/000.png").unlink()
    draw_image(0, 7).save(folder / "dash/001.png")
    assert changes(before, of(folder)) == (
        "1 image is gone (dash/000.png); 1 image has another content or label (dash/001.png)"
    )


def test_images_without_labels_are_no_class_of_changes():
    own = {"dash/0.png": Entry("dash", 9, 1)}
    more = Manifest(own | {f"unlabelled: {i}.png": Entry("", 9, 1) for i in range(2)})
    assert changes(Manifest(own), more) == "2 images are new (unlabelled: 0.png, unlabelled: 1.png)"
    assert changes(Manifest(own), more.of_source()) == ""


@pytest.mark.parametrize(
    ("crcs", "times", "same"),
    [((1, 1), (1, 2), True), ((1, 2), (1, 1), False), ((1, -1), (1, 1), True), ((1, -1), (1, 2), False)],
)
def test_files_are_compared_by_checksum_or_else_by_time(crcs, times, same):
    first, second = (Entry("a", 5, time, crc) for time, crc in zip(times, crcs, strict=True))
    assert first.same(second) == second.same(first) == same
    assert not first.same(first._replace(size=6))


def test_a_copy_is_the_same_data_if_checksums_are_known(tmp_path):
    folder = fill(tmp_path / "data", dict.fromkeys(CLASSES, 2))
    data = load(folder, test_fraction=0.5, validation=0.0)
    verify(data, base_settings(folder, test_fraction=0.5, validation=0.0), tmp_path / "state", Accelerator())
    without, whole = of(folder), data.manifest
    time.sleep(0.01)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert changes(whole, of(tmp_path / "copy")) == ""
    assert "6 images have another time, and no checksum to tell" in changes(without, of(tmp_path / "copy"))
    pixels = np.asarray(Image.open(tmp_path / "copy/dash/000.png"))
    Image.fromarray(pixels).save(tmp_path / "copy/dash/000.png", compress_level=0)
    assert "1 image has another content" in changes(whole, of(tmp_path / "copy"))


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    manifest = of(fill(tmp_path / "data", {"ü": 2, "b": 1}))
    (tmp_path / "m").write_bytes(manifest.bytes())
    read = Manifest.read(tmp_path / "m")
    assert read is not None
    assert read.entries == manifest.entries
    (tmp_path / "m").write_bytes(b"junk")
    assert Manifest.read(tmp_path / "m") is None


# Runs and zoos


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A recipe on a folder of its own, so short that nothing is learned."""
    recipe = base_recipe(image_folder(tmp_path / "data"), tmp_path)
    recipe |= {"teachers": [{"train": "test_resnet"}], "losses": {}, "discriminators": {}}
    recipe["loop"] |= {"steps": 1, "validations": 1}
    return write(recipe, tmp_path)


def test_a_broken_image_ends_the_run_before_it_begins(own, tmp_path, capsys):
    (tmp_path / "data/train/dash/001.png").write_bytes(b"junk")
    before = contents(tmp_path / "data")
    assert "train/dash/001.png: it is of no known kind" in refused(capsys, own)
    assert not (tmp_path / "run").exists()
    assert tree(tmp_path / "zoo") == set()
    assert contents(tmp_path / "data") == before


def test_a_finished_run_knows_its_images(own, tmp_path, capsys):
    assert train.main([own]) == 0
    trained = {path.name for path in (tmp_path / "zoo").glob("test_*")}
    assert train.main([own]) == 0
    assert "holds this run, finished" in capsys.readouterr().err
    fill(tmp_path / "data/train", {"dash": 13})
    (tmp_path / "data/train/cross/000.png").unlink()
    message = refused(capsys, own)
    assert "1 image is new (train/dash/012.png); 1 image is gone (train/cross/000.png)" in message
    assert "--fresh" in message
    assert train.main([own, "--fresh"]) == 0
    said = capsys.readouterr().err
    assert "was trained on other images: 1 image is new (train/dash/012.png)" in said
    assert len({path.name for path in (tmp_path / "zoo").glob("test_*")} - trained) == 2
    shutil.rmtree(tmp_path / "data")
    assert train.main([own]) == 0  # its results stay, whatever becomes of the data


def test_a_begun_run_knows_its_images(own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("meco_timm.pipeline.assemble_zoo", lambda *_: (_ for _ in ()).throw(UserError("stopped")))
    assert "stopped" in refused(capsys, own)
    (tmp_path / "data/test/dash/001.png").unlink()
    message = refused(capsys, own)
    assert "holds a run with other data: 1 image is gone (test/dash/001.png)" in message
    assert "weights" not in message


def test_other_weights_are_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_inputs(Inputs(Manifest(), {"student": "1", "teachers.0": "2"}))
    folder.check_inputs(Inputs(Manifest(), {"student": "1", "teachers.0": "2"}))
    folder.check_inputs(Inputs(Manifest(), {}))  # the files are gone; a finished run does not need them
    with pytest.raises(UserError, match=r"teachers\.0: .* holds a run with other weights of teachers\.0"):
        folder.check_inputs(Inputs(Manifest(), {"student": "1", "teachers.0": "3"}))
