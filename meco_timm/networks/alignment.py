"""Feature maps of two networks in a form in which they can be compared (paper, section 3.3).

`projection` keeps maps: positions are pooled to a grid, and the channels of student and teacher meet in a learned map
per teacher (distillation/projections.py). The paper's forms are vectors of one length, by adaptive pooling without
parameters. All are float32 and standardised per image (mean 0, variance 1 over all numbers of a block), so that blocks
of any two networks have one scale and weights mean the same everywhere.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class Vectors(nn.Module):
    """A block as a vector B×length, alike for all networks, so teacher and student become the same (the paper).

    method: a word of `VECTORS`.
    """

    def __init__(self, method: str, length: int):
        super().__init__()
        self.method, self.length = method, length

    def forward(self, maps: Tensor) -> Tensor:
        """B×C×H×W → B×length, float32, standardised per image."""
        return standardise(VECTORS[self.method](maps.float(), self.length))


class Maps(nn.Module):
    """A block as maps B×c×h×w with h and w at most 4, float32, standardised per image.

    channels: C of the block. most: that a teacher's map keeps, so that targets stay small in memory and in a store; a
    student's keeps all, and a projection per teacher follows (distillation/projections.py). The matrix that reduces
    them is a buffer: it moves with the network, and a compiled forward finds it.
    """

    matrix: Tensor | None

    def __init__(self, channels: int, most: int | None = None):
        super().__init__()
        matrix = orthogonal(channels, most) if most is not None and channels > most else None
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """B×C×H×W → B×min(C, most)×h×w."""
        pooled = pool_to_grid(maps)
        return standardise(pooled if self.matrix is None else reduce_channels(pooled, self.matrix))


def block_forms(alignment: Alignment, channels: Iterable[int], as_teacher: bool) -> nn.ModuleList:
    """What each block becomes; `channels`: C of each."""
    if not alignment.per_teacher:
        return nn.ModuleList(Vectors(alignment.method, alignment.length) for _ in channels)
    return nn.ModuleList(Maps(each, alignment.length // GRID**2 if as_teacher else None) for each in channels)


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


def reduce_channels(maps: Tensor, matrix: Tensor) -> Tensor:
    """B×C×h×w → B×c×h×w by a c×C matrix; by a random orthogonal one distances between maps are kept on average (Johnson
    and Lindenstrauss 1984)."""
    device = "cpu" if maps.is_meta else maps.device.type  # meta knows no autocast
    with torch.autocast(device, enabled=False):  # as exact in a mixed-precision run
        return torch.einsum("oc,bchw->bohw", matrix, maps)


@lru_cache(maxsize=64)
def orthogonal(size: int, rows: int) -> Tensor:
    """rows×size with orthonormal rows: a function of the two numbers alone."""
    generator = torch.Generator().manual_seed(size * 65537 + rows)
    return torch.linalg.qr(torch.randn(size, rows, generator=generator, dtype=torch.float64))[0].T.float().contiguous()


def choose_blocks(available: int, wanted: int) -> list[int]:
    """Indices of the last block of each of `wanted` equal parts of a network: alike in relative depth between any two.

    `choose_blocks(12, 4)` is [2, 5, 8, 11], `choose_blocks(5, 4)` is [1, 2, 3, 4].
    """
    return [-(-(i + 1) * available // wanted) - 1 for i in range(wanted)]
