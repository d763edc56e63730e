"""One step: which losses there are, what their sum is, and what learns from which of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meco_timm.distillation import Distiller, Supervised, Targets, TeacherBlocks
from meco_timm.distillation.discriminators import minimax
from meco_timm.distillation.labels import cross_entropy
from meco_timm.distillation.similarity import LOGITS, blocks_l2, logits_kl
from meco_timm.networks.streams import Stream, student_stream
from meco_timm.recipe.networks import Network
from meco_timm.recipe.recipe import Recipe

B, CLASSES, BLOCKS, LENGTH = 4, 3, 2, 32


def make_recipe(**changes: Any) -> Recipe:
    tree: dict[str, Any] = {
        "data": {"source": "x", "image_size": 32},
        "teachers": ["resnet18.a1_in1k"],
        "student": "test_efficientnet",
        "alignment": {"blocks": BLOCKS, "method": "grid", "length": LENGTH},
        "losses": {"blocks": 0.3},
        "discriminators": {"adversary": "minimax", "on": "all"},
    }
    return Recipe.model_validate(tree | changes)


@pytest.fixture(scope="module")
def stream() -> Stream:
    alignment = make_recipe().alignment
    return student_stream(Network(model="test_efficientnet"), alignment, CLASSES, 32, seed=1).train()


def batch() -> tuple[Tensor, Tensor, Targets]:
    """Images, labels (some hidden) and what a teacher says of the images."""
    g = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (B, 3, 32, 32), generator=g, dtype=torch.uint8)
    blocks = [torch.randn(B, LENGTH, generator=g) for _ in range(BLOCKS)]
    return (
        image,
        torch.tensor([0, 2, -1, 1]),
        Targets([TeacherBlocks(None, blocks)], {}, torch.randn(B, CLASSES, generator=g)),
    )


def make_distiller(stream: Stream, **changes: Any) -> Distiller:
    torch.manual_seed(0)
    return Distiller(stream, make_recipe(**changes).method, CLASSES)


def moved(distiller: nn.Module, losses: dict[str, Tensor]) -> dict[str, bool]:
    """Which parameters have a gradient from the step's total."""
    distiller.zero_grad()
    losses["total"].backward()
    return {name: p.grad is not None and bool(p.grad.any()) for name, p in distiller.named_parameters()}


def test_the_total_is_the_weighted_sum_written_out(stream):
    settings = {"logits": 0.7, "blocks": [0.1, 0.4], "labels": 0.3, "similarity": "kl", "temperature": 2.0}
    distiller = make_distiller(
        stream, losses=settings, discriminators={"adversary": "minimax", "on": "all", "weight": 0.2}
    )
    image, label, targets = batch()
    ((_, blocks),) = targets.blocks
    found = distiller(image, label, targets)
    student = stream(image)
    expected = {
        "similarity/logits": logits_kl(targets.logits, student.logits, 2.0),
        "similarity/0": blocks_l2(blocks[0], student.blocks[0]),
        "similarity/1": blocks_l2(blocks[1], student.blocks[1]),
        "labels": cross_entropy(student.logits, label),
    }
    pairs = {str(i): (t, s) for i, (t, s) in enumerate(zip(blocks, student.blocks, strict=True))}
    pairs["logits"] = (targets.logits.softmax(1), student.logits.softmax(1))
    for name, (t, s) in pairs.items():
        loss, right = minimax(distiller.discriminators[name], t, s, 0.2)
        expected |= {f"adversary/{name}": loss, f"discriminator_accuracy/{name}": right}
    weights = {"similarity/logits": 0.7, "similarity/0": 0.1, "similarity/1": 0.4, "labels": 0.3}
    weights |= dict.fromkeys((f"adversary/{name}" for name in pairs), 1.0)
    assert found.keys() == {"total", *expected}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), msg=name)
    torch.testing.assert_close(found["total"], torch.stack([w * expected[n] for n, w in weights.items()]).sum())


def test_only_the_total_carries_a_gradient(stream):
    found = make_distiller(stream)(*batch())
    assert [name for name, value in found.items() if value.requires_grad] == ["total"]


@pytest.mark.parametrize("word", ["minimax", "non_saturating", "cooperative", "none"])
def test_all_that_is_trainable_learns(stream, word):
    distiller = make_distiller(stream, discriminators={"adversary": word, "on": "all"})
    learns = moved(distiller, distiller(*batch()))
    families = {name.split(".")[0] for name in learns}
    assert families == {"student", *["discriminators"] * (word != "none")}
    assert [name for name, does in learns.items() if not does] == []


@pytest.mark.parametrize(
    ("on", "names"),
    [("blocks", {"0", "1"}), ("logits", {"logits"}), ("all", {"0", "1", "logits"})],
)
def test_discriminators_stand_where_the_recipe_says(stream, on, names):
    distiller = make_distiller(stream, discriminators={"adversary": "minimax", "on": on})
    assert set(distiller.discriminators) == names
    found = distiller(*batch())
    assert {name.split("/")[1] for name in found if name.startswith("adversary/")} == names


def test_no_adversary_means_no_discriminator_and_no_term(stream):
    distiller = make_distiller(stream, discriminators={"adversary": "none"})
    assert len(distiller.discriminators) == 0
    assert distiller(*batch()).keys() == {"total", "similarity/logits", "similarity/0", "similarity/1"}


def step_of_the_student(stream: Stream, word: str) -> dict[str, Tensor]:
    """The student's gradients from the adversary alone: all similarity but a vanishing one switched off."""
    changes = {"losses": {"logits": 1e-12, "blocks": 0.0}}
    distiller = make_distiller(stream, discriminators={"adversary": word, "on": "all", "weight": 1.0}, **changes)
    moved(distiller, distiller(*batch()))
    return {n: p.grad.clone() for n, p in distiller.named_parameters() if p.grad is not None}


def test_cooperative_pulls_against_minimax_and_none_pulls_nowhere(stream):
    against, along, none = (step_of_the_student(stream, word) for word in ("minimax", "cooperative", "none"))
    students = [name for name in along if name.startswith("student.")]
    assert students
    for name, gradient in along.items():
        sign = -1 if name in students else 1
        torch.testing.assert_close(sign * gradient, against[name], atol=1e-6, rtol=1e-4)
    assert max(none[name].abs().max() for name in students) < 1e-9 < max(against[n].abs().max() for n in students)


def test_a_weight_of_zero_leaves_the_term_out(stream):
    found = make_distiller(stream, losses={"blocks": [0.0, 1.0]}, discriminators={"adversary": "none"})(*batch())
    assert found.keys() == {"total", "similarity/logits", "similarity/1"}


def test_a_student_as_good_as_its_teacher_has_nothing_to_lose(stream):
    image, label, _ = batch()
    with torch.no_grad():
        same = stream(image)
    changes: dict[str, Any] = {"losses": {"similarity": "kl", "blocks": 0.3}, "discriminators": {"adversary": "none"}}
    assert make_distiller(stream, **changes)(image, label, Targets.of(same))["total"].item() == pytest.approx(
        0, abs=1e-5
    )


def test_a_teacher_of_blocks_only_or_logits_only_gives_its_part(stream):
    image, label, targets = batch()
    distiller = make_distiller(stream)
    blocks_only = distiller(image, label, targets._replace(logits=None))
    assert {"similarity/0", "adversary/1"} <= blocks_only.keys()
    assert not any(name.endswith("/logits") for name in blocks_only)
    logits_only = distiller(image, label, targets._replace(blocks=[]))
    assert logits_only.keys() == {"total", *(f"{term}/logits" for term in ("similarity", "adversary",
                                                                            "discriminator_accuracy"))}  # fmt: skip
    for found in (blocks_only, logits_only):  # every parameter is in the graph, as several processes need it
        distiller.zero_grad()
        found["total"].backward()
        assert [name for name, p in distiller.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("word", ["minimax", "none"])
def test_gradient_shares_are_those_of_each_term_alone(stream, word):
    settings = {"blocks": [0.1, 0.4], "labels": 0.3}
    distiller = make_distiller(stream, losses=settings, discriminators={"adversary": word, "on": "all"})
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    found = distiller.gradient_shares(*batch())
    after = distiller.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # batch-norm statistics too
    norms = {}
    for name in found:
        distiller.zero_grad()
        image, label, targets = batch()
        term = distiller.terms(stream(image), label, targets)[name]
        (term.weight * term.loss).backward()
        students = [p.grad for p in distiller.student.parameters() if p.grad is not None]
        norms[name] = torch.stack([g.norm() for g in students]).norm().item()
    terms = {"similarity/logits", "similarity/0", "similarity/1", "labels"}
    assert found.keys() == terms | ({"adversary/0", "adversary/1", "adversary/logits"} if word == "minimax" else set())
    assert sum(found.values()) == pytest.approx(1)
    for name, share in found.items():
        assert share == pytest.approx(norms[name] / sum(norms.values()), rel=1e-3)


def test_supervised_is_cross_entropy_on_known_labels(stream):
    image, label, _ = batch()
    found = Supervised(stream, 0.1)(image, label)
    expected = cross_entropy(stream(image).logits, label, 0.1)
    torch.testing.assert_close(found["total"], expected)
    torch.testing.assert_close(found["labels"], expected.detach())


@pytest.mark.parametrize("word", LOGITS)
def test_half_precision_is_compared_in_float32(stream, word):
    image, label, targets = batch()
    half, student = targets.logits.bfloat16(), stream(image)
    distiller = make_distiller(stream, losses={"similarity": word, "blocks": 0.0})
    found, wanted = (
        distiller.terms(student._replace(logits=s), label, Targets([], {}, t))["similarity/logits"].loss
        for s, t in ((student.logits.bfloat16(), half), (student.logits.bfloat16().float(), half.float()))
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
