"""Frozen teachers: faster, and what they were; few of them on the device, and the right one at its step."""

from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from helpers.zoos import zoo_of
from timm.data import resolve_data_config
from torch import nn

from meco_timm.common import draw
from meco_timm.data.loading import Batch
from meco_timm.evaluation.table import on_device
from meco_timm.networks.factory import weights_digest
from meco_timm.networks.streams import Stream
from meco_timm.recipe.recipe import Alignment, Recipe
from meco_timm.zoo import frozen
from meco_timm.zoo.frozen import freeze
from meco_timm.zoo.offload import Offloader
from meco_timm.zoo.zoo import Zoo

CPU = torch.device("cpu")
ROWS = torch.arange(4)


def stream(name: str, size: int = 32, seed: int = 0) -> Stream:
    """A network with statistics as after training."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return Stream(model, Alignment(blocks=3, length=64), size, resolve_data_config(model=model)).eval()


def images(size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


# Frozen


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_resnet", "15 batch norms folded"),
        ("test_efficientnet", "13 batch norms folded"),
        ("resnetv2_50d_evos", "as it is"),
        ("test_vit", "as it is"),
        ("mobileone_s0", "branches merged"),
        ("lcnet_050", "27 batch norms folded"),
        ("densenet121", "59 batch norms folded"),  # the others stand before their convolution
    ],
)
@torch.no_grad()
def test_a_frozen_network_gives_what_it_gave(name, message):
    network = stream(name)
    before, count = network(images()), norms(network)
    assert freeze(network, CPU).startswith(message)
    after = network(images())
    for found, wanted in zip([*after.blocks, after.logits], [*before.blocks, before.logits], strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=0)
    assert norms(network) < count or message == "as it is"
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(module.training for module in network.modules())


@torch.no_grad()
def test_what_would_change_the_outputs_is_left_as_it_is(monkeypatch):
    """A wrong fold, and a change that fails, are found on the probe and message."""
    fold = frozen._fold

    def wrong(model: nn.Module, name: str, of: str) -> None:
        fold(model, name, of)
        model.get_submodule(of).weight.data *= 1.001  # type: ignore[union-attr, operator]

    def fails(model: nn.Module) -> nn.Module:
        raise AttributeError("no such branch")

    for name, attribute, change, message in [
        ("test_resnet", "_fold", wrong, "not 15 batch norms folded"),
        ("mobileone_s0", "reparameterize_model", fails, "not branches merged (AttributeError: no such branch)"),
    ]:
        monkeypatch.setattr(frozen, attribute, change)
        network = stream(name)
        before = network(images())
        assert message in freeze(network, CPU)
        if attribute == "_fold":
            torch.testing.assert_close(network(images()).logits, before.logits)


@torch.no_grad()
def test_a_convolution_with_two_readers_is_not_folded():
    """One norm reads it, and so does a sum: found on the probe."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10)
            self.feature_info = [{"num_chs": 8, "reduction": 1, "module": "norm"}]
            nn.init.uniform_(self.norm.weight, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.fc((x + self.norm(x)).mean((2, 3)))

    config = resolve_data_config(model=timm.create_model("test_resnet"))
    network = Stream(Twice(), Alignment(blocks=0), 32, config).eval()
    before = network(images()).logits
    assert freeze(network, CPU).startswith("not 1 batch norms folded")
    torch.testing.assert_close(network(images()).logits, before)


@torch.no_grad()
def test_low_precision_halves_the_weights_and_is_near():
    network, plain = stream("test_resnet"), stream("test_resnet")
    assert freeze(network, CPU, "bf16").endswith("bf16")
    assert {p.dtype for p in network.model.parameters()} == {torch.bfloat16}
    found, wanted = network(images()).logits.float(), plain(images()).logits
    torch.testing.assert_close(found, wanted, atol=0.05 * wanted.abs().max().item(), rtol=0)


def recipe(names: list[str], **zoo: Any) -> Recipe:
    settings = {
        "data": {"source": "memory", "image_size": 32},
        "teachers": [{"train": name} for name in names],
        "student": "test_resnet",
        "alignment": {"blocks": 3, "length": 64},
        "zoo": zoo,
    }
    return Recipe.model_validate(settings)


def test_fingerprints_are_those_of_the_weights_as_they_were(caplog):
    caplog.set_level("DEBUG", "meco_timm")
    network = stream("test_resnet")
    digest = weights_digest(network.model)
    zoo = zoo_of({"a": network}, recipe(["test_resnet"]), Accelerator())
    assert zoo.fingerprints == {"a": digest} != {"a": weights_digest(network.model)}
    assert "frozen  a: 15 batch norms folded" in caplog.messages[0]


def test_the_table_judges_teachers_as_they_were_loaded():
    plain = stream("test_resnet")
    zoo = zoo_of({"a": stream("test_resnet")}, recipe(["test_resnet"]), Accelerator(), lambda name: plain)
    assert zoo.unfrozen()["a"] is plain
    assert zoo.streams == {}


# Offloading


NAMES = ["a", "b", "c", "d"]


def zoo_of_four(limit: int | None, sampling: str = "random") -> Zoo:
    networks = {name: stream("test_vit", seed=i) for i, name in enumerate(NAMES)}
    return zoo_of(networks, recipe(["test_vit"] * 4, resident=limit, sampling=sampling), Accelerator())


@pytest.mark.parametrize("sampling", ["random", "average"])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_offloaded_teachers_give_the_same_outputs(monkeypatch, sampling, limit):
    few, all_of_them = zoo_of_four(limit, sampling), zoo_of_four(None, sampling)
    assert all_of_them.offloader is None
    there: list[bool] = []
    forward = Stream.forward

    def watched(self: Stream, image: torch.Tensor) -> Any:
        if any(self is own for own in few.streams.values()):
            name = next(name for name, own in few.streams.items() if own is self)
            assert few.offloader is not None
            there.append(name in few.offloader.on_device and len(few.offloader.on_device) <= limit)
        return forward(self, image)

    monkeypatch.setattr(Stream, "forward", watched)
    batch = Batch(images(), ROWS, ROWS, ROWS)
    for step in range(6):
        found, wanted = (zoo.targets(batch, batch.image, step) for zoo in (few, all_of_them))
        assert torch.equal(found.logits, wanted.logits)
    assert all(there)
    assert len(there) >= 6


@pytest.mark.parametrize("limit", [2, 3])
def test_the_next_teachers_are_loaded_ahead(limit):
    """When a step begins its teacher is there already, but for the first."""
    zoo = zoo_of_four(limit)
    batch = Batch(images(), ROWS, ROWS, ROWS)
    for step in range(20):
        name = NAMES[draw(zoo.seed, step, 4)]
        assert zoo.offloader is not None
        assert step == 0 or name in zoo.offloader.on_device
        zoo.targets(batch, batch.image, step)
        coming = dict.fromkeys(NAMES[draw(zoo.seed, later, 4)] for later in range(step, step + 32))
        assert zoo.offloader.on_device == list(coming)[:limit]


def test_offloaded_weights_are_in_host_memory_and_unchanged():
    """With a `_copy` that copies, since there is no second device here."""

    class CopyingOffloader(Offloader):
        def _copy(self, name: str) -> None:
            for tensor, value in self._weights[name]:
                tensor.data = value.clone()

    offloader, networks = CopyingOffloader(2, CPU), {name: stream("test_vit", seed=i) for i, name in enumerate(NAMES)}
    before = {name: weights_digest(network) for name, network in networks.items()}
    hosts = {name: next(network.parameters()).data_ptr() for name, network in networks.items()}
    for name, network in networks.items():
        offloader.add(name, network)
    for names in (["a", "b", "c"], ["c", "a"], ["d"], ["d", "d", "b"]):
        offloader.load(names)
        away = {name for name, network in networks.items() if next(network.parameters()).data_ptr() != hosts[name]}
        assert away == set(offloader.on_device) == set(list(dict.fromkeys(names))[:2])
    assert {name: weights_digest(network) for name, network in networks.items()} == before


def test_visiting_moves_a_stream_to_the_device_and_back(monkeypatch):
    network, moves = stream("test_vit"), []
    monkeypatch.setattr(Stream, "to", lambda self, device: moves.append(str(device)))
    with on_device([network], torch.device("meta")):
        assert moves == ["meta"]
    assert moves == ["meta", "cpu"]
    with on_device([network], CPU):
        assert moves == ["meta", "cpu"]
