"""The batch: sources, columns, splits, hidden labels, and batches that are a function of (seed, step)."""

from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from conftest import CLASSES, ROOT, draw_image, fill
from helpers.data import load, refused, seen
from helpers.image_tables import parquet, png
from PIL import Image

from meco_timm.data.loading import NO_LABEL, BatchStream
from meco_timm.data.views import Passes, Steps

# Sources


def test_class_folders_with_a_test_split(shapes):
    data = load(shapes)
    assert data.classes == sorted(CLASSES)
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 9, 12)
    assert set(data.train.rows) | set(data.validation.rows) == set(range(36))
    assert not set(data.train.rows) & set(data.validation.rows)


def test_class_folders_alone_give_a_share_of_images_for_the_test(tmp_path):
    fill(tmp_path / "all", dict.fromkeys(CLASSES, 10))
    data = load(tmp_path / "all", test_fraction=0.2, validation=0.0)
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 0, 6)
    files = [one["path"] for split in (data.train.split, data.test.split) for one in split.read(range(len(split)))]
    assert len(set(files)) == 30


def test_parquet_files_that_ship_with_the_repository():
    data = load(ROOT / "recipes/data/digits", validation=0.1, labelled=300)
    assert data.classes == [str(i) for i in range(10)]
    assert (len(data.train), len(data.labelled), len(data.validation), len(data.test)) == (1078, 300, 120, 599)
    assert Counter(data.test.labels.tolist()).keys() == set(range(10))


def test_columns_are_found_or_named(tmp_path):
    extra = {"other": (datasets.Image(), [png(0)] * 6), "fine": (datasets.Value("int64"), [0, 1, 2, 3, 0, 1])}
    folder = parquet(tmp_path, [0, 1, 2] * 2, **extra)
    assert "data.image_column: several fit (image, other)" in refused(folder, test_fraction=0.5)
    data = load(folder, test_fraction=0.3, image_column="other", label_column="fine", validation=0.0)
    assert data.classes == ["0", "1", "2", "3"]
    assert "there is no column 'imag'; the data set has image" in refused(folder, image_column="imag")


@pytest.mark.parametrize(
    ("kind", "labels", "classes"),
    [
        (datasets.Value("int64"), [0, 1, 2] * 4, ["0", "1", "2"]),
        (datasets.Value("string"), ["b", "a", "c"] * 4, ["a", "b", "c"]),
        (datasets.ClassLabel(names=["x", "y", "z"]), [0, 1, 2] * 4, ["x", "y", "z"]),
    ],
)
def test_classes_are_named_by_the_data_set(tmp_path, kind, labels, classes):
    parquet(tmp_path, labels, kind)
    parquet(tmp_path, labels, kind, name="test")
    data = load(tmp_path)
    assert data.classes == classes
    names = [classes[i] for i in data.test.labels]
    assert names == ([str(label) for label in labels] if isinstance(labels[0], str) else [classes[i] for i in labels])


@pytest.mark.parametrize(("kind", "labels"), [("int64", [0, 1, 2, 1]), ("string", ["a", "b", "c", "b"])])
def test_a_test_split_need_not_show_every_class(tmp_path, kind, labels):
    parquet(tmp_path, labels * 4, datasets.Value(kind))
    parquet(tmp_path, labels[1:2] * 3, datasets.Value(kind), name="test")
    data = load(tmp_path)
    assert len(data.classes) == 3
    assert data.test.labels.tolist() == [1, 1, 1]


def test_a_rare_class_stays_in_the_training_images(tmp_path):
    """One image of class dash: neither the test share nor the validation split takes it."""
    fill(tmp_path / "all", dict(zip(CLASSES, (12, 12, 1), strict=True)))
    for seed in range(5):
        data = load(tmp_path / "all", seed, validation=0.4, labelled=3)
        assert sorted(data.labelled.labels[data.labelled.rows]) == [0, 1, 2]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
def test_images_of_any_mode_become_three_channels(tmp_path, mode):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES)))
    rows = {"image": [png(i % 3, i, mode) for i in range(6)], "label": [0, 1, 2] * 2}
    for name in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")
    data = load(tmp_path, validation=0.0)
    batch = next(iter(data.in_order(data.test, 6)))
    assert batch.image.shape == (6, 3, 32, 32)
    assert batch.image.dtype == torch.uint8
    expected = draw_image(0, 0).convert(mode).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    assert torch.equal(batch.image[0], torch.from_numpy(np.array(expected)).permute(2, 0, 1))


# Splits and hidden labels


@pytest.mark.parametrize("labelled", [3, 4, 9, 15])
def test_the_labelled_subset_is_stratified(shapes, labelled):
    data = load(shapes, labelled=labelled)
    counts = Counter(data.labelled.labels[data.labelled.rows].tolist())
    assert sum(counts.values()) == labelled
    assert len(counts) == 3
    assert max(counts.values()) - min(counts.values()) <= 1
    assert set(data.labelled.rows) <= set(data.train.rows)


def test_an_uneven_data_set_keeps_its_proportions_or_has_as_many_of_each_class(tmp_path):
    fill(tmp_path / "train", dict(zip(CLASSES, (40, 20, 4), strict=True)))
    fill(tmp_path / "test", dict.fromkeys(CLASSES, 2))
    data, images = load(tmp_path, labelled=16, validation=0.25), load(tmp_path, images=16, validation=0.25)
    alike = load(tmp_path, labelled="6 per class", validation=0.25)
    assert Counter(data.validation.labels[data.validation.rows].tolist()) == {0: 10, 1: 5, 2: 1}
    assert Counter(images.train.labels[images.train.rows].tolist()) == {0: 10, 1: 5, 2: 1}
    assert Counter(data.labelled.labels[data.labelled.rows].tolist()) == {0: 10, 1: 5, 2: 1}
    assert Counter(alike.labelled.labels[alike.labelled.rows].tolist()) == {0: 6, 1: 6, 2: 3}  # 3 are all there are


def test_hidden_labels_do_not_reach_the_student(shapes):
    data = load(shapes, labelled=6)
    batch = seen(data, data.train, stop=9, batch=3)
    known = {int(row) for row, label in zip(batch.row, batch.label, strict=True) if label != NO_LABEL}
    assert NO_LABEL == -1
    assert known == set(data.labelled.rows.tolist())
    truth = data.labelled.labels
    assert all(label in (NO_LABEL, truth[row]) for row, label in zip(batch.row, batch.label, strict=True))
    taught = seen(data, data.labelled, stop=2, batch=3)
    assert all(label == truth[row] for row, label in zip(taught.row, taught.label, strict=True))


def test_the_student_may_see_the_labelled_images_only(shapes):
    data, every = load(shapes, labelled=6, student_sees="labelled"), load(shapes, labelled=6)
    assert data.train.rows.tolist() == data.labelled.rows.tolist() == every.labelled.rows.tolist()
    assert data.identity == every.identity  # the same zoo serves both
    assert (seen(data, data.train, stop=2, batch=3).label >= 0).all()


def test_without_labelled_every_training_label_is_known(shapes):
    data = load(shapes)
    assert (seen(data, data.train, stop=9, batch=3).label >= 0).all()


def test_splits_are_a_function_of_the_seed(shapes):
    first, again, other = load(shapes, labelled=6), load(shapes, labelled=6), load(shapes, 1, labelled=6)
    assert first.validation.rows.tolist() == again.validation.rows.tolist() != other.validation.rows.tolist()
    assert first.labelled.rows.tolist() == again.labelled.rows.tolist() != other.labelled.rows.tolist()


def test_the_identity_knows_images_labels_and_splits(shapes, tmp_path):
    first = load(shapes)
    assert load(shapes).identity == first.identity
    assert load(shapes, workers=2).identity == first.identity
    others = [load(shapes, 1), load(shapes, labelled=6), load(shapes, validation=0.5)]
    fill(tmp_path / "train", dict.fromkeys(CLASSES, 12), first_seed=7)  # same shape, other pixels
    fill(tmp_path / "test", dict.fromkeys(CLASSES, 4), first_seed=500)
    others.append(load(tmp_path))
    assert len({first.identity, *(o.identity for o in others)}) == 5


# Batches


def positions(size: int, batch: int, start: int, stop: int, **rank: int) -> list[list[int]]:
    return [[i for _, i in step] for step in BatchStream(Passes(size), Steps(batch, 3, start, stop, **rank))]


def test_every_image_once_per_epoch():
    for size, batch in ((12, 4), (13, 4), (5, 5), (7, 3)):
        row = [i for step in positions(size, batch, 0, 3 * size) for i in step]
        epochs = [row[i : i + size] for i in range(0, len(row), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs if len(epoch) == size)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_is_a_function_of_seed_and_step():
    whole = positions(13, 4, 0, 20)
    assert positions(13, 4, 7, 20) == whole[7:]
    assert [[i for _, i in step] for step in BatchStream(Passes(13), Steps(4, 4, 0, 20))] != whole
    assert all(len(step) == 4 for step in whole)


def test_two_processes_see_what_one_with_twice_the_batch_sees():
    whole = list(BatchStream(Passes(13), Steps(6, 3, 0, 20)))
    parts = [list(BatchStream(Passes(13), Steps(3, 3, 0, 20, rank=rank, world=2))) for rank in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


def test_two_processes_see_the_same_pixels_as_one(shapes):
    data = load(shapes)
    whole = seen(data, data.train, stop=4, batch=8)
    parts = [seen(data, data.train, stop=4, batch=4, rank=rank, world=2) for rank in (0, 1)]
    for step in range(4):
        both = torch.cat([part.image[4 * step : 4 * step + 4] for part in parts])
        assert torch.equal(both, whole.image[8 * step : 8 * step + 8])


@pytest.mark.parametrize("policy", [{}, {"auto_augment": "rand-m9-mstd0.5", "color_jitter": 0.4}])
def test_workers_do_not_change_what_is_seen(shapes, policy):
    batches = []
    for workers in (0, 2):
        data = load(shapes, workers=workers, augmentation=policy)
        batches.append(seen(data, data.train, stop=6, start=2))
    for without, with_two in zip(*batches, strict=True):
        assert torch.equal(without, with_two)


def test_views_differ_between_epochs_and_not_between_runs(shapes):
    data = load(shapes, augmentation={"scale": [0.3, 0.6]})
    first, second = (seen(data, data.train, start=start, stop=start + 9, batch=3) for start in (0, 9))
    one, two = first.image[first.row.argsort()], second.image[second.row.argsort()]
    assert first.row.sort().values.tolist() == second.row.sort().values.tolist() == sorted(data.train.rows.tolist())
    changed = (one != two).flatten(1).any(1)
    assert changed.all()
    assert torch.equal(first.image, seen(data, data.train, stop=9, batch=3).image)


def test_evaluation_sees_plain_images_once_and_in_order(shapes):
    data = load(shapes)
    batches = list(data.in_order(data.test, 5))
    assert [len(batch.row) for batch in batches] == [5, 5, 2]
    assert torch.cat([batch.row for batch in batches]).tolist() == list(range(12))
    again = list(data.in_order(data.test, 5))
    assert all(torch.equal(a.image, b.image) for a, b in zip(batches, again, strict=True))
    both = [batch.row for rank in (0, 1) for batch in data.in_order(data.test, 5, rank, 2)]
    assert sorted(torch.cat(both).tolist()) == list(range(12))


def test_images_are_bytes_not_normalised(shapes):
    data = load(shapes)
    batch = next(iter(data.batches(data.train, Steps(4, 0, 0, 1))))
    assert batch.image.dtype == torch.uint8
    assert batch.image.max() > 150
    assert batch.label.dtype == batch.row.dtype == torch.int64


def test_balanced_batches_show_each_class_alike_and_each_copy_in_a_view_of_its_own():
    """20, 5 and 2 images of three classes, 9 of each in an epoch of 27."""
    labels = np.repeat([0, 1, 2], [20, 5, 2])
    steps = list(BatchStream(Passes(27, labels=labels), Steps(9, 3, 0, 6)))
    for epoch in (steps[:3], steps[3:]):
        shown = [key for step in epoch for key in step]
        counts = Counter(i for _, i in shown)
        assert Counter(labels[i] for _, i in shown) == {0: 9, 1: 9, 2: 9}
        assert {counts[i] for i in range(20)} == {0, 1}
        assert sorted(counts[i] for i in range(20, 27)) == [1, 2, 2, 2, 2, 4, 5]
        assert len(set(shown)) == 27
    assert {i for step in steps[:3] for _, i in step} != {i for step in steps[3:] for _, i in step}


@pytest.mark.parametrize("ends", [None, np.array([8, 15, 27])])
def test_balanced_batches_are_functions_of_seed_and_step_on_any_number_of_processes(ends):
    options = {"labels": np.repeat([0, 1, 2], [20, 5, 2]), "ends": ends, "buffer": 6}
    whole = list(BatchStream(Passes(27, **options), Steps(6, 3, 0, 20)))
    assert list(BatchStream(Passes(27, **options), Steps(6, 3, 7, 20))) == whole[7:]
    parts = [list(BatchStream(Passes(27, **options), Steps(3, 3, 0, 20, rank=rank, world=2))) for rank in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


def test_balanced_sampling_is_for_trainings_on_labels(tmp_path):
    fill(tmp_path / "train", {"circle": 24, "cross": 4, "dash": 4})
    fill(tmp_path / "test", dict.fromkeys(CLASSES, 2), first_seed=500)
    natural, balanced = load(tmp_path), load(tmp_path, sampling="balanced")
    assert natural.identity != balanced.identity
    size = len(balanced.labelled)  # 18, 3 and 3
    taught = seen(balanced, balanced.labelled, stop=size // 4)
    assert Counter(taught.label.tolist()) == dict.fromkeys(range(3), size // 3)
    copies = taught.image[taught.label == 1].flatten(1).unique(dim=0)
    assert len(copies) > 3  # copies of three images differ
    learned = seen(balanced, balanced.train, stop=size // 4)
    assert sorted(learned.row.tolist()) == sorted(balanced.train.rows.tolist())


def test_a_recipe_with_the_key_streaming_is_told_so_and_read(shapes, caplog):
    assert len(load(shapes, streaming=True).train) == 27
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "data.streaming: files are always read in place now" in caplog.text
