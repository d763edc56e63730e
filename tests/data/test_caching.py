"""The cache of decoded images: the same pixels with and without it, and what is refused."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import draw_image
from PIL import Image

from meco_timm.common import UserError
from meco_timm.data import Steps, batched_views, cache_images, caching, data_of, load_data, numbered, plan_cache
from meco_timm.data.batched_views import BatchedView, Uncut
from meco_timm.data.images import collate
from meco_timm.data.pixels import Pixels
from meco_timm.recipe import Data


@pytest.fixture
def mixed(tmp_path):
    """Images of several sizes and modes: grey, with a palette, wide, tall."""
    for label in range(3):
        folder = tmp_path / "mixed" / str(label)
        folder.mkdir(parents=True)
        for i in range(16):
            image = draw_image(label, i).resize((16 + 5 * i, 16 + (i % 3) * 30))
            image.convert(("RGB", "L", "P")[i % 3]).save(folder / f"{i:02}.png")
    return tmp_path / "mixed"


def opened(folder: Path, **keys: Any) -> tuple[Any, Data]:
    settings = Data.model_validate({"source": str(folder), "image_size": 32, "workers": 0, "validation": 0.2} | keys)
    return load_data(settings, seed=0, views=keys.pop("views", None)), settings


def cached(folder: Path, place: Path, **keys: Any) -> Any:
    data, settings = opened(folder, **keys)
    cache_images(data, settings, place, Accelerator())
    return data


def shown(data: Any, images: Any = None, batch: int = 4, steps: int = 20) -> list[Any]:
    return list(data.batches(images or data.train, Steps(batch, 0, 0, steps)))


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for batches in zip(one, other, strict=True) for a, b in zip(*batches, strict=True)
    )


FORMS = [{"augment_on": "loader"}, {"augment_on": "auto"}, {"augment_on": "device"}]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form["augment_on"])
@pytest.mark.parametrize(
    "augmentation",
    [{}, {"scale": [0.5, 1.0], "vflip": 0.5}, {"hflip": 0.0}, {"color_jitter": 0.4}, {"auto_augment": "rand-m5"}],
    ids=["default", "both flips", "crops", "jitter", "policy"],
)
def test_views_are_the_same_with_and_without_the_cache(mixed, tmp_path, form, augmentation):
    plain, _ = opened(mixed, cache="none", augmentation=augmentation)
    if form["augment_on"] == "device" and augmentation.keys() & {"color_jitter", "auto_augment"}:
        return
    data = cached(mixed, tmp_path, augmentation=augmentation, **form)
    assert data.train.pixels is not None
    assert same(shown(plain), shown(data))
    assert same(list(plain.in_order(plain.validation, 4)), list(data.in_order(data.validation, 4)))


@pytest.mark.parametrize(("mode", "size", "by_pillow"), [("L", 16, 0), ("RGB", 24, 4)])
def test_small_grey_images_are_resized_by_matrix_products_and_larger_ones_by_pillow(
    tmp_path, monkeypatch, mode, size, by_pillow
):
    for label in range(3):
        (tmp_path / "all" / str(label)).mkdir(parents=True)
        for i in range(8):
            draw_image(label, i).resize((size, size)).convert(mode).save(tmp_path / "all" / str(label) / f"{i}.png")
    calls, its = [], BatchedView._by_pillow
    monkeypatch.setattr(BatchedView, "_by_pillow", lambda *image: (calls.append(1), its(*image))[1])
    data = cached(tmp_path / "all", tmp_path)
    calls.clear()
    assert same(shown(data, steps=1), shown(opened(tmp_path / "all", cache="none")[0], steps=1))
    assert len(calls) == by_pillow


@pytest.mark.parametrize("keys", [{"workers": 2}, {"sampling": "balanced"}, {"buffer": 8}])
def test_other_ways_through_the_data_stay_the_same(mixed, tmp_path, keys):
    plain, _ = opened(mixed, **{"cache": "none", **keys, **({"cache": "none"} if "cache" in keys else {})})
    data = cached(mixed, tmp_path, **keys)
    assert data.train.pixels is not None
    assert same(shown(plain, plain.labelled), shown(data, data.labelled))


def test_for_a_gpu_the_loader_gives_what_it_makes_the_images_from(mixed, tmp_path, monkeypatch):
    """The products are then made on the GPU; here on the CPU, which gives the same."""
    data = cached(mixed, tmp_path)
    data.train.batched.device = torch.device("cuda")
    keys = [(numbered(0, 0), i) for i in range(6)]
    (read,) = data.train.__getitems__(keys)
    assert isinstance(read.image, Uncut)
    plain = collate(opened(mixed, cache="none")[0].train.__getitems__(keys))
    assert same([plain.batch()], [read.batch()])
    monkeypatch.setitem(batched_views.MATRICES, "cuda", 1000)  # too much for a GPU that is slow in float64
    (read,) = data.train.__getitems__(keys)
    assert same([plain.batch()], [read.batch()])
    assert isinstance(read.image, torch.Tensor)


def test_processes_share_a_batch_as_before(mixed, tmp_path):
    data = cached(mixed, tmp_path)
    whole = shown(data, batch=8, steps=3)
    halves = [list(data.batches(data.train, Steps(4, 0, 0, 3, rank, 2))) for rank in (0, 1)]
    assert all(torch.equal(w.image, torch.cat([a.image, b.image])) for w, a, b in zip(whole, *halves, strict=True))


def test_the_file_is_made_once_and_found_again(mixed, tmp_path, monkeypatch):
    first = cached(mixed, tmp_path)
    monkeypatch.setattr(caching, "write_pixels", None)  # would raise
    assert same(shown(first), shown(cached(mixed, tmp_path)))


def test_another_image_makes_another_file(mixed, tmp_path):
    before = cached(mixed, tmp_path)
    Image.new("RGB", (40, 40), "red").save(mixed / "0" / "01.png")
    after = cached(mixed, tmp_path)
    assert before.train.pixels.folder != after.train.pixels.folder
    assert same(shown(after), shown(opened(mixed, cache="none")[0]))


def test_another_image_of_a_data_set_without_files_makes_another_file(tmp_path):
    """Every image counts, not only the 64 that tell such data sets apart elsewhere."""

    def of(colour: str) -> Any:
        images = [draw_image(i % 3, i) for i in range(300)]
        images[101] = Image.new("RGB", (16, 16), colour)
        held = {"image": images, "label": [i % 3 for i in range(300)]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
        settings = data_of(Data(source="", image_size=32, workers=0), datasets.Dataset.from_dict(held, features))
        data = load_data(settings, seed=0)
        cache_images(data, settings, tmp_path, Accelerator())
        return data

    red, blue, again = of("red"), of("blue"), of("red")
    assert red.order == blue.order
    assert red.train.pixels.folder != blue.train.pixels.folder
    assert red.train.pixels.folder == again.train.pixels.folder


@pytest.mark.parametrize("name", ["index.npy", "pixels.bin"])
def test_a_damaged_file_is_made_again(mixed, tmp_path, name):
    file = cached(mixed, tmp_path).train.pixels.folder / name
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    data = cached(mixed, tmp_path)
    assert file.read_bytes() == whole
    assert same(shown(data), shown(opened(mixed, cache="none")[0]))


def test_two_runs_at_once_make_it_once(mixed, tmp_path, monkeypatch):
    written, write = [], caching.write_pixels

    def slowly(*arguments: Any) -> None:
        written.append(1)
        time.sleep(0.3)
        write(*arguments)

    monkeypatch.setattr(caching, "write_pixels", slowly)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: cached(mixed, tmp_path), range(2))
    assert len(written) == 1
    assert same(shown(one), shown(other))


def test_without_an_image_that_can_be_read_there_is_none(mixed, tmp_path):
    for file in mixed.rglob("*.png"):
        file.write_bytes(b"no image")
    assert cached(mixed, tmp_path).train.pixels is None


def test_a_full_disk_is_no_fault(mixed, tmp_path, caplog):
    (tmp_path / "file").touch()
    data = cached(mixed, tmp_path / "file")
    assert data.train.pixels is None
    assert "images are decoded each time" in caplog.text


def test_an_image_that_cannot_be_read_is_replaced_as_without_the_cache(mixed, tmp_path):
    (mixed / "1" / "03.png").write_bytes(b"no image")
    plain, data = opened(mixed, cache="none", max_bad=1)[0], cached(mixed, tmp_path, max_bad=1)
    assert len(data.train.pixels.index) < len(data.train) + len(data.validation)
    assert same(shown(plain), shown(data))


def test_pixels_go_to_another_process(mixed, tmp_path):
    pixels = cached(mixed, tmp_path).train.pixels
    copy = pickle.loads(pickle.dumps(pixels))
    assert isinstance(copy, Pixels)
    np.testing.assert_array_equal(copy.stack(np.arange(5)), pixels.stack(np.arange(5)))
    assert len(pickle.dumps(pixels)) < 1000


def test_validation_images_are_decoded_once(mixed, tmp_path):
    data = cached(mixed, tmp_path)
    first = list(data.in_order(data.validation, 4))
    data.validation.pixels, data.validation.split = None, None
    assert same(first, list(data.in_order(data.validation, 4)))
    assert [len(batch.image) for batch in data.in_order(data.validation, 5)] == [5, 3]


def test_the_plan_predicts_the_size(mixed, tmp_path):
    data, settings = opened(mixed)
    plan = plan_cache(data, settings)
    cache_images(data, settings, tmp_path, Accelerator())
    kept = data.train.pixels.bytes.nbytes + len(data.validation) * 3 * 32 * 32
    assert plan.used
    assert plan.bytes == pytest.approx(kept, rel=0.1)
    assert (
        str(plan) == f"cache   training and validation images are decoded once: {plan.bytes / 2**20:,.1f} MiB of memory"
    )


def test_large_images_are_not_cached_unless_it_is_asked_for(mixed, monkeypatch):
    monkeypatch.setattr(caching.psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000_000))
    data, settings = opened(mixed)
    assert not plan_cache(data, settings).used
    assert "a tenth of the free memory" in str(plan_cache(data, settings))
    assert plan_cache(data, settings.model_copy(update={"cache": "memory"})).used
    monkeypatch.setattr(caching.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(UserError, match=r"data\.cache: all images are 0\.0 GiB when decoded.*Write cache: auto"):
        plan_cache(data, settings.model_copy(update={"cache": "memory"}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cache": "none"}, "data.augment_on: device works on cached images, and there are none: data.cache is none"),
        ({"augmentation": {"auto_augment": "rand-m5"}}, "data.augment_on: device knows random crops"),
        ({"interpolation": "nearest"}, "data.augment_on: device knows random crops"),
    ],
)
def test_matrix_products_that_are_not_possible_are_refused(mixed, keys, message):
    data, settings = opened(mixed, augment_on="device", **keys)
    with pytest.raises(UserError, match=message):
        plan_cache(data, settings)


def test_views_that_differ_from_timms_are_not_used(mixed, tmp_path, monkeypatch, caplog):
    """Another version of a library may draw or resize otherwise."""
    monkeypatch.setattr("meco_timm.data.batched_views.derive", lambda *_: 1)
    data = cached(mixed, tmp_path)
    assert data.train.batched is None
    assert "made one by one" in caplog.text
    assert same(shown(data), shown(opened(mixed, cache="none")[0]))
