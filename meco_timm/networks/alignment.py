"""4 · Maps of any shape → vectors of one length, by adaptive pooling, without parameters (paper, section 3.3).

Every function takes maps B×C×H×W of any C, H, W and gives B×length in float32, standardised per image (mean 0,
variance 1 over the vector), so that blocks of any two networks have one scale and weights mean the same everywhere.
"""

from collections.abc import Callable
from math import isqrt

import torch.nn.functional as F
from torch import Tensor

GRID = 4  # positions per side that `grid` keeps


def flatten(maps: Tensor, length: int) -> Tensor:
    """All C·H·W values in a row, pooled to `length` (the paper)."""
    return F.adaptive_avg_pool1d(maps.flatten(1), length)


def channel_mean(maps: Tensor, length: int) -> Tensor:
    """H·W pooled to `length`, then the mean over channels (the paper's released code); pooling and mean commute."""
    return F.adaptive_avg_pool1d(maps.mean(1).flatten(1), length)


def grid(maps: Tensor, length: int) -> Tensor:
    """Positions pooled to 4×4 and channels to length/16, apart, so that a value keeps its place in the image."""
    groups = length // GRID**2
    if maps.shape[1] % groups:  # groups of channels overlap
        return F.adaptive_avg_pool3d(maps.unsqueeze(1), (groups, GRID, GRID)).flatten(1)
    by_group = maps.unflatten(1, (groups, -1)).mean(2)  # the same, some three times faster
    return F.adaptive_avg_pool2d(by_group, GRID).flatten(1)


def attention(maps: Tensor, length: int) -> Tensor:
    """Energy per position: mean of squares over channels, pooled to √length × √length (Zagoruyko 2017)."""
    return F.adaptive_avg_pool2d(maps.square().mean(1, keepdim=True), isqrt(length)).flatten(1)


METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "flatten": flatten,
    "channel_mean": channel_mean,
    "grid": grid,
    "attention": attention,
}


def align(maps: Tensor, method: str, length: int) -> Tensor:
    """B×C×H×W → B×length, float32, mean 0 and variance 1 per image."""
    return F.layer_norm(METHODS[method](maps.float(), length), (length,))


def choose_blocks(available: int, wanted: int) -> list[int]:
    """Indices of the last block of each of `wanted` equal parts of a network: alike in relative depth between any two.

    `choose_blocks(12, 4)` is [2, 5, 8, 11], `choose_blocks(5, 4)` is [1, 2, 3, 4].
    """
    return [-(-(i + 1) * available // wanted) - 1 for i in range(wanted)]
