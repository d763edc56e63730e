"""Data sets that are known without being opened: counts as of those that are, and nothing where that would be wrong."""

from typing import Any

import pytest

from meco_timm.common import UserError
from meco_timm.data import hub_datasets
from meco_timm.data.hub_datasets import COUNTS, Counts, known_data
from meco_timm.data.loading import load_data
from meco_timm.recipe.sections import Data


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"validation": 0.25},
        {"labelled": 10, "validation": 0.0},
        {"labelled": 9, "student_sees": "labelled", "augmentation": {"repeats": 2}},
    ],
)
def test_splits_are_as_large_as_those_that_are_loaded(shapes, monkeypatch, changes):
    monkeypatch.setitem(COUNTS, "me/shapes", Counts(["circle", "cross", "dash"], 36, 12))

    def of(source: str) -> Data:
        return Data.model_validate({"source": source, **changes})

    found, loaded = known_data(of("me/shapes")), load_data(of(str(shapes)), 0)
    assert found is not None
    for part in ("train", "labelled", "validation", "test"):
        assert len(getattr(found, part)) == len(getattr(loaded, part)), part
    assert (found.classes, found.repeats) == (loaded.classes, loaded.repeats)


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "me/other"},
        {"source": "uoft-cs/cifar100"},  # it has coarse labels, too
        {"source": "ufldl-stanford/svhn", "train_split": "extra"},
    ],
)
def test_nothing_is_taken_to_be_known_that_is_not(settings: dict[str, Any]):
    assert known_data(Data.model_validate(settings)) is None


def test_a_folder_of_the_same_name_comes_first(tmp_path, monkeypatch):
    (tmp_path / "uoft-cs/cifar10").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert known_data(Data(source="uoft-cs/cifar10")) is None


def test_imagenets_classes_are_timms_synsets():
    names = hub_datasets.names_of(COUNTS["ILSVRC/imagenet-1k"])
    assert (len(set(names)), names[0]) == (1000, "n01440764")
    assert len(hub_datasets.names_of(COUNTS["uoft-cs/cifar100"])) == 100


def test_more_labels_than_there_are_images_are_refused():
    with pytest.raises(UserError, match=r"data\.labelled: 70000 must lie between 10 \(one per class\) and 54000"):
        known_data(Data(source="ylecun/mnist", labelled=70_000))
