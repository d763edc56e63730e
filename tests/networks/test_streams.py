"""Streams: one forward gives the network's own logits and its blocks, from un-normalised images of any size."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from meco_timm.common.errors import UserError
from meco_timm.networks.alignment import Vectors
from meco_timm.networks.streams import Stream, student_stream
from meco_timm.recipe.networks import Network
from meco_timm.recipe.recipe import Alignment

NETWORKS = ["test_resnet", "test_vit", "test_efficientnet", "test_mambaout"]
SWIN = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2), "window_size": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_convnext": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64, **SWIN},
    "test_vit": {"img_size": 64},
    "test_efficientnet": {},
    "mixer_s32_224": {"img_size": 64},
}
ALIGNMENT = Alignment(blocks=2, method="grid", length=32)


def make(name: str, size: int = 32, seed: int = 0, **options: Any) -> Stream:
    args = options.pop("args", {})
    return student_stream(Network(model=name, args=args), ALIGNMENT, 3, size, seed=seed, **options).eval()


def images(size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_plain_network_on_images_normalised_by_hand(name):
    stream = make(name)
    cfg = stream.model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = stream.model((images() / 255 - mean) / std)
        torch.testing.assert_close(stream(images()).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_are_the_networks_own_maps_aligned(name):
    stream = make(name)
    with torch.no_grad():
        found = stream(images()).blocks
        maps = stream.model.forward_intermediates(stream.prepare(images()), intermediates_only=True, output_fmt="NCHW")
    assert [block.shape for block in found] == [(2, 32), (2, 32)]
    assert len(maps) == len(stream.model.feature_info)
    for block, i in zip(found, stream.taps, strict=True):
        torch.testing.assert_close(block, Vectors("grid", 32)(maps[i]), atol=1e-5, rtol=1e-4)
    assert stream.taps[-1] == len(maps) - 1


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_before_alignment_are_the_maps_of_features_only(name, tmp_path):
    """The same weights in timm's own feature extractor, which gives maps of some networks as B×H×W×C."""
    args = FAMILIES[name]
    stream = student_stream(Network(model=name, args=args), Alignment(blocks=3), 3, 64).eval()
    stream.align = nn.ModuleList(nn.Identity() for _ in stream.taps)
    file = tmp_path / "model.safetensors"
    save_file(stream.model.state_dict(), file)
    wanted: dict[str, Any] = {"features_only": True, "out_indices": stream.taps}
    source = {"file": str(file), "num_classes": 3}
    features = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **wanted, **args).eval()
    with torch.no_grad():
        expected, found = features(stream.prepare(images(64))), stream(images(64)).blocks
    last = str(getattr(features, "output_fmt", None)).endswith("NHWC")
    assert len(found) == len(expected) == 3
    for block, maps in zip(found, expected, strict=True):
        torch.testing.assert_close(block, maps.permute(0, 3, 1, 2) if last else maps)
        assert block.std() > 0


def test_without_blocks_the_logits_are_the_same():
    name = Network(model="test_resnet")
    with_blocks = make("test_resnet")
    without = student_stream(name, Alignment(blocks=0), 3, 32, seed=0).eval()
    with torch.no_grad():
        assert without(images()).blocks == []
        assert torch.equal(without(images()).logits, with_blocks(images()).logits)


def test_bytes_and_floats_are_the_same_image():
    stream = make("test_resnet")
    assert torch.equal(stream.prepare(images()), stream.prepare(images().float() / 255))


def test_each_stream_resizes_for_itself():
    stream = make("test_resnet", size=48)
    x = stream.prepare(images(32))
    assert x.shape == (2, 3, 48, 48)
    resized = F.interpolate(images(32).float() / 255, (48, 48), mode=stream.resize_mode, antialias=True).clamp(0, 1)
    torch.testing.assert_close(x, (resized - stream.mean) / stream.std)


@pytest.mark.parametrize("overlay", [{}, {"mean": [0.5], "std": [0.25], "input_size": [1, 32, 32]}])
def test_a_network_of_one_channel_sees_luminance(overlay):
    stream = make("test_resnet", args={"in_chans": 1, "pretrained_cfg_overlay": overlay})
    x = stream.prepare(images())
    assert x.shape == (2, 1, 32, 32)
    grey = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    torch.testing.assert_close(x * stream.std + stream.mean, (images() / 255 * grey).sum(1, keepdim=True))


def test_a_transformer_of_fixed_size_is_made_for_the_images():
    assert timm.get_pretrained_cfg("test_vit").fixed_input_size
    with torch.no_grad():
        assert make("test_vit", size=64)(images(64)).logits.shape == (2, 3)


def test_weights_are_a_function_of_the_seed():
    first, again, other = (make("test_resnet", seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_state_dict_is_the_models_alone():
    stream = make("test_resnet")
    assert {name.removeprefix("model.") for name in stream.state_dict()} == stream.model.state_dict().keys()


def test_cost_is_counted_at_the_streams_size():
    small, large = make("test_resnet", size=32), make("test_resnet", size=64)
    assert small.parameter_count == large.parameter_count == sum(p.numel() for p in small.model.parameters())
    assert 3.5 < large.multiply_adds() / small.multiply_adds() < 4.1
    layer = small.model.fc  # the classifier is a known part of the count
    assert small.multiply_adds() > layer.in_features * layer.out_features
    small.train()
    small.multiply_adds()
    assert small.training


def test_cost_of_a_network_that_pools_with_a_learned_query():
    stream = make("test_vit3")  # its query is a view of a parameter, as in SigLIP
    layer = stream.model.attn_pool.mlp.fc1
    assert stream.multiply_adds() > layer.in_features * layer.out_features
    assert all(parameter.requires_grad for parameter in stream.parameters())


def refused(name: str, size: int = 32, alignment: Alignment = ALIGNMENT, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        student_stream(Network(model=name, **options), alignment, 3, size)
    return str(caught.value)


def test_an_unknown_name_is_answered_with_near_ones():
    assert "Did you mean 'resnet" in refused("resnet19")
    assert "student: timm has no weights 'resnet18.a1_in1'. Did you mean 'a1_in1k'" in refused("resnet18.a1_in1")


def test_what_a_network_cannot_do_is_refused_before_training():
    assert "alignment.blocks: test_resnet (student) has 5 blocks" in refused(
        "test_resnet", alignment=Alignment(blocks=6)
    )
    assert "data.image_size: test_vit cannot take images of 8 × 8" in refused("test_vit", size=8)
    assert "student: test_resnet cannot be made with" in refused("test_resnet", args={"nonsense": 1})
