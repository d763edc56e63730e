"""How an output is kept, and found again: packed and unpacked, in whatever shard."""

import pytest
import torch
from torch import Tensor

from meco_timm.common.errors import UserError
from meco_timm.networks.streams import NEVER, Outputs
from meco_timm.zoo.output_shards import Layout, Shelf

CPU = torch.device("cpu")


def outputs(classes: int = 7, seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    blocks = [torch.randn(5, 4, generator=generator) for _ in range(2)]
    return Outputs(blocks, 5 * torch.randn(5, classes, generator=generator))


def kept(layout: Layout, found: Outputs) -> Outputs:
    return layout.unpack(layout.pack(found), CPU)


def test_all_logits_and_blocks_come_back():
    for dtype, error in ((torch.float32, 0.0), (torch.float16, 1e-2)):
        found = kept(Layout(7, 2, 4, dtype, None, 4.0), outputs())
        torch.testing.assert_close(found.logits, outputs().logits, atol=error, rtol=0)
        for block, wanted in zip(found.blocks, outputs().blocks, strict=True):
            torch.testing.assert_close(block, wanted, atol=error, rtol=0)
    assert kept(Layout(0, 2, 4, torch.float16, None, 4.0), Outputs(outputs().blocks, None)).logits is None
    assert kept(Layout(7, 0, 4, torch.float16, None, 4.0), Outputs([], outputs().logits)).blocks == []


def test_of_the_largest_logits_the_share_is_exact_and_the_rest_is_spread():
    """softmax(z/T): of the k largest as it was, of the others the mean of what they have together."""
    temperature, k = 3.0, 2
    found = kept(Layout(7, 2, 4, torch.float32, k, temperature), outputs())
    wanted, p = ((z / temperature).softmax(1) for z in (outputs().logits, found.logits))
    largest = wanted.topk(k, 1).indices
    torch.testing.assert_close(p.gather(1, largest), wanted.gather(1, largest))
    rest = p.scatter(1, largest, 0.0)
    torch.testing.assert_close(rest.max(1).values, (1 - wanted.gather(1, largest).sum(1)) / (7 - k))


def test_a_class_that_a_teacher_never_speaks_of_stays_so():
    logits = outputs().logits.index_fill(1, torch.tensor([3]), NEVER)
    for k in (None, 2):
        found = kept(Layout(7, 0, 4, torch.float16, k, 4.0), Outputs([], logits)).logits
        assert found.isfinite().all()
        if k is None:
            assert (found[:, 3] == torch.tensor(NEVER).half()).all()


def test_what_a_precision_cannot_hold_is_refused():
    with pytest.raises(UserError, match=r"store.precision: .* float16. Write float32"):
        Layout(7, 0, 4, torch.float16, None, 4.0).pack(Outputs([], outputs().logits * 1e5))


@pytest.mark.parametrize("topk", [None, 3])
def test_bytes_per_view_are_those_on_disk(tmp_path, topk):
    layout = Layout(100, 2, 64, torch.float16, topk, 4.0)
    shelf = Shelf(tmp_path, layout, 1, 500, check=True)
    found = Outputs([torch.randn(500, 64) for _ in range(2)], torch.randn(500, 100))
    shelf.add(torch.zeros(500, dtype=torch.long), torch.arange(500), layout.pack(found))
    assert shelf.flush() is None
    (shard,) = tmp_path.iterdir()
    assert 500 * layout.bytes_per_view == pytest.approx(shard.stat().st_size, abs=1000)


def test_outputs_are_found_by_view_and_row_in_whatever_shard(tmp_path):
    """Added in pieces and out of order, partly written, partly not, and opened again."""
    layout = Layout(1, 0, 4, torch.float32, None, 1.0)
    shelf, generator = Shelf(tmp_path, layout, 3, 20, check=True), torch.Generator().manual_seed(0)
    keys = torch.cartesian_prod(torch.arange(3), torch.arange(20))[torch.randperm(60, generator=generator)]

    def value(keys: Tensor) -> Tensor:
        return (100.0 * keys[:, 0] + keys[:, 1])[:, None]

    for i, part in enumerate(keys.split(7)):
        assert shelf.absent(part[:, 0], part[:, 1]).all()
        shelf.add(part[:, 0], part[:, 1], layout.pack(Outputs([], value(part))))
        if i % 3 == 0:
            assert shelf.flush() is None
    for again in (shelf, Shelf(tmp_path, layout, 3, 20, check=True)):
        there = keys[~again.absent(keys[:, 0], keys[:, 1])]
        assert len(there) == (60 if again is shelf else 49)  # 7 pieces were written, of 9
        assert torch.equal(again.read(there[:, 0], there[:, 1])["values"], value(there))
    fewer = Shelf(tmp_path, layout, 2, 20, check=True)
    assert fewer.place.shape == (2, 20)
