"""Images: every kind as timm's evaluation has it, and those that cannot be read."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import draw_image, image_folder
from helpers.data import load, seen
from PIL import Image
from timm.data import ImageDataset
from timm.data.readers.img_extensions import add_img_extensions

from meco_timm.common.errors import UserError
from meco_timm.data import cache_images
from meco_timm.data.decoding import decode
from meco_timm.data.images import BadImages
from meco_timm.data.views import Steps
from meco_timm.recipe.sections import Data


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    return exif


def frames() -> list[Image.Image]:
    return [Image.fromarray(pixels(8, 12, 3)).rotate(180 * i) for i in range(3)]


RGB, RGBA = Image.fromarray(pixels(8, 12, 3)), Image.fromarray(pixels(8, 12, 4))
PALETTE = RGB.quantize(16)
KINDS: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "RGB": (RGB, "png", {}),
    "JPEG turned by EXIF": (RGB, "jpg", {"exif": turned()}),
    "CMYK": (RGB.convert("CMYK"), "jpg", {}),
    "palette": (RGB.convert("P"), "png", {}),
    "grey": (RGB.convert("L"), "png", {}),
    "black and white": (RGB.convert("1"), "png", {}),
    "animated GIF": (frames()[0], "gif", {"save_all": True, "append_images": frames()[1:]}),
    "animated WebP": (frames()[0], "webp", {"save_all": True, "append_images": frames()[1:], "lossless": True}),
    "TIFF of 8 bits": (RGB, "tif", {}),
}


@pytest.mark.parametrize(("image", "ending", "options"), KINDS.values(), ids=KINDS.keys())
@pytest.mark.filterwarnings("ignore:Palette images")
def test_every_kind_is_what_timm_makes_of_it(tmp_path, image, ending, options):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / f"0.{ending}", **options)
    path = tmp_path / f"a/0.{ending}"
    add_img_extensions(f".{ending}")
    expected, _ = ImageDataset(str(tmp_path))[0]
    for stored in ({"bytes": None, "path": str(path)}, {"bytes": path.read_bytes(), "path": None}):
        found = decode(stored)
        assert found.mode == "RGB"
        assert found.size == (12, 8)
        assert np.array_equal(np.asarray(found), np.asarray(expected))


TRANSPARENT: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "RGB and alpha": (RGBA, {}),
    "grey and alpha": (Image.merge("LA", [RGBA.getchannel(i) for i in (0, 3)]), {}),
    "palette, one colour": (PALETTE, {"transparency": 3}),
    "palette, in bytes": (PALETTE, {"transparency": bytes(range(0, 256, 16))}),
    "grey, one shade": (RGB.convert("L"), {"transparency": int(RGB.convert("L").getpixel((0, 0)))}),  # type: ignore[arg-type]
    "RGB, one colour": (RGB, {"transparency": RGB.getpixel((0, 0))}),
}


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 40, 200)])
@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_is_laid_on_the_background(tmp_path, kind, background):
    """Longhand: alpha · colour + (1 − alpha) · background, which Pillow rounds by at most one."""
    image, options = TRANSPARENT[kind]
    image.save(tmp_path / "0.png", **options)
    with Image.open(tmp_path / "0.png") as stored:
        rgba = np.asarray(stored.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    assert alpha.min() < 1
    expected = alpha * rgba[..., :3] + (1 - alpha) * np.array(background)
    found = np.asarray(decode({"bytes": None, "path": str(tmp_path / "0.png")}, background))
    assert np.abs(found - expected).max() <= 1


def test_the_background_reaches_training_cache_and_check(tmp_path):
    """Squares whose shape is in alpha are one and the same image without it."""
    for i in range(12):
        place = tmp_path / "data" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        alpha = Image.new("L", (16, 16), 255 * (i % 2))
        Image.merge("RGBA", [Image.new("L", (16, 16), 0)] * 3 + [alpha]).save(place / f"{i}.png")
    flat = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]}
    for background, clear in ((None, 255), ([0, 0, 200], None)):
        changes = {"background": background} if background else {}
        data = load(tmp_path / "data", validation=0.0, test_fraction=0.5, augmentation=flat, **changes)
        settings = Data(source="x", image_size=32, crop_pct=1.0, workers=0, augmentation=flat, **changes)
        for cached in (False, True):
            if cached:
                cache_images(data, settings, tmp_path / "cache", Accelerator(cpu=True))
            batch = seen(data, data.train, stop=3, batch=2)
            for image, label in zip(batch.image, batch.label, strict=True):
                colour = [0, 0, 0] if label else [clear] * 3 if clear else background
                assert image.flatten(1).unique(dim=1).flatten().tolist() == colour
    assert load(tmp_path / "data").order != load(tmp_path / "data", background=[0, 0, 0]).order


def test_floats_from_0_to_1_are_read_and_other_ranges_refused(tmp_path):
    values = np.linspace(0, 1, 96, dtype=np.float32).reshape(8, 12)
    for name, factor in (("unit", 1), ("wide", 4095)):
        Image.fromarray(values * factor).save(tmp_path / f"{name}.tif")
    found = np.asarray(decode({"bytes": None, "path": str(tmp_path / "unit.tif")}))
    assert np.array_equal(found[..., 0], np.round(values * 255))
    with pytest.raises(ValueError, match="its floats range from 0 to 4095, and 0 to 1 are read"):
        decode({"bytes": None, "path": str(tmp_path / "wide.tif")})


@pytest.mark.parametrize("largest", [200, 4000, 10**6])
def test_integers_of_32_bits_are_refused_whatever_their_range(tmp_path, largest):
    """Shifted by what an image needs, a dark image of 16 bits and a bright one of 8 would look alike."""
    Image.fromarray(np.linspace(0, largest, 96).astype(np.int32).reshape(8, 12)).save(tmp_path / "int.tif")
    with pytest.raises(ValueError, match=f"have a sign or 32 bits, and range from 0 to {largest}. Save 8 or 16 bits"):
        decode({"bytes": None, "path": str(tmp_path / "int.tif")})


@pytest.mark.parametrize("ending", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("largest", [65535, 200])
def test_grey_of_16_bits_keeps_its_upper_ones(ending, largest):
    """pillow, and timm with it, clips them: nearly all would be white. A dark image stays dark."""
    deep = np.linspace(0, largest, 96).astype(np.uint16).reshape(8, 12)
    file = io.BytesIO()
    Image.fromarray(deep).save(file, ending)
    found = np.asarray(decode({"bytes": file.getvalue(), "path": None}))
    assert np.array_equal(found, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, 2))
    assert (np.asarray(Image.open(file).convert("RGB")) == 255).mean() > 0.9 or largest < 256


def test_a_transparent_value_of_16_bits_is_laid_on_the_background():
    deep, file = np.uint16([[0, 256, 65535]]), io.BytesIO()
    Image.fromarray(deep).save(file, "PNG", transparency=256)
    found = np.asarray(decode({"bytes": file.getvalue(), "path": None}, (9, 8, 7)))
    assert found.tolist() == [[[0, 0, 0], [9, 8, 7], [255, 255, 255]]]


# Images that cannot be read


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """36 training images of which two in a row are no images."""
    folder = image_folder(tmp_path / "data")
    for number in (3, 4):
        (folder / f"train/cross/{number:03}.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_that_can_be_read_stands_in(damaged, caplog, workers):
    data = load(damaged, workers=workers, max_bad=2, validation=0.0)
    bad = BadImages(2)
    batches = list(data.batches(data.train, Steps(6, 0, 0, 12), bad))
    row = torch.cat([batch.row for batch in batches])
    counts = np.bincount(row[:36], minlength=36)
    assert counts[[15, 16, 17]].tolist() == [0, 0, 3]  # twelve circles come first
    assert (np.delete(counts, [15, 16, 17]) == 1).all()
    whole = image_folder(damaged.with_name("whole"))
    stands = load(whole, validation=0.0)
    expected = seen(stands, stands.train, stop=6, batch=6, seed=0)
    where = expected.row.tolist().index(17)
    assert torch.equal(torch.cat([b.image for b in batches])[:36][row[:36] == 17][0], expected.image[where])
    assert len(bad.faults) == 2  # each once, in two epochs
    said = caplog.text
    assert said.count("003.png: the image cannot be read") == said.count("004.png: the image cannot be read") == 1


def test_one_more_than_allowed_stops_it_with_all_names(damaged):
    data = load(damaged, max_bad=1, validation=0.0)
    with pytest.raises(UserError, match=r"data\.max_bad: 2 training image\(s\) cannot be read, and 1 may be") as caught:
        seen(data, data.train, stop=9)
    assert all(f"{number:03}.png" in str(caught.value) for number in (3, 4))


def test_none_is_allowed_unless_said(damaged):
    data = load(damaged, validation=0.0)
    with pytest.raises(UserError, match=r"00[34]\.png: the image cannot be read: .* Mend it or take it out"):
        seen(data, data.train, stop=9)


def test_the_test_split_must_be_readable(tmp_path):
    folder = image_folder(tmp_path)
    (folder / "test/dash/001.png").write_bytes(b"no picture")
    data = load(folder, max_bad=5)
    with pytest.raises(UserError, match=r"test/dash/001\.png: the image cannot be read"):
        list(data.in_order(data.test, 4))


def test_many_processes_count_together(monkeypatch):
    class Two:
        num_processes = 2

    others = [(7, "data.source: b: the image cannot be read")]
    monkeypatch.setattr("meco_timm.data.images.gather_object", lambda mine: [*mine, *others])
    bad = BadImages(2, shown=False)
    bad.add([(3, "data.source: a: the image cannot be read")])
    two: Any = Two()
    assert bad.count(two) == {"bad_images": 2} == bad.count(two)
    others.append((9, "data.source: c: the image cannot be read"))
    with pytest.raises(UserError, match="3 training image"):
        bad.count(two)
    assert BadImages(0).count(two) == {}


def test_a_picture_in_memory_is_not_copied_from_its_file(tmp_path):
    draw_image(1, 0).save(tmp_path / "0.png")
    image = decode({"bytes": None, "path": str(tmp_path / "0.png")})
    (tmp_path / "0.png").unlink()
    assert np.array_equal(np.asarray(image), np.asarray(draw_image(1, 0)))
