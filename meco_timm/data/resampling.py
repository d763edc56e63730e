"""Crops resized as Pillow resizes them, to the bit, a whole batch at once: two matrix products, on any device.

Pillow resamples lines, then columns (tall images the other way round), with weights in fixed point and bytes between
the two (libImaging/Resample.c: `precompute_coeffs`, `normalize_coeffs_8bpc`, `ImagingResampleInner`). The weights are
whole numbers, which float64 adds up exactly, so the order of addition, and with it the device, does not matter.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from meco_timm.common import upload

ONE = 1 << 22  # of Pillow's fixed point
AT_ONCE = 1 << 28  # bytes of pixels in float64


class Filter(NamedTuple):
    """A kernel of distances in pixels, and the distance beyond which it is 0."""

    kernel: Callable[[np.ndarray], np.ndarray]
    radius: float


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    return np.where(x < 1, near, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * a, 0))


FILTERS = {Image.Resampling.BILINEAR: Filter(_linear, 1.0), Image.Resampling.BICUBIC: Filter(_cubic, 2.0)}


class Axis(NamedTuple):
    """How one side of B images becomes `size` pixels. place: int64, B×size×taps, of the pixels that count; weight:
    float64, their weights in fixed point, whole numbers."""

    place: np.ndarray
    weight: np.ndarray


class Crops(NamedTuple):
    """How B crops are resized. columns_first: bool, B, the order in which Pillow does it."""

    down: Axis
    across: Axis
    columns_first: np.ndarray


def crops(boxes: np.ndarray, flips: np.ndarray, size: int, filter: Filter) -> Crops:
    """Of boxes, int64, B×4 (top, left, height, width), mirrored after that as `flips`, bool, B×2, says (left to right,
    top to bottom)."""
    top, left, height, width = boxes.T
    tall = (height - size > 0) & (height - size > 2 * (width - size))
    down, across = _axis(top, height, size, filter, flips[:, 1]), _axis(left, width, size, filter, flips[:, 0])
    return Crops(down, across, tall & _turns_tall_images())


def resize(pixels: Tensor, crops: Crops) -> Tensor:
    """The crops of pixels, uint8, B×H×C×W: lines of images, the smaller ones padded at the right and at the bottom.

    Returns:
        uint8, B×C×size×size.
    """
    b, h, c, w = pixels.shape
    size = crops.down.place.shape[1]
    at_once = max(1, AT_ONCE // (8 * h * c * max(w, size)))
    if b <= at_once and not crops.columns_first.any():
        return _resize(pixels, crops.down, crops.across)
    image = torch.empty(b, c, size, size, dtype=torch.uint8, device=pixels.device)
    for columns_first in (False, True):
        group = np.flatnonzero(crops.columns_first == columns_first)
        for places in (group[i : i + at_once] for i in range(0, len(group), at_once)):
            down, across = (Axis(place[places], weight[places]) for place, weight in (crops.down, crops.across))
            which = upload(torch.from_numpy(places), pixels.device)  # a mask would make the host wait for a GPU
            part = pixels[which]
            if columns_first:
                image[which] = _resize(part.transpose(1, 3), across, down).transpose(2, 3)
            else:
                image[which] = _resize(part, down, across)
    return image


def _resize(pixels: Tensor, down: Axis, across: Axis) -> Tensor:
    b, h, c, w = pixels.shape
    size = down.place.shape[1]
    lines = _to_bytes(torch.bmm(pixels.reshape(b, h * c, w).double(), _matrix(across, w, pixels.device).mT))
    image = _to_bytes(torch.bmm(_matrix(down, h, pixels.device), lines.view(b, h, c * size)))
    return image.to(torch.uint8).view(b, size, c, size).transpose(1, 2)


def _to_bytes(sums: Tensor) -> Tensor:
    """In place: fixed point → whole numbers from 0 to 255."""
    return sums.mul_(1 / ONE).add_(0.5).floor_().clamp_(0, 255)


def _matrix(axis: Axis, whole: int, device: torch.device) -> Tensor:
    """float64, B×size×whole."""
    place, weight = (upload(torch.from_numpy(array), device) for array in axis)
    matrix = torch.zeros(*place.shape[:2], whole, dtype=torch.float64, device=device)
    return matrix.scatter_add_(2, place.clamp_(max=whole - 1), weight)  # what is clamped has no weight


def _axis(start: np.ndarray, length: np.ndarray, size: int, filter: Filter, mirrored: np.ndarray) -> Axis:
    """Of B lines of `length` pixels from `start` on."""
    lengths, which = np.unique(length, return_inverse=True)
    place, weight = (array[which] for array in _weights(lengths, size, filter))
    place += start[:, None, None]
    place[mirrored], weight[mirrored] = place[mirrored, ::-1], weight[mirrored, ::-1]
    return Axis(place, weight)


def _weights(length: np.ndarray, size: int, filter: Filter) -> Axis:
    """Pillow's, of lines of `length` pixels."""
    scale = (length / size)[:, None]
    stretch = np.maximum(scale, 1.0)
    support, centre = filter.radius * stretch, (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), length[:, None])
    place = first[:, :, None] + np.arange((end - first).max())
    weight = filter.kernel((place - centre[:, :, None] + 0.5) * (1.0 / stretch)[:, :, None])
    weight[place >= end[:, :, None]] = 0
    weight /= np.cumsum(weight, 2)[:, :, -1:]  # one after the other, as Pillow adds them
    return Axis(place, np.trunc(weight * ONE + np.copysign(0.5, weight)))


@cache
def _turns_tall_images() -> bool:
    """Whether this Pillow resizes the columns of tall images first; older versions do not."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 9), dtype=np.uint8))
    cubic = Image.Resampling.BICUBIC
    return image.resize((8, 8), cubic).tobytes() == image.resize((9, 8), cubic).resize((8, 8), cubic).tobytes()
