"""Feature maps of two networks in a form in which they can be compared (paper, section 3.3).

`projection` keeps maps: positions are pooled to a grid, and the channels of student and teacher meet in a learned map
per teacher (distillation/projections.py). The paper's forms are vectors of one length, by adaptive pooling without
parameters. All are float32 and standardised per image (mean 0, variance 1 over all numbers of a block), so that blocks
of any two networks have one scale and weights mean the same everywhere.
"""

from collections.abc import Callable
from functools import lru_cache
from math import isqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from meco_timm.common import upload
from meco_timm.recipe import Alignment

GRID = 4  # positions per side that `projection` and `grid` keep


def flatten(maps: Tensor, length: int) -> Tensor:
    """B×C×H×W → B×length: all C·H·W values in a row, pooled (the paper)."""
    return _pooled(F.adaptive_avg_pool1d, maps.flatten(1), length)


def channel_mean(maps: Tensor, length: int) -> Tensor:
    """B×C×H×W → B×length: H·W pooled to `length`, then the mean over channels (the paper's released code); pooling and
    mean commute."""
    return _pooled(F.adaptive_avg_pool1d, maps.mean(1).flatten(1), length)


def grid(maps: Tensor, length: int) -> Tensor:
    """B×C×H×W → B×length: positions pooled to 4×4 and channels to length/16, apart, so that positions are kept."""
    groups = length // GRID**2
    if maps.shape[1] % groups:  # groups of channels overlap
        return _pooled(F.adaptive_avg_pool3d, maps.unsqueeze(1), (groups, GRID, GRID)).flatten(1)
    by_group = maps.unflatten(1, (groups, -1)).mean(2)  # the same, some three times faster
    return _pooled(F.adaptive_avg_pool2d, by_group, GRID).flatten(1)


def attention(maps: Tensor, length: int) -> Tensor:
    """B×C×H×W → B×length: energy per position, the mean of squares over channels, pooled to √length × √length
    (Zagoruyko 2017)."""
    return _pooled(F.adaptive_avg_pool2d, maps.square().mean(1, keepdim=True), isqrt(length)).flatten(1)


VECTORS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "flatten": flatten,
    "channel_mean": channel_mean,
    "grid": grid,
    "attention": attention,
}


class Vectors(NamedTuple):
    """Blocks as vectors B×length, alike for all networks, so teacher and student become the same (the paper).

    method: a word of `VECTORS`.
    """

    method: str
    length: int

    def of_teacher(self, maps: Tensor) -> Tensor:
        """B×C×H×W → B×length, float32, standardised per image."""
        return standardise(VECTORS[self.method](maps.float(), self.length))

    def of_student(self, maps: Tensor) -> Tensor:
        """B×C×H×W → B×length."""
        return self.of_teacher(maps)


class Maps(NamedTuple):
    """Blocks as maps B×c×h×w with h and w at most 4, float32, standardised per image; c is each network's own.

    channels: most that a teacher's map keeps, so that targets stay small in memory and in a store.
    """

    channels: int

    def of_teacher(self, maps: Tensor) -> Tensor:
        """B×C×H×W → B×min(C, channels)×h×w."""
        return standardise(reduce_channels(pool_to_grid(maps), self.channels))

    def of_student(self, maps: Tensor) -> Tensor:
        """B×C×H×W → B×C×h×w; a projection per teacher follows (distillation/projections.py)."""
        return standardise(pool_to_grid(maps))


def block_form(alignment: Alignment) -> Vectors | Maps:
    """What a block becomes, on the teacher's side and on the student's."""
    return Maps(alignment.length // GRID**2) if alignment.per_teacher else Vectors(alignment.method, alignment.length)


def standardise(block: Tensor) -> Tensor:
    """B×… → the same shape, mean 0 and variance 1 over all numbers of an image."""
    return F.layer_norm(block, block.shape[1:])


def pool_to_grid(maps: Tensor, height: int = GRID, width: int = GRID) -> Tensor:
    """B×C×H×W → B×C×min(H, height)×min(W, width), float32; smaller maps are not repeated.

    Maps in half precision are not copied to float32 before, where the sizes divide: such a copy is kept for the
    backward pass, 0.8 GB for a ResNet-50 and 128 images.
    """
    size = min(maps.shape[2], height), min(maps.shape[3], width)
    if maps.shape[2:] == size:
        return maps.float()
    if maps.dtype != torch.float32 and not (maps.shape[2] % size[0] or maps.shape[3] % size[1]):
        parts = maps.unflatten(3, (size[1], -1)).unflatten(2, (size[0], -1))
        return parts.mean((3, 5), dtype=torch.float32)
    return _pooled(F.adaptive_avg_pool2d, maps.float(), size)


def _pooled(pool: Callable[..., Tensor], maps: Tensor, size: int | tuple[int, ...]) -> Tensor:
    """`pool` to `size`. On the CPU for MPS, which lacks sizes that do not divide the map's (pytorch issue 96056)."""
    return pool(maps.cpu(), size).to(maps.device) if maps.device.type == "mps" else pool(maps, size)


def reduce_channels(maps: Tensor, channels: int) -> Tensor:
    """B×C×h×w → B×min(C, channels)×h×w by a fixed random orthogonal projection: distances between maps are kept on
    average (Johnson and Lindenstrauss 1984)."""
    if maps.shape[1] <= channels:
        return maps
    matrix = _orthogonal_on(maps.device, maps.shape[1], channels)
    device = "cpu" if maps.is_meta else maps.device.type  # meta knows no autocast
    with torch.autocast(device, enabled=False):  # as exact in a mixed-precision run
        return torch.einsum("oc,bchw->bohw", matrix, maps)


@torch.compiler.disable  # which would pass over the cache, and make the matrix in each step
@lru_cache(maxsize=64)
def _orthogonal_on(device: torch.device, size: int, rows: int) -> Tensor:
    """Copied to the device once: a copy in each step would wait for it."""
    return upload(_orthogonal(size, rows), device)


@lru_cache(maxsize=64)
def _orthogonal(size: int, rows: int) -> Tensor:
    """rows×size with orthonormal rows: a function of the two numbers alone."""
    generator = torch.Generator().manual_seed(size * 65537 + rows)
    return torch.linalg.qr(torch.randn(size, rows, generator=generator, dtype=torch.float64))[0].T.float().contiguous()


def choose_blocks(available: int, wanted: int) -> list[int]:
    """Indices of the last block of each of `wanted` equal parts of a network: alike in relative depth between any two.

    `choose_blocks(12, 4)` is [2, 5, 8, 11], `choose_blocks(5, 4)` is [1, 2, 3, 4].
    """
    return [-(-(i + 1) * available // wanted) - 1 for i in range(wanted)]
