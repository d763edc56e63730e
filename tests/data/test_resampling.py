"""Resizing a batch of crops by matrix products: Pillow's pixels, to the bit."""

import numpy as np
import pytest
import torch
from PIL import Image

from meco_timm.data import resampling
from meco_timm.data.resampling import FILTERS, crops, resize

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def noise(count: int, height: int, width: int, channels: int) -> np.ndarray:
    """Uint8, B×H×C×W."""
    return np.random.default_rng(0).integers(0, 256, (count, height, channels, width), dtype=np.uint8)


def random_crops(count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes B×4, the first of them the whole image, and flips B×2."""
    draw = np.random.default_rng(1)
    heights, widths = draw.integers(2, height + 1, count), draw.integers(2, width + 1, count)
    heights[0], widths[0] = height, width
    top, left = draw.integers(0, height - heights + 1), draw.integers(0, width - widths + 1)
    return np.stack([top, left, heights, widths], 1), draw.random((count, 2)) < 0.5


def by_pillow(image: np.ndarray, box: np.ndarray, flips: np.ndarray, size: int, way: Image.Resampling) -> np.ndarray:
    """Uint8, C×size×size."""
    top, left, height, width = box.tolist()
    planes = []
    for plane in image.transpose(1, 0, 2):
        found = Image.fromarray(plane).crop((left, top, left + width, top + height)).resize((size, size), way)
        for flip, side in zip(flips, (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM), strict=True):
            found = found.transpose(side) if flip else found
        planes.append(np.asarray(found))
    return np.stack(planes)


@pytest.mark.parametrize("way", [BICUBIC, BILINEAR], ids=lambda way: way.name.lower())
@pytest.mark.parametrize(
    ("height", "width", "channels", "size"),
    [(28, 28, 1, 32), (32, 32, 3, 32), (9, 5, 3, 32), (150, 200, 3, 64), (200, 60, 1, 64), (64, 300, 3, 32)],
)
def test_crops_are_resized_and_mirrored_as_pillow_does(height, width, channels, size, way):
    pixels, (boxes, flips) = noise(24, height, width, channels), random_crops(24, height, width)
    found = resize(torch.from_numpy(pixels), crops(boxes, flips, size, FILTERS[way])).numpy()
    for i in range(24):
        np.testing.assert_array_equal(
            found[i], by_pillow(pixels[i], boxes[i], flips[i], size, way), err_msg=str(boxes[i])
        )


@pytest.mark.parametrize("at_once", [1, 8 * 40 * 3 * 40 * 3])
def test_a_large_batch_is_resized_in_parts(monkeypatch, at_once):
    """One image at a time, or three; some of them columns first."""
    pixels, (boxes, flips) = noise(8, 40, 40, 3), random_crops(8, 40, 40)
    boxes[1] = [0, 0, 40, 4]
    together = resize(torch.from_numpy(pixels), crops(boxes, flips, 16, FILTERS[BICUBIC]))
    calls, its = [], resampling._resize
    monkeypatch.setattr(resampling, "_resize", lambda part, *axes: (calls.append(len(part)), its(part, *axes))[1])
    monkeypatch.setattr(resampling, "AT_ONCE", at_once)
    assert torch.equal(resize(torch.from_numpy(pixels), crops(boxes, flips, 16, FILTERS[BICUBIC])), together)
    assert sum(calls) == 8
    assert max(calls) == (1 if at_once == 1 else 3)


def test_what_lies_beyond_a_smaller_image_does_not_matter():
    pixels, (boxes, flips) = noise(8, 40, 40, 3), random_crops(8, 20, 30)
    padded = pixels.copy()
    padded[:, 20:], padded[:, :, :, 30:] = 0, 255
    one, other = (resize(torch.from_numpy(p), crops(boxes, flips, 16, FILTERS[BICUBIC])) for p in (pixels, padded))
    assert torch.equal(one, other)


def test_the_order_of_addition_does_not_matter():
    """Weights are whole numbers, so that every device adds them up to the same."""
    pixels, (boxes, flips) = noise(8, 50, 70, 3), random_crops(8, 50, 70)
    chosen = crops(boxes, flips, 32, FILTERS[BICUBIC])
    for axis in chosen[:2]:
        assert (axis.weight == axis.weight.round()).all()
        assert (axis.weight.sum(2) - resampling.ONE).__abs__().max() < 20
    backwards = chosen._replace(
        down=resampling.Axis(*(np.ascontiguousarray(a[:, :, ::-1]) for a in chosen.down)),
        across=resampling.Axis(*(np.ascontiguousarray(a[:, :, ::-1]) for a in chosen.across)),
    )
    image = torch.from_numpy(pixels)
    assert torch.equal(resize(image, chosen), resize(image, backwards))


@pytest.mark.parametrize("turns", [True, False])
def test_tall_images_are_resized_in_the_order_of_this_pillow(turns, monkeypatch):
    """Pillow turned tall images round in some versions and not in others: the pixels differ, so one is wrong here."""
    right = resampling._turns_tall_images()
    monkeypatch.setattr(resampling, "_turns_tall_images", lambda: turns)
    pixels, boxes, flips = noise(1, 200, 60, 1), np.array([[0, 0, 200, 60]]), np.zeros((1, 2), bool)
    found = resize(torch.from_numpy(pixels), crops(boxes, flips, 32, FILTERS[BICUBIC]))[0].numpy()
    same = (found == by_pillow(pixels[0], boxes[0], flips[0], 32, BICUBIC)).all()
    assert same == (turns == right)
