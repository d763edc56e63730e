"""Projections per teacher: the loss written out, who learns, grids of two sizes, reduced channels, discriminators by
position."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meco_timm.distillation import Distiller, Targets, TeacherBlocks
from meco_timm.distillation.discriminators import minimax
from meco_timm.networks import Stream, student_stream
from meco_timm.networks.alignment import Maps, orthogonal, reduce_channels
from meco_timm.recipe import Network, Recipe

B, CLASSES, BLOCKS = 4, 3, 2
SHAPES = [[(5, 4, 4), (6, 2, 2)], [(7, 4, 4), (8, 1, 1)]]  # of two teachers' blocks


def make_recipe(**changes: Any) -> Recipe:
    tree: dict[str, Any] = {
        "data": {"source": "x", "image_size": 32},
        "teachers": ["resnet18.a1_in1k", "resnet18.a1_in1k"],
        "student": "test_efficientnet",
        "alignment": {"blocks": BLOCKS, "method": "projection", "length": 1024},
        "losses": {"blocks": [0.5, 2.0]},
        "discriminators": {"adversary": "none"},
    }
    return Recipe.model_validate(tree | changes)


@pytest.fixture(scope="module")
def student() -> Stream:
    return student_stream(Network(model="test_efficientnet"), make_recipe().alignment, CLASSES, 32, seed=1).eval()


def blocks_of(teacher: int, images: int = B, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(10 * teacher + seed)
    return [torch.randn(images, *shape, generator=generator) for shape in SHAPES[teacher]]


def image() -> Tensor:
    return torch.randint(0, 256, (B, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


LABEL = torch.tensor([0, 1, 2, 0])
LOGITS = torch.randn(B, CLASSES, generator=torch.Generator().manual_seed(9))


def make(student: Stream, **changes: Any) -> Distiller:
    torch.manual_seed(0)
    return Distiller(student, make_recipe(**changes).method, CLASSES, SHAPES)


def standardised(x: Tensor) -> Tensor:
    rows = x.flatten(1)
    rows = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return rows.view_as(x)


def longhand(distiller: Distiller, teacher: int, block: int, targets: list[Tensor], rows: Any = slice(None)) -> Tensor:
    """Mean of squares between the two sides: pooled to the coarser grid, projected, standardised per image."""
    own = distiller.student(image()).blocks[block][rows]
    layer: Any = distiller.projections[teacher][block]
    projected = torch.einsum("oc,bchw->bohw", layer.weight.flatten(1), own) + layer.bias.view(1, -1, 1, 1)
    side = min(projected.shape[2], targets[block].shape[2])
    its, mine = (F.adaptive_avg_pool2d(x, side) for x in (targets[block], projected))
    return (standardised(its) - standardised(mine)).square().mean()


@pytest.mark.parametrize("teacher", [0, 1])
def test_the_loss_of_blocks_is_its_formula(student, teacher):
    distiller, targets = make(student), blocks_of(teacher)
    found = distiller(image(), LABEL, Targets([TeacherBlocks(teacher, targets)], {}, LOGITS))
    for block in range(BLOCKS):
        expected = longhand(distiller, teacher, block, targets)
        torch.testing.assert_close(found[f"similarity/{block}"], expected.detach(), atol=1e-5, rtol=1e-4)


def test_only_the_drawn_teachers_projection_learns_and_all_have_a_gradient(student):
    """Several processes need a gradient of every parameter in every step: here one that is 0."""
    distiller = make(student, discriminators={"adversary": "minimax", "on": "blocks"})
    distiller(image(), LABEL, Targets([TeacherBlocks(1, blocks_of(1))], {}, LOGITS))["total"].backward()
    assert [name for name, p in distiller.named_parameters() if p.grad is None] == []
    for name, p in [*distiller.projections.named_parameters(), *distiller.discriminators.named_parameters()]:
        assert bool(p.grad.any()) == name.startswith("1"), name


def test_a_student_that_is_the_teacher_has_nothing_to_lose(student):
    distiller = make(student)
    distiller.projections = type(distiller.projections)(student.block_shapes, [student.block_shapes])
    for layer in distiller.projections[0]:
        torch.nn.init.dirac_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        same = student(image())
    found = distiller(image(), LABEL, Targets.of(same, 0, per_teacher=True))
    for name in ("similarity/0", "similarity/1", "similarity/logits"):
        assert found[name].item() == pytest.approx(0, abs=1e-5), name


def test_a_discriminator_judges_each_position(student):
    distiller = make(student, discriminators={"adversary": "minimax", "on": "blocks", "weight": 0.2})
    targets = Targets([TeacherBlocks(0, blocks_of(0))], {}, LOGITS)
    found = distiller(image(), LABEL, targets)
    compared = distiller.projections(targets.blocks[0], student(image()).blocks)
    for block, (t, s) in enumerate(compared):
        of_teacher, of_student = (side.permute(0, 2, 3, 1).reshape(-1, side.shape[1]) for side in (t, s))
        loss, right = minimax(distiller.discriminators[f"0-{block}"], of_teacher, of_student, 0.2)
        torch.testing.assert_close(found[f"adversary/{block}"], loss.detach())
        torch.testing.assert_close(found[f"discriminator_accuracy/{block}"], right)


def test_the_loss_of_logits_is_shown_as_kl_with_the_gradient_of_ce(student):
    distiller = make(student, losses={"similarity": "ce", "temperature": 4.0})
    found = distiller(image(), LABEL, Targets([], {}, LOGITS))
    logits = student(image()).logits
    kl = F.kl_div((logits / 4).log_softmax(1), (LOGITS / 4).softmax(1), reduction="batchmean") * 16
    torch.testing.assert_close(found["similarity/logits"], kl.detach())
    weight = distiller.student.model.classifier.weight
    (expected,) = torch.autograd.grad(F.cross_entropy(logits / 4, (LOGITS / 4).softmax(1)) * 16, weight)
    torch.testing.assert_close(torch.autograd.grad(found["total"], weight)[0], expected)


# Maps


def test_maps_are_pooled_to_four_by_four_and_never_repeated():
    for side, wanted in ((8, 4), (7, 4), (4, 4), (2, 2), (1, 1)):
        found = Maps(5, 64)(torch.randn(2, 5, side, side))
        assert found.shape == (2, 5, wanted, wanted)
        torch.testing.assert_close(found.flatten(1).mean(1), torch.zeros(2), atol=1e-5, rtol=0)


def test_channels_are_reduced_by_an_orthogonal_projection():
    maps, matrix = torch.randn(3, 50, 4, 4), orthogonal(50, 16)
    assert Maps(50, 16)(maps).shape == (3, 16, 4, 4)
    assert torch.equal(Maps(50, 16)(maps), Maps(50, 16)(maps))  # a function of the two numbers alone
    assert Maps(50, 50).matrix is None
    identity = reduce_channels(torch.eye(50).view(1, 50, 50, 1), matrix).squeeze()
    torch.testing.assert_close(identity @ identity.T, torch.eye(16), atol=1e-5, rtol=0)


def test_a_teachers_channels_are_reduced_and_a_students_are_not():
    alignment = make_recipe(alignment={"blocks": BLOCKS, "method": "projection", "length": 128}).alignment
    network = Network(model="test_resnet")
    teacher = student_stream(network, alignment, CLASSES, 32, as_teacher=True)
    assert [shape[0] for shape in teacher.block_shapes] == [8, 8]
    assert min(shape[0] for shape in student_stream(network, alignment, CLASSES, 32).block_shapes) > 8
