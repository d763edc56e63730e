"""Data sets given in Python: of the library `datasets` and of torch, with their splits, classes and errors."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import CLASSES, draw_image
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder

from meco_timm.common import UserError, is_object
from meco_timm.data import data_of, load_data
from meco_timm.recipe import Data

SETTINGS = Data(source="x", image_size=16, crop_pct=1.0, workers=0)
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})


class Pairs(Dataset):
    """A torch data set; `form` makes its items out of (image of Pillow, label)."""

    def __init__(self, count: int = 12, form: Any = lambda image, label: (image, label), named: bool = True):
        self.count, self.form = count, form
        if named:
            self.classes = list(CLASSES)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return self.form(draw_image(i % 3, i), i % 3)


def of_datasets(count: int = 12, **columns: Any) -> datasets.Dataset:
    images = {"image": [draw_image(i % 3, i) for i in range(count)], "label": [i % 3 for i in range(count)]}
    return datasets.Dataset.from_dict(images, FEATURES)


def pixels(given: Any) -> torch.Tensor:
    """The test images, uint8 N×3×H×W, of a data set with the splits train and test."""
    source = load_data(data_of(SETTINGS, given), 0)
    return torch.cat([batch.image for batch in source.in_order(source.test, 4)])


def wanted(count: int = 6) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(draw_image(i % 3, i))).permute(2, 0, 1) for i in range(count)])


FORMS = {
    "pillow": lambda image, label: (image, label),
    "array": lambda image, label: (np.array(image), np.int64(label)),
    "tensor": lambda image, label: (torch.from_numpy(np.array(image)).permute(2, 0, 1), torch.tensor(label)),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_of_a_torch_data_set_are_those_it_gives(form):
    assert torch.equal(pixels({"train": Pairs(12), "test": Pairs(6, FORMS[form])}), wanted())


def test_a_dataset_dict_is_its_splits_whatever_its_format():
    given = datasets.DatasetDict(train=of_datasets(12).with_format("torch"), test=of_datasets(6).with_format("numpy"))
    assert torch.equal(pixels(given), wanted())


def test_an_image_folder_of_torchvision_is_read_from_its_files_without_its_transform(shapes, caplog):
    given = {
        name: ImageFolder(str(shapes / name), transform=lambda image: image.rotate(90)) for name in ("train", "test")
    }
    ours = load_data(SETTINGS.model_copy(update={"source": str(shapes)}), 0)
    assert torch.equal(pixels(given), torch.cat([batch.image for batch in ours.in_order(ours.test, 4)]))
    assert "its transform is not used; data.augmentation of the recipe is" in caplog.text
    assert "copied into memory" not in caplog.text


def test_deep_images_of_pillow_are_read_as_their_files_are():
    """Pillow's own conversion clips floats from 0 to 1 to two values."""
    grey = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    given = {part: Pairs(6, lambda _, label: (Image.fromarray(grey), label)) for part in ("train", "test")}
    assert torch.equal(pixels(given)[0, 0], torch.from_numpy((grey * 255).round().astype(np.uint8)))
    wide = Pairs(6, lambda _, label: (Image.fromarray(grey.astype(np.int32)), label))
    with pytest.raises(
        UserError, match=r"data\.train: item 0: its image cannot be read: its integers have a sign or 32"
    ):
        data_of(SETTINGS, wide)


@pytest.mark.parametrize("missing", [None, -1])
@pytest.mark.parametrize("named", [True, False])
def test_missing_labels_are_those_of_files(missing, named):
    """The student learns from these images, nobody else does."""
    given = {part: Pairs(12, lambda *pair: pair, named) for part in ("train", "test")}
    second = np.asarray(draw_image(1, 1))
    given["train"].form = lambda image, label: (image, missing if (np.asarray(image) == second).all() else label)
    data = load_data(data_of(SETTINGS.model_copy(update={"validation": 0.0}), given), 0)
    assert data.train.labels.tolist() == [0, -1, 2, *[0, 1, 2] * 3]
    assert (len(data.train), len(data.labelled)) == (12, 11)


def test_one_split_alone_is_split():
    source = load_data(data_of(SETTINGS, Subset(Pairs(40), range(30))), 0)
    assert source.classes == ["0", "1", "2"]  # a Subset has no names
    assert [len(images) for images in (source.train, source.validation, source.test)] == [22, 2, 6]


def test_its_name_changes_with_its_images_and_labels_only():
    def name(given: Any) -> str:
        return data_of(SETTINGS, given).source

    first = name(Pairs(12))
    assert is_object(first)
    assert first == name(Pairs(12))
    changed = (Pairs(11), Pairs(12, lambda image, label: (image.rotate(90), label)), Pairs(12, named=False))
    assert len({first, *map(name, changed), name(Pairs(12, lambda image, label: (image, 2 - label)))}) == 5


def without(column: str) -> datasets.Dataset:
    return of_datasets().remove_columns(column)


REFUSED = {
    "no images": (without("image"), "data.image_column: none was found; name one of the columns label."),
    "no labels": (without("label"), "data.label_column: none was found; name one of the columns image."),
    "a stream": (of_datasets().to_iterable_dataset(), "data.train: IterableDataset can only be read from its start"),
    "a list": ({"train": 5}, "data.train: int is no data set. Give a `DatasetDict`"),
    "no pairs": (Pairs(3, lambda image, label: image), "data.train: item 0: Image is no pair (image, label)."),
    "floats": (
        Pairs(3, lambda image, label: (torch.zeros(3, 4, 4), label)),
        "data.train: item 0: its image is Tensor of torch.float32, not of Pillow or uint8. Give the data set without",
    ),
    "a word": (Pairs(3, lambda image, label: (image, "cat")), "item 0: its label is str, not the number of a class."),
    "a class too high": (
        Pairs(3, lambda image, label: (image, label + 1)),
        "data.train: item 2: its label is 3, but its `classes` are 3: 0 to 2.",
    ),
    "no split": (
        datasets.DatasetDict(a=of_datasets()),
        "data.train_split: 'train' is not a split of object:DatasetDict",
    ),
    "no test images": (
        datasets.DatasetDict(train=of_datasets(), test=of_datasets(0)),
        "data.source: the test split has no images.",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what):
    given, message = REFUSED[what]
    with pytest.raises(UserError) as error:
        data_of(SETTINGS, given)
    assert message in str(error.value)


def test_without_the_object_its_name_is_refused():
    settings = SETTINGS.model_copy(update={"source": data_of(SETTINGS, of_datasets()).source})
    with pytest.raises(UserError, match=r"data.source: object:Dataset@\w+ is a data set of a Python program. Give it"):
        load_data(settings, 0)
