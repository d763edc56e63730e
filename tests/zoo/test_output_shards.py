"""Packing and unpacking outputs, and finding them in shards by view and row."""

import pytest
import torch
from torch import Tensor

from meco_timm.common.errors import UserError
from meco_timm.networks.streams import NEVER, Outputs
from meco_timm.zoo.output_shards import Layout, OutputShards

CPU = torch.device("cpu")


def outputs(classes: int = 7, seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    blocks = [torch.randn(5, 4, generator=generator) for _ in range(2)]
    return Outputs(blocks, None, 5 * torch.randn(5, classes, generator=generator))


def round_trip(layout: Layout, found: Outputs) -> Outputs:
    return layout.unpack(layout.pack(found), CPU)


def test_all_logits_and_blocks_come_back():
    for dtype, error in ((torch.float32, 0.0), (torch.float16, 1e-2)):
        found = round_trip(Layout(7, ((4,),) * 2, dtype, None, 4.0), outputs())
        torch.testing.assert_close(found.logits, outputs().logits, atol=error, rtol=0)
        for block, wanted in zip(found.blocks, outputs().blocks, strict=True):
            torch.testing.assert_close(block, wanted, atol=error, rtol=0)
    assert (
        round_trip(Layout(0, ((4,),) * 2, torch.float16, None, 4.0), Outputs(outputs().blocks, None, None)).logits
        is None
    )
    assert round_trip(Layout(7, (), torch.float16, None, 4.0), Outputs([], None, outputs().logits)).blocks == []


def test_topk_probabilities_are_exact_and_the_rest_is_spread_evenly():
    """softmax(z/T): exact for the k largest; the rest of the mass is shared evenly by the others."""
    temperature, k = 3.0, 2
    found = round_trip(Layout(7, ((4,),) * 2, torch.float32, k, temperature), outputs())
    wanted, p = ((z / temperature).softmax(1) for z in (outputs().logits, found.logits))
    largest = wanted.topk(k, 1).indices
    torch.testing.assert_close(p.gather(1, largest), wanted.gather(1, largest))
    rest = p.scatter(1, largest, 0.0)
    torch.testing.assert_close(rest.max(1).values, (1 - wanted.gather(1, largest).sum(1)) / (7 - k))


def test_a_class_outside_a_teachers_class_map_stays_masked():
    logits = outputs().logits.index_fill(1, torch.tensor([3]), NEVER)
    for k in (None, 2):
        found = round_trip(Layout(7, (), torch.float16, k, 4.0), Outputs([], None, logits)).logits
        assert found.isfinite().all()
        if k is None:
            assert (found[:, 3] == torch.tensor(NEVER).half()).all()


def test_values_that_overflow_the_precision_are_refused():
    with pytest.raises(UserError, match=r"store.precision: .* float16. Write float32"):
        Layout(7, (), torch.float16, None, 4.0).pack(Outputs([], None, outputs().logits * 1e5))


@pytest.mark.parametrize("topk", [None, 3])
def test_bytes_per_view_are_those_on_disk(tmp_path, topk):
    layout = Layout(100, ((64,),) * 2, torch.float16, topk, 4.0)
    shards = OutputShards(tmp_path, layout, 1, 500, check=True)
    found = Outputs([torch.randn(500, 64) for _ in range(2)], None, torch.randn(500, 100))
    shards.add(torch.zeros(500, dtype=torch.long), torch.arange(500), layout.pack(found))
    assert shards.flush() is None
    (shard,) = tmp_path.iterdir()
    assert 500 * layout.bytes_per_view == pytest.approx(shard.stat().st_size, abs=1000)


def test_outputs_are_found_by_view_and_row_in_whatever_shard(tmp_path):
    """Added in pieces and out of order, partly written, partly not, and opened again."""
    layout = Layout(1, (), torch.float32, None, 1.0)
    shards, generator = OutputShards(tmp_path, layout, 3, 20, check=True), torch.Generator().manual_seed(0)
    keys = torch.cartesian_prod(torch.arange(3), torch.arange(20))[torch.randperm(60, generator=generator)]

    def value(keys: Tensor) -> Tensor:
        return (100.0 * keys[:, 0] + keys[:, 1])[:, None]

    for i, part in enumerate(keys.split(7)):
        assert shards.missing(part[:, 0], part[:, 1]).all()
        shards.add(part[:, 0], part[:, 1], layout.pack(Outputs([], None, value(part))))
        if i % 3 == 0:
            assert shards.flush() is None
    for again in (shards, OutputShards(tmp_path, layout, 3, 20, check=True)):
        there = keys[~again.missing(keys[:, 0], keys[:, 1])]
        assert len(there) == (60 if again is shards else 49)  # 7 pieces were written, of 9
        assert torch.equal(again.read(there[:, 0], there[:, 1])["values"], value(there))
    fewer = OutputShards(tmp_path, layout, 2, 20, check=True)
    assert fewer.place.shape == (2, 20)
