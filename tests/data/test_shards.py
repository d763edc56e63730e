"""Data read in place: parquet files, tars and class folders are one data set, whoever reads it and in what order."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from conftest import CLASSES, ROOT, base_recipe, draw_image, write
from helpers import shards
from helpers.data import PLAIN, load, refused, seen
from helpers.hub import TOKEN, running
from helpers.image_tables import picture, tar

from benchmarks import resume
from meco_timm.common.errors import UserError
from meco_timm.data import tars
from meco_timm.data.images import Images
from meco_timm.data.stored import RowGroups
from meco_timm.data.views import BatchStream, Passes, Steps, shuffled, variety
from meco_timm.distillation import Supervised
from meco_timm.networks import LOGITS_ONLY
from meco_timm.networks.streams import student_stream
from meco_timm.pipeline import distill, fill_store
from meco_timm.recipe.networks import Network
from meco_timm.recipe.reading import load_recipe
from meco_timm.recipe.sections import Data, Loop
from meco_timm.training import Job, Training

IMAGES = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training images of 3 classes in 4 uneven shards, three times over. Read only."""
    folder = tmp_path_factory.mktemp("made")
    return shards.make(folder, IMAGES, classes=3, shards=4)


# One data set in every kind of file


@pytest.mark.parametrize("kind", shards.KINDS)
def test_every_kind_gives_the_same_batches(made, kind):
    """With a buffer of all images the order is that of a whole shuffle; uneven shards change nothing."""
    one, other = (shards.opened(made, name, workers=0, buffer=IMAGES) for name in ("folders", kind))
    assert one.classes == other.classes == ["n0000", "n0001", "n0002"]
    for part in ("train", "labelled"):
        first, second = (seen(data, getattr(data, part), stop=20, batch=7) for data in (one, other))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    first, second = (next(iter(data.in_order(data.test, 8))) for data in (one, other))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", shards.KINDS)
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (4, 1)])
def test_every_image_once_an_epoch_whoever_reads(made, kind, world, workers):
    data = shards.opened(made, kind, validation=0.2, buffer=8)
    crcs = np.load(made / "crc.npy")
    assert len(data.train) == 48
    assert shards.count(data, crcs, world, workers, batch=5, epochs=3) == (0, 0)


@pytest.mark.parametrize("kind", ["parquet", "tars"])
def test_workers_and_processes_do_not_change_what_is_seen(made, kind):
    one = seen(shards.opened(made, kind, workers=0, buffer=8), shards.opened(made, kind).train, stop=12, batch=8)
    many = shards.opened(made, kind, workers=2, buffer=8)
    parts = [seen(many, many.train, stop=12, batch=4, rank=rank, world=2) for rank in (0, 1)]
    for whole, first, second in zip(one, *parts, strict=True):
        halves = [half.reshape(12, 4, *half.shape[1:]) for half in (first, second)]
        assert torch.equal(torch.cat(halves, 1).flatten(0, 1), whole)


def test_a_split_of_shards_gives_validation_test_and_labelled_images(made, tmp_path):
    """Without a test split some rows are taken out of the shards; the rest are still each there once."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for file in (made / "tars").glob("train*"):
        (folder / file.name).symlink_to(file)
    data = load(folder, test_fraction=0.2, labelled=9, buffer=8)
    assert (len(data.test), len(data.validation), len(data.train), len(data.labelled)) == (12, 12, 36, 9)
    paths = {part.split.read([row])[0]["path"] for part in (data.train, data.validation, data.test)
             for row in part.rows}  # fmt: skip
    assert len(paths) == IMAGES
    assert sorted(seen(data, data.train, stop=9, batch=4).row.tolist()) == sorted(data.train.rows.tolist())


# The order


def test_shards_are_read_one_after_the_other():
    ends = np.array([3, 3, 10, 12])
    order = shuffled(12, 0, 0, ends, buffer=1)
    runs = sorted((range(3), range(3, 10), range(10, 12)), key=lambda run: order.tolist().index(run[0]))
    assert order.tolist() == [row for run in runs for row in run]


def test_a_buffer_mixes_neighbours_and_no_others():
    ends, size = np.arange(50, 1001, 50), 1000
    epochs = [shuffled(size, 0, epoch, ends, buffer=100) for epoch in range(3)]
    assert all(sorted(epoch.tolist()) == list(range(size)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    for order in epochs:
        shards = np.array([len(set((order[i : i + 100] // 50).tolist())) for i in range(0, size, 100)])
        assert shards.max() <= 6  # two windows' parts, of at most three shards each
        assert (np.diff(order) == 1).mean() < 0.05


def test_a_buffer_of_all_is_the_order_without_shards():
    assert np.array_equal(shuffled(12, 5, 2, np.array([3, 12]), buffer=12), shuffled(12, 5, 2))


def test_sorted_shards_are_told(made, caplog):
    labels = np.arange(1000) % 10
    assert variety(np.random.default_rng(0).permutation(labels), 50) == pytest.approx(1, abs=0.02)
    assert variety(np.sort(labels), 50) == pytest.approx(0.1, abs=0.02)
    shards.opened(made, "tars", buffer=8)
    assert "data.buffer: 8 images in a row have" in caplog.text
    caplog.clear()
    shards.opened(made, "tars", buffer=60)
    shards.opened(made, "folders", buffer=8)
    assert "data.buffer" not in caplog.text


def test_a_process_keeps_the_row_groups_of_a_window_and_no_more(made):
    kept = RowGroups(10)
    read: list[int] = []
    for group in (0, 1, 0, 2, 1, 0, 3):
        kept.get(("file", group), lambda group=group: read.append(group) or range(4))  # type: ignore
    assert read == [0, 1, 2, 1, 0, 3]
    assert kept.rows <= 10
    data = shards.opened(made, "parquet", workers=0, buffer=8)
    seen(data, data.train, stop=20, batch=6)
    groups = data.train.split._groups
    assert 0 < groups.rows <= groups.limit


# What stands in a tar


def test_labels_of_tars_are_found_or_named(tmp_path):
    both = {f"{i}__png": picture(i % 3, i) for i in range(6)} | {f"{i}__cls": i % 3 for i in range(6)}
    both |= {f"{i}__json": json.dumps({"label": (i + 1) % 3, "kind": "abc"[i % 3]}) for i in range(6)}
    tar(tmp_path / "a/train-0.tar", **dict(sorted(both.items())))
    told = {"test_fraction": 0.5, "validation": 0.0}
    for column, classes, first in ((None, ["0", "1", "2"], 0), ("json", ["0", "1", "2"], 1), ("kind", [*"abc"], 0)):
        data = load(tmp_path / "a", label_column=column, **told)
        assert data.classes == classes
        assert data.test.split.read([0])[0]["bytes"] == both[f"{(data.test.labels[0] - first) % 3}__png"] or column
    (tmp_path / "a/classes.txt").write_text("x\ny\nz\n")
    assert load(tmp_path / "a", **told).classes == ["x", "y", "z"]
    tar(tmp_path / "b/train-0.tar", **{f"{CLASSES[i % 3]}___{i}__png": picture(i % 3, i) for i in range(6)})
    assert load(tmp_path / "b", **told).classes == sorted(CLASSES)


def test_a_tar_that_changed_is_looked_at_again(tmp_path):
    file = tar(tmp_path / "train-0.tar", **{f"{CLASSES[i % 3]}___{i}__png": picture(i % 3, i) for i in range(6)})
    told = {"test_fraction": 0.5, "validation": 0.0}
    before = load(tmp_path, **told)
    tar(file, **{f"{CLASSES[i % 3]}___{i}__png": picture(i % 3, i) for i in range(9)})
    after = load(tmp_path, **told)
    assert (len(before.train), len(after.train)) == (3, 5)
    assert before.identity != after.identity


def test_tars_that_cannot_be_read(tmp_path):
    pictures = {f"{i}__png": picture(i % 3, i) for i in range(6)}
    labels = {f"{i}__cls": i % 3 for i in range(5)}
    tar(tmp_path / "two/train.tar", **pictures)
    told = refused(tmp_path / "two")
    assert "data.label_column: none was found" in told
    assert "Images without labels are for data.unlabelled" in told
    cut = tar(tmp_path / "three/train.tar", **pictures)
    cut.write_bytes(cut.read_bytes()[:-11000])
    assert f"{cut}: the tar cannot be read" in refused(tmp_path / "three")
    tar(tmp_path / "four/train.tar", **{"0__png": picture(0), "0__seg__png": picture(1), "0__cls": "0"})
    assert "several images (png, seg.png); name one" in refused(tmp_path / "four")
    tar(tmp_path / "five/train.tar.gz", **dict(sorted((pictures | labels).items())))
    assert "Compressed tars cannot be read in place: unpack them" in refused(tmp_path / "five")


def test_a_shard_that_is_damaged_after_the_start_is_named(tmp_path, made):
    shutil.copytree(made / "parquet", tmp_path / "parquet")
    data = load(tmp_path / "parquet", max_bad=100)
    (tmp_path / "parquet/train-0001.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"train-0001\.parquet: the shard cannot be read"):
        seen(data, data.train, stop=15)


# Images without labels


@pytest.mark.parametrize("kind", ["folders", "tars"])
def test_unlabelled_images_teach_the_student_only(made, tmp_path, kind):
    (tmp_path / "more").mkdir()
    for i in range(8):
        draw_image(i % 3, 900 + i).save(tmp_path / f"more/{i}.png")
    settings = {"source": str(made / kind), "labelled": 12, "buffer": 8}
    plain, data = load(**settings), load(**settings, unlabelled=str(tmp_path / "more"))
    assert len(data.train) == len(plain.train) + 8
    assert data.labelled.rows.tolist() == plain.labelled.rows.tolist()
    assert data.identity == plain.identity  # the same teachers serve both
    assert data.order != plain.order
    batch = seen(data, data.train, stop=len(data.train), batch=1)
    assert sorted(batch.row.tolist()) == data.train.rows.tolist()
    assert (batch.label[batch.row >= IMAGES] == -1).all()
    again = seen(data, data.labelled, stop=3)
    assert (again.label >= 0).all()
    assert (again.row < IMAGES).all()


def test_unlabelled_images_of_another_set_with_labels(made):
    """Its labels are not looked at: all 36 of its training images are for the student."""
    data = load(made / "parquet", unlabelled=str(made / "tars"))
    assert len(data.train) == 45 + IMAGES


def test_unlabelled_images_that_nobody_would_see(tmp_path):
    with pytest.raises(ValueError, match="drop one key"):
        Data.model_validate(PLAIN | {"source": "x", "unlabelled": "y", "student_sees": "labelled"})
    assert "data.unlabelled: there is no folder" in refused(ROOT / "recipes/data/digits", unlabelled="./nowhere")


# A run


def train(made: Path, folder: Path, die_at: int | None = None) -> None:
    """24 steps on a stream read by two workers, from where `folder` has come to; what is seen goes into rows.jsonl."""
    data = shards.opened(made, "tars", workers=2, buffer=8, max_bad=2, image_size=32)

    class Watched(Training):
        def batches(self) -> Iterator[Any]:
            for batch in super().batches():
                with (folder / "rows.jsonl").open("a") as file:
                    file.write(json.dumps([self.state.step, batch.row.tolist()]) + "\n")
                if self.state.step == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

    stream = student_stream(Network(model="test_resnet"), LOGITS_ONLY, 3, 32, seed=0)
    settings = Loop(steps=24, batch_size=8, checkpoint_steps=3, log_every=4, mixup=0.2)
    job = Job("it", folder, settings, data, data.labelled, steps=24, seed=0)
    Watched(Supervised(stream), job, Accelerator()).run()
    torch.save(stream.state_dict(), folder / "weights.pt")


def test_killed_on_streams_it_ends_as_if_nothing_had_happened(made, tmp_path, caplog):
    """`kill -9` twice, between two checkpoints; one image cannot be read. No image is lost and none comes twice."""
    for kind in ("whole", "cut"):
        (tmp_path / kind).mkdir()
    shutil.copytree(made / "tars", tmp_path / "tars")
    broken = next((tmp_path / "tars").glob("train-*"))
    offset = tars.index(str(broken), None, None)["offset"][0].as_py()
    with broken.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(50))
    train(tmp_path, tmp_path / "whole")
    for die_at in (4, 17):
        process = multiprocessing.get_context("fork").Process(target=train, args=(tmp_path, tmp_path / "cut", die_at))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    train(tmp_path, tmp_path / "cut")
    rows = {}
    for kind in ("whole", "cut"):
        lines = [json.loads(line) for line in (tmp_path / kind / "rows.jsonl").read_text().splitlines()]
        rows[kind] = dict(lines)
        assert all(rows[kind][step] == row for step, row in lines)  # a step that is done again sees the same
    assert rows["whole"] == rows["cut"]
    assert rows["whole"].keys() == set(range(24))
    states = [torch.load(tmp_path / kind / "weights.pt") for kind in ("whole", "cut")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    told = [[json.loads(line) for line in (tmp_path / kind / "metrics.jsonl").read_text().splitlines()]
            for kind in ("whole", "cut")]  # fmt: skip
    for line in (line for lines in told for line in lines):
        for speed in resume.SPEEDS:
            line.pop(speed, None)
    assert told[0] == told[1]
    assert [line["bad_images"] for line in told[0] if "bad_images" in line][-1] == 1
    said = caplog.text
    assert re.search(r"WARNING .*data\.source: .*train-\d+\.tar: \d+\.jpg: the image cannot be read", said)
    assert "it: 1 training image(s) could not be read; others stood in for them" in said


def test_a_resumed_order_goes_on_at_the_very_image(made):
    data = shards.opened(made, "tars", buffer=8)
    images: Images = data.train

    def order(start: int, stop: int) -> list[Any]:
        return list(BatchStream(Passes(len(images), ends=images.ends, buffer=8), Steps(7, 3, start, stop)))

    assert order(0, 5) + order(5, 40) == order(0, 40)


# On the Hub


ASK = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
logging.getLogger("meco_timm").setLevel(logging.INFO)
from meco_timm.data.loading import load_data
from meco_timm.common.errors import UserError
from meco_timm.data.views import Steps
from meco_timm.recipe.sections import Data
for source in sys.argv[1:]:
    try:
        data = load_data(Data(source=source, image_size=32, workers=0), 0)
        rows = [row for batch in data.batches(data.train, Steps(9, 0, 0, 6)) for row in batch.row.tolist()]
        print(source, len(data.classes), len(data.test), sorted(rows) == data.train.rows.tolist())
    except UserError as error:
        print(source, error)
"""


def arrow(folder: Path, split: str) -> bytes:
    """A split of parquet files as an Arrow file, which only `datasets` reads."""
    rows = datasets.load_dataset("parquet", data_files=str(folder / f"{split}*"), cache_dir=str(folder.parent / "c"))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows["train"].data.schema) as file:
        file.write_table(rows["train"].data.table)
    return sink.getvalue().to_pybytes()


def test_data_sets_of_the_hub(made, tmp_path):
    with running() as hub:
        for kind in ("parquet", "tars"):
            hub.new_repo(f"me/{kind}", {file.name: file.read_bytes() for file in (made / kind).iterdir()})
        hub.new_repo("me/arrow", {f"{name}.arrow": arrow(made / "parquet", name) for name in ("train", "test")})
        hub.new_repo("me/gated", {"train.parquet": b"secret"}).gated = 403
        environment = {
            "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path), "HF_DATASETS_CACHE": str(tmp_path / "d"), "HF_HUB_CACHE": str(tmp_path / "h"),
            "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip
        command = [sys.executable, "-c", ASK, "me/parquet", "me/tars", "me/arrow", "me/gated", "me/none"]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)
        lines = done.stdout.splitlines()
        assert lines[0] == "me/parquet 3 6 True", done.stdout + done.stderr
        assert "me/tars: 4 tar(s), which have no index, are fetched before the start" in lines[1]
        assert lines[3:5] == ["me/tars 3 6 True", "me/arrow 3 6 True"], done.stdout + done.stderr
        assert "data.source: me/gated is gated on the Hub: log in with `hf auth login`" in lines[5]
        assert f"ask for access at {hub.url}/datasets/me/gated." in lines[5]
        assert "the Hub has no data set me/none, or it is private" in lines[6]
        fetched = [said for said in hub.requests if said.startswith("GET /datasets/me/tars") and ".tar" in said]
        assert len(fetched) == 6  # once each


def test_a_run_from_a_store_on_streams(made, tmp_path, monkeypatch):
    """Filled ahead, then trained from: rows are rows, whatever the order; a stored view knows no labels."""
    recipe = base_recipe(made / "tars", tmp_path)
    recipe["data"] |= {"buffer": 8, "unlabelled": str(made / "parquet")}
    recipe |= {"teachers": [{"train": "test_resnet"}], "store": {"folder": str(tmp_path / "store"), "views": 1}}
    path = write(recipe, tmp_path)
    fill_store(load_recipe(path, []))
    shards = sorted((tmp_path / "store").rglob("*.safetensors"))
    assert shards
    rows = distill(load_recipe(path, []))
    assert [row.name for row in rows] == ["test_resnet", "true ensemble", "student alone", "student"]
    assert sorted((tmp_path / "store").rglob("*.safetensors")) == shards  # nothing was lacking
