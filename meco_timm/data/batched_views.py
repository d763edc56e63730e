"""Training views of a whole batch from decoded images: the pixels of timm's transform, to the bit, for less time.

timm's transform of a small image spends most of its time outside of the resizing. Here timm draws the crop, as in its
transform, and the crops of a batch are resized together: by matrix products on a GPU, by what is faster on a CPU.
"""

import random
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import RandomHorizontalFlip, RandomVerticalFlip

from meco_timm.common import derive, upload
from meco_timm.data.pixels import Pixels
from meco_timm.data.resampling import FILTERS, Crops, crops, resize
from meco_timm.data.views import View

CPU = torch.device("cpu")
FLIPS = [[], [RandomHorizontalFlip], [RandomVerticalFlip], [RandomHorizontalFlip, RandomVerticalFlip]]
# Multiply-adds of an image up to which matrix products are used: where a CPU is faster by them than by Pillow; and on a
# GPU, many of which have a 64th of their speed in float64: 12,000 images/s on an L4 by its data sheet.
MATRICES = {"cpu": 60_000, "cuda": 20_000_000}


class Uncut(NamedTuple):
    """A batch before its crops are resized. pixels: uint8, B×H×C×W."""

    pixels: np.ndarray
    crops: Crops

    def image(self, device: torch.device) -> Tensor:
        """uint8, B×3×size×size, on the device."""
        image = resize(upload(torch.from_numpy(self.pixels), device), self.crops)
        return image.expand(-1, 3, -1, -1).contiguous()


class BatchedView:
    """A random crop, resized, and flips, as timm's transform draws them for (view, row).

    device: where the batches are used. always_matrices: resize by matrix products also where Pillow is faster.
    """

    def __init__(
        self, crop: RandomResizedCropAndInterpolation, flips: list[Any], device: torch.device, always_matrices: bool
    ):
        self.crop, self.flips, self.device, self.always_matrices = crop, flips, device, always_matrices
        self.filter = FILTERS[Image.Resampling[crop.interpolation.name]]

    @classmethod
    def of(cls, transform: Any, device: torch.device = CPU, always_matrices: bool = False) -> "BatchedView | None":
        """Of a transform of training; None where a part of it can only be done image by image."""
        crop, *flips = transform.transforms[:-1]
        known = type(crop) is RandomResizedCropAndInterpolation and not isinstance(crop.interpolation, tuple)
        if not known or Image.Resampling[crop.interpolation.name] not in FILTERS:
            return None
        if [type(flip) for flip in flips] not in FLIPS:
            return None
        return cls(crop, flips, device, always_matrices)

    def __call__(self, pixels: Pixels, places: np.ndarray, views: list[View], rows: list[int]) -> Tensor | Uncut:
        """The images, uint8 B×3×size×size; for a GPU what it makes them from."""
        boxes, flips = self._draw(pixels.sizes(places).tolist(), views, rows)
        size = self.crop.size[0]
        if self.always_matrices or _multiply_adds(pixels, size) <= MATRICES.get(self.device.type, MATRICES["cpu"]):
            uncut = Uncut(pixels.stack(places), crops(boxes, flips, size, self.filter))
            return uncut if self.device.type == "cuda" else uncut.image(CPU)
        batch = np.empty((len(rows), 3, size, size), np.uint8)
        for image, place, box, flip in zip(batch, places.tolist(), boxes.tolist(), flips.tolist(), strict=True):
            image[:] = self._by_pillow(pixels.image(place, box), flip)
        return torch.from_numpy(batch)

    def _draw(self, sizes: list[list[int]], views: list[View], rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Boxes, int64 B×4 (top, left, height, width), and flips, bool B×2 (left to right, top to bottom)."""
        boxes, flips = np.empty((len(rows), 4), np.int64), np.zeros((len(rows), 2), bool)
        for i, (size, view, row) in enumerate(zip(sizes, views, rows, strict=True)):
            seed = derive(view.seed, row)
            random.seed(seed)
            boxes[i] = self.crop.get_params(_of_size(*size), self.crop.scale, self.crop.ratio)
            if self.flips:
                torch.default_generator.manual_seed(seed)
            for flip in self.flips:
                flips[i, int(type(flip) is RandomVerticalFlip)] = bool(torch.rand(1) < flip.p)
        return boxes, flips

    def _by_pillow(self, image: Image.Image, flips: list[bool]) -> np.ndarray:
        """uint8, 3×size×size, or 1×size×size where the channels are equal."""
        image = image.resize(self.crop.size[::-1], Image.Resampling[self.crop.interpolation.name])
        for flip, way in zip(flips, (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM), strict=True):
            image = image.transpose(way) if flip else image
        raw = "L" if image.mode == "L" else "RGB;L"
        lines = np.frombuffer(image.tobytes("raw", raw), np.uint8).reshape(image.height, -1, image.width)
        return lines.transpose(1, 0, 2)


def _multiply_adds(pixels: Pixels, size: int) -> int:
    """Of an image by matrix products."""
    height, channels, width = pixels.largest
    return channels * height * size * (width + size)


@lru_cache(maxsize=1024)
def _of_size(height: int, width: int) -> Image.Image:
    """timm draws for an image, of which it looks at the size only."""
    return Image.new("1", (width, height))
