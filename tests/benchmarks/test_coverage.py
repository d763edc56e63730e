"""A representative of every class of timm's networks works as student and teacher (benchmarks/coverage.py has all)."""

from typing import Any

import pytest
import timm
import torch

from benchmarks.coverage import CLASSES, check, compare, compare_values, make_student
from benchmarks.provenance import Provenance, reached
from meco_timm.common.errors import UserError
from meco_timm.networks.streams import student_stream
from meco_timm.recipe.networks import Network
from meco_timm.recipe.recipe import Alignment

# The smallest of each class of each file of timm 1.0.31, without gemma4_vit, which takes a quarter of the time of all.
REPRESENTATIVES = [
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "cpubone_nano",
    "crossvit_tiny_240",
    "cs3darknet_focus_s",
    "csatv2",
    "cspnext_tiny",
    "davit_tiny",
    "deepseek_vit_412m",
    "deepseek_vit_412m_enc",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientvim_m1",
    "efficientvim_m1_dist",
    "efficientvit_b0",
    "efficientvit_l1",
    "efficientvit_m0",
    "ese_vovnet19b_slim_dw",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "ghostnet_050",
    "gmlp_ti16_224",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnet_035",
    "lcnetv2_small",
    "legacy_seresnet18",
    "legacy_xception",
    "levit_128s",
    "levit_256d",
    "lowformer_b0",
    "mobilenetv5_300m_enc",
    "mobilenetv5_base",
    "mvitv2_tiny",
    "naflexvit_base_patch16_parfac_gap",
    "nasnetalarge",
    "nest_tiny",
    "nextvit_small",
    "pit_ti_224",
    "pnasnet5large",
    "poolformerv2_s12",
    "pvt_v2_b0",
    "qwen3_vit_88m",
    "qwen3_vit_88m_enc",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m1",
    "resnetv2_18",
    "rexnet_100",
    "sam2_hiera_tiny",
    "samvit_base_patch16_224",
    "selecsls42",
    "sequencer2d_s",
    "shvit_s1",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_224",
    "swinv2_tiny_window8_256",
    "test_byobnet",
    "test_coatnet",
    "test_convnext",
    "test_efficientnet",
    "test_mambaout",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "test_vit_relpos",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11",
    "visformer_tiny",
    "vit_tiny_patch16_dinov3_qkvb",
    "volo_d1_224",
    "xception41p",
    "xcit_nano_12_p8_224",
]
ENCODERS = [name for name in REPRESENTATIVES if name.endswith("_enc")]
COMPUTED = [
    "test_resnet",
    "test_vit",
    "test_mambaout",
    "coat_tiny",
    "crossvit_tiny_240",
    "efficientvim_m1",
    "pit_ti_224",
]


@pytest.fixture(scope="module")
def trace() -> Provenance:
    return Provenance()


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_a_network_of_every_class_gives_its_logits_blocks_and_gradients(name, trace):
    refused, _ = check(name, trace)
    if name in ENCODERS:
        assert "encoder only" in refused
        assert "teacher" in refused
    else:
        assert not refused


@pytest.mark.parametrize("name", COMPUTED)
def test_logits_have_the_values_of_the_plain_network(name):
    assert compare_values(name) < 1e-5


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "crossvit_tiny_240"])
def test_gradients_arrive_where_the_walk_through_the_graph_says(name):
    model = timm.create_model(name, num_classes=CLASSES)
    logits = model(torch.rand(2, *model.pretrained_cfg["input_size"]))
    logits.sum().backward()
    assert reached(logits) == {id(p) for p in model.parameters() if p.grad is not None}


def test_a_stream_whose_logits_come_from_elsewhere_is_found_out(trace):
    stream = make_student("test_vit").train()
    intermediates = stream.model.forward_intermediates

    def another(*args: Any, **options: Any) -> Any:
        final, maps = intermediates(*args, **options)
        return final.detach(), maps

    stream.model.forward_intermediates = another
    with pytest.raises(AssertionError, match="otherwise"):
        compare(stream, trace)


def test_a_stream_with_channels_last_maps_is_found_out(trace):
    stream = make_student("test_mambaout").train()
    intermediates = stream.model.forward_intermediates
    stream.model.forward_intermediates = lambda *args, **options: intermediates(
        *args, **options | {"output_fmt": "NHWC"}
    )
    with pytest.raises(AssertionError, match="channels"):
        compare(stream, trace)


def test_provenance_sees_parameters_order_and_what_is_written_through_views():
    trace = Provenance()
    a, b = torch.zeros(4), torch.zeros(4)
    with trace:
        trace.name([("a", a), ("b", b)])
        assert trace.number(a + b) == trace.number(a + b)
        assert trace.number(a - b) != trace.number(b - a)
        same = trace.number(a * 2)
        assert same == trace.number(a * 2) != trace.number(a * 3)
        a[:2].fill_(1)
        assert trace.number(a * 2) != same


def test_patches_that_are_dropped_leave_no_maps_to_compare():
    network = Network(model="test_vit", args={"patch_drop_rate": 0.5})
    with pytest.raises(UserError, match="patch_drop_rate"):
        student_stream(network, Alignment(blocks=2), CLASSES, 32)
    assert not student_stream(network, Alignment(blocks=0), CLASSES, 32).taps
