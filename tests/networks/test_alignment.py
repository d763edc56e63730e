"""Alignment: shapes, scale, the four poolings written out longhand, and blocks by relative depth."""

import math

import pytest
import torch
from torch import Tensor

from meco_timm.networks.alignment import VECTORS, Vectors, choose_blocks, pool_to_grid

SHAPES = [(2, 3, 7, 5), (2, 16, 8, 8), (2, 100, 1, 1), (2, 5, 40, 40), (2, 1, 2, 3)]


@pytest.mark.parametrize("method", VECTORS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [16, 64, 256])
def test_any_map_becomes_a_standardised_vector(method, shape, length):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 30 + 5
    aligned = Vectors(method, length)(maps)
    assert aligned.shape == (2, length)
    assert aligned.dtype == torch.float32
    if len(VECTORS[method](maps, length)[0].unique()) > 1:
        torch.testing.assert_close(aligned.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(aligned.var(1, unbiased=False), torch.ones(2), atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", VECTORS)
def test_half_precision_maps_are_aligned_in_float32(method):
    maps = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(Vectors(method, 16)(maps), Vectors(method, 16)(maps.float()), rtol=0, atol=0)


@pytest.mark.parametrize("method", VECTORS)
def test_the_scale_and_offset_of_maps_do_not_matter_where_pooling_is_linear(method):
    maps = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    changed = maps * 7 + (0 if method == "attention" else 3)  # attention takes squares, so only the scale
    torch.testing.assert_close(Vectors(method, 16)(maps), Vectors(method, 16)(changed), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", VECTORS)
def test_images_do_not_see_each_other(method):
    maps = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Vectors(method, 16)(maps)[1:2], Vectors(method, 16)(maps[1:2]))


def window(i: int, out: int, size: int) -> slice:
    """What adaptive pooling averages for output i of `out` over `size` values."""
    return slice(math.floor(i * size / out), math.ceil((i + 1) * size / out))


def longhand(maps: Tensor, method: str, length: int) -> Tensor:
    b, c, h, w = maps.shape
    out = torch.empty(b, length)
    for n in range(b):
        if method in ("flatten", "channel_mean"):
            row = maps[n].reshape(-1) if method == "flatten" else maps[n].mean(0).reshape(-1)
            for i in range(length):
                out[n, i] = row[window(i, length, len(row))].mean()
        elif method == "grid":
            depth = length // 16
            for k in range(depth):
                for y in range(4):
                    for x in range(4):
                        part = maps[n, window(k, depth, c), window(y, 4, h), window(x, 4, w)]
                        out[n, 16 * k + 4 * y + x] = part.mean()
        else:
            side = math.isqrt(length)
            energy = (maps[n] ** 2).mean(0)
            for y in range(side):
                for x in range(side):
                    out[n, side * y + x] = energy[window(y, side, h), window(x, side, w)].mean()
    return out


@pytest.mark.parametrize("method", VECTORS)
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_pooling_equals_the_reference_written_out(method, shape):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(VECTORS[method](maps, 64), longhand(maps, method, 64), atol=1e-6, rtol=1e-5)


def test_blocks_are_the_ends_of_equal_parts():
    assert choose_blocks(12, 4) == [2, 5, 8, 11]
    assert choose_blocks(5, 4) == [1, 2, 3, 4]
    assert choose_blocks(4, 4) == [0, 1, 2, 3]
    assert choose_blocks(24, 1) == [23]
    assert choose_blocks(7, 0) == []


@pytest.mark.parametrize("available", range(1, 30))
def test_blocks_rise_and_end_with_the_last(available):
    for wanted in range(1, available + 1):
        blocks = choose_blocks(available, wanted)
        assert len(blocks) == wanted
        assert blocks == sorted(set(blocks))
        assert blocks[0] >= 0
        assert blocks[-1] == available - 1


@pytest.mark.parametrize("shape", [(2, 6, 8, 12), (2, 6, 7, 7), (2, 6, 4, 4), (2, 6, 2, 3)])
def test_maps_in_half_precision_are_pooled_as_in_float32(shape):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    torch.testing.assert_close(pool_to_grid(maps), pool_to_grid(maps.float()), atol=1e-6, rtol=1e-6)


def test_pooling_maps_in_half_precision_keeps_no_copy_of_them():
    saved: list[int] = []
    maps = torch.randn(2, 6, 16, 16).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        pool_to_grid(maps).sum().backward()
    assert max(saved, default=0) < maps.numel()
    torch.testing.assert_close(maps.grad, torch.full_like(maps, 1 / 16))
