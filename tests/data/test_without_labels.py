"""Sources that need no labels: any images are read, with their labels where they have some."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import CLASSES, draw_image, fill
from helpers.data import PLAIN, refused
from helpers.image_tables import parquet, picture, tar

from meco_timm.common import UserError
from meco_timm.data import load_data, read_manifest
from meco_timm.recipe.sections import Data


def load_any(source: Path, **changes: Any) -> Any:
    settings = Data.model_validate(PLAIN | {"source": str(source), "test_fraction": 0.25, "validation": 0.25} | changes)
    data = load_data(settings, 0, labels_needed=False)
    assert read_manifest(settings, labels_needed=False).entries == data.manifest.entries
    return data


def draw(folder: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw_image(i % 3, i).save(folder / name)
    return folder


def flat(folder: Path) -> Path:
    return draw(folder, [f"{i}.png" for i in range(16)])


def loose(folder: Path) -> Path:
    return draw(folder, [*(f"{i}.png" for i in range(4)), *(f"{i % 2}/{i}.png" for i in range(4, 16))])


def one_folder_deep(folder: Path) -> Path:
    return draw(folder, [f"camera/2024/{i}.png" for i in range(16)])


def a_split_among_others(folder: Path) -> Path:
    return draw(folder, [f"{('test', 'more')[i % 2]}/{i}.png" for i in range(16)])


def table(folder: Path) -> Path:
    return parquet(folder, list(range(16)), datasets.Value("int64"), column="taken")


def measures(folder: Path) -> Path:
    return parquet(folder, [i / 3 for i in range(16)], datasets.Value("float64"))


def nulls(folder: Path) -> Path:
    return parquet(folder, [None] * 16, datasets.Value("string"))


def members(folder: Path) -> Path:
    tar(folder / "train.tar", **{f"{i}__png": picture(i % 3, i) for i in range(16)})
    return folder


MADE = [flat, loose, one_folder_deep, a_split_among_others, table, measures, nulls, members]


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_every_image_is_read(tmp_path, make):
    data = load_any(make(tmp_path / "data"))
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 3, 4)
    assert len(data.labelled) == len(data.alone) == 0
    assert (data.train.labels == -1).all()
    assert data.classes == []
    assert all(count.sum() == 0 for count in data.class_counts().values())
    if make is not loose:  # whose class folders are used without the images beside them
        refused(tmp_path / "data", test_fraction=0.25)


def test_labels_that_are_there_are_read(tmp_path):
    fill(tmp_path / "folders", dict.fromkeys(CLASSES, 8))
    parquet(tmp_path / "table", [None if i == 4 else i % 3 for i in range(24)], datasets.Value("int64"))
    for name in ("folders", "table"):
        data = load_any(tmp_path / name)
        assert len(data.classes) == 3
        assert len(data.labelled) == len(data.train) - (name == "table")
    parquet(tmp_path / "table", [-1] * 6, datasets.Value("int64"), name="test")
    assert len(load_any(tmp_path / "table").test) == 6


def test_splits_of_a_tree_are_kept(tmp_path):
    draw(tmp_path, [*(f"train/{i}.png" for i in range(8)), *(f"val/{i}.png" for i in range(3))])
    data = load_any(tmp_path)
    assert (len(data.train) + len(data.validation), len(data.test)) == (8, 3)


def test_what_is_no_image_is_refused_all_the_same(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match="holds no image file"):
        load_any(tmp_path)
