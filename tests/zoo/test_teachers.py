"""The zoo: who teaches which step, teachers that never change, and networks trained once and used again."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers.zoos import zoo_of
from torch import nn

from meco_timm.common import draw
from meco_timm.data.loading import DataSource, load_data
from meco_timm.networks import mean_logits
from meco_timm.pipeline import assemble_zoo
from meco_timm.recipe.recipe import Recipe


@pytest.fixture(scope="module")
def zoo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, which is what a zoo is for."""
    return tmp_path_factory.mktemp("shared") / "zoo"


@pytest.fixture
def made(recipe: dict[str, Any], zoo_folder: Path) -> Recipe:
    recipe["loop"]["steps"] = 2
    recipe["zoo"]["folder"] = str(zoo_folder)
    return Recipe.model_validate(recipe)


@pytest.fixture
def data(made: Recipe) -> DataSource:
    return load_data(made.data, made.seed)


def everything(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers, also those that are not in the state dict."""
    return {n: t.clone() for n, t in (*module.named_parameters(), *module.named_buffers())}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_teachers_are_drawn_uniformly(count):
    """Pearson's χ² of 6,000 draws stays under its 99.9 % quantile for at most 6 degrees of freedom."""
    drawn = Counter(draw(0, step, count) for step in range(6000))
    expected = 6000 / count
    assert set(drawn) == set(range(count))
    assert sum((n - expected) ** 2 / expected for n in drawn.values()) < 22.5


def test_pairs_of_steps_are_drawn_independently():
    pairs = Counter((draw(1, step, 3), draw(1, step + 1, 3)) for step in range(0, 9000))
    assert sum((n - 1000) ** 2 / 1000 for n in pairs.values()) < 26.1  # 99.9 % of χ² with 8 degrees of freedom


def test_the_draw_is_a_pure_function_of_seed_and_step():
    first = [draw(4, step, 5) for step in range(100)]
    torch.manual_seed(99)
    assert [draw(4, step, 5) for step in reversed(range(100))] == first[::-1]
    assert [draw(5, step, 5) for step in range(100)] != first


def test_the_zoo_gives_the_outputs_of_the_drawn_teacher(made, data, accelerator):
    zoo = assemble_zoo(made, data, accelerator)
    streams = list(zoo.streams.values())
    batch = next(iter(data.in_order(data.test, 4)))
    drawn = set()
    for step in range(8):
        found, expected = zoo.targets(batch, batch.image, step), streams[draw(made.seed, step, 2)](batch.image)
        drawn.add(draw(made.seed, step, 2))
        assert torch.equal(found.logits, expected.logits)
        assert all(torch.equal(a, b) for a, b in zip(found.blocks[0].blocks, expected.blocks, strict=True))
    assert drawn == {0, 1}
    assert not found.logits.requires_grad


def test_the_average_is_the_mean_of_all(made, data, accelerator):
    made.zoo.sampling = "average"
    zoo = assemble_zoo(made, data, accelerator)
    batch = next(iter(data.in_order(data.test, 4)))
    each = [stream(batch.image) for stream in zoo.streams.values()]
    found = zoo.targets(batch, batch.image, 0)
    torch.testing.assert_close(found.logits, mean_logits([o.logits for o in each], made.losses.temperature))
    for block, parts in zip(found.blocks[0].blocks, zip(*(o.blocks for o in each), strict=True), strict=True):
        torch.testing.assert_close(block, sum(parts) / 2)


def test_teachers_are_frozen_whatever_is_done_with_them(made, data, accelerator):
    zoo = assemble_zoo(made, data, accelerator)
    before = {name: everything(stream) for name, stream in zoo.streams.items()}
    batch = next(iter(data.in_order(data.test, 8)))
    for step in range(4):
        zoo.targets(batch, batch.image, step)
    for name, stream in zoo.streams.items():
        assert not any(module.training for module in stream.modules())
        assert not any(p.requires_grad for p in stream.parameters())
        after = everything(stream)
        assert after.keys() == before[name].keys()
        assert all(torch.equal(after[key], before[name][key]) for key in after)


def test_two_teachers_of_one_name_are_two_networks(made, data, accelerator):
    twice = made.model_copy(update={"teachers": [made.teachers[0], made.teachers[0]]})
    zoo = assemble_zoo(twice, data, accelerator)
    assert list(zoo.streams) == ["test_resnet", "test_resnet (2)"]
    first, second = zoo.streams.values()
    assert not torch.equal(first.model.fc.weight, second.model.fc.weight)


def test_a_zoo_of_one_always_teaches(made, data, accelerator: Accelerator):
    one = made.model_copy(update={"teachers": made.teachers[1:]})
    zoo = zoo_of(assemble_zoo(one, data, accelerator).streams, one, accelerator)
    batch = next(iter(data.in_order(data.test, 4)))
    outputs = [zoo.targets(batch, batch.image, step).logits for step in (0, 1)]
    assert torch.equal(*outputs)
