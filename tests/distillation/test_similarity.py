"""Similarity: every formula against the same written out number by number, invariants, and signs."""

import math

import pytest
import torch
from torch import Tensor

from meco_timm.distillation.labels import class_weights, cross_entropy
from meco_timm.distillation.similarity import BLOCKS, LOGITS
from meco_timm.networks import mean_logits

B, K = 3, 5
KINDS = list(BLOCKS)  # the paper's


def pair(seed: int = 0, width: int = K) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(B, width, generator=generator), 3 * torch.randn(B, width, generator=generator)


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def longhand(kind: str, t: list[float], s: list[float]) -> float:
    """One image's term: of two distributions for kl and ce, of any two vectors for l1 and l2."""
    if kind == "l1":
        return sum(abs(a - b) for a, b in zip(t, s, strict=True))
    if kind == "l2":
        return sum((a - b) ** 2 for a, b in zip(t, s, strict=True))
    if kind == "kl":
        return sum(a * math.log(a / b) for a, b in zip(t, s, strict=True))
    return -sum(a * math.log(b) for a, b in zip(t, s, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_of_logits_is_the_papers_formula_of_the_softmax(kind, temperature):
    teacher, student = pair()
    rows = zip(teacher.tolist(), student.tolist(), strict=True)
    shown = "kl" if kind == "ce" else kind  # the teacher's entropy is left out
    each = [longhand(shown, softmax(t, temperature), softmax(s, temperature)) for t, s in rows]
    expected = sum(each) / B * (temperature**2 if kind in ("kl", "ce") else 1)
    assert LOGITS[kind](teacher, student, temperature).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_of_blocks_is_per_element_or_of_the_softmax(kind):
    teacher, student = pair(width=16)
    rows = list(zip(teacher.tolist(), student.tolist(), strict=True))
    if kind in ("l1", "l2"):
        expected = sum(longhand(kind, t, s) / 16 for t, s in rows) / B
    else:
        expected = sum(longhand(kind, softmax(t), softmax(s)) for t, s in rows) / B
    assert BLOCKS[kind](teacher, student).item() == pytest.approx(expected, rel=1e-5)


def correlation(a: list[float], b: list[float]) -> float:
    a, b = ([x - sum(v) / len(v) for x in v] for v in (a, b))
    norms = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms


def test_dist_is_one_minus_correlation_by_image_and_by_class():
    teacher, student = pair()
    t, s = ([softmax(row, 2.0) for row in z.tolist()] for z in (teacher, student))
    images = sum(1 - correlation(a, b) for a, b in zip(t, s, strict=True)) / B
    by_class = zip(zip(*t, strict=True), zip(*s, strict=True), strict=True)
    classes = sum(1 - correlation(list(a), list(b)) for a, b in by_class) / K
    assert LOGITS["dist"](teacher, student, 2.0).item() == pytest.approx(4 * (images + classes), rel=1e-5)


@pytest.mark.parametrize("kind", LOGITS)
def test_nothing_is_lost_between_equals(kind):
    teacher, student = pair()
    assert LOGITS[kind](teacher, teacher.clone(), 1.0).item() == pytest.approx(0, abs=1e-6)
    assert LOGITS[kind](teacher, teacher + 7, 1.0).item() == pytest.approx(0, abs=1e-6)  # softmax knows no offset
    assert LOGITS[kind](teacher, student, 1.0).item() > 0.01


def test_ce_is_kl_and_the_teachers_entropy():
    teacher, student = pair()
    entropy = BLOCKS["ce"](teacher, teacher)
    torch.testing.assert_close(BLOCKS["ce"](teacher, student), BLOCKS["kl"](teacher, student) + entropy)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_and_ce_have_the_gradient_of_the_difference_of_softmaxes(temperature):
    teacher, student = pair()
    for kind in ("kl", "ce"):
        z = student.clone().requires_grad_()
        LOGITS[kind](teacher, z, temperature).backward()
        difference = (z / temperature).softmax(1) - (teacher / temperature).softmax(1)
        torch.testing.assert_close(z.grad, (temperature * difference / B).detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_down_the_gradient_brings_the_student_nearer(kind):
    teacher, student = pair()
    z = student.clone().requires_grad_()
    before = LOGITS[kind](teacher, z, 1.0)
    before.backward()
    assert LOGITS[kind](teacher, z - 0.01 * z.grad, 1.0) < before


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_over_the_batch(kind):
    teacher, student = pair()
    once, twice = (teacher, student), (torch.cat([teacher] * 2), torch.cat([student] * 2))
    torch.testing.assert_close(LOGITS[kind](*once, 1.0), LOGITS[kind](*twice, 1.0))
    torch.testing.assert_close(BLOCKS[kind](*once), BLOCKS[kind](*twice))


@pytest.mark.parametrize("kind", KINDS)
def test_very_sure_networks_give_finite_losses(kind):
    teacher, student = torch.tensor([[1000.0, -1000.0]]), torch.tensor([[-1000.0, 1000.0]], requires_grad=True)
    loss = LOGITS[kind](teacher, student, 1.0)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_are_plain_cross_entropy(smoothing):
    logits, _ = pair()
    labels = [4, 0, 2]
    each = []
    for row, label in zip(logits.tolist(), labels, strict=True):
        logs = [math.log(p) for p in softmax(row)]
        each.append(-(1 - smoothing) * logs[label] - smoothing * sum(logs) / K)
    loss = cross_entropy(logits, torch.tensor(labels), smoothing)
    assert loss.item() == pytest.approx(sum(each) / B, rel=1e-5)


def test_hidden_labels_count_for_nothing():
    logits, _ = pair()
    some = cross_entropy(logits, torch.tensor([4, -1, -1]))
    torch.testing.assert_close(some, cross_entropy(logits[:1], torch.tensor([4])) / 3)  # a label weighs alike anywhere
    none = cross_entropy(logits.requires_grad_(), torch.tensor([-1, -1, -1]))
    none.backward()
    assert none.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_mean_logits_have_the_mean_softmax(temperature):
    first, second = pair()
    third, _ = pair(1)
    mean = mean_logits([first, second, third], temperature)
    expected = sum((z / temperature).softmax(1) for z in (first, second, third)) / 3
    torch.testing.assert_close((mean / temperature).softmax(1), expected)


def test_the_mean_of_one_is_itself_up_to_an_offset():
    first, _ = pair()
    torch.testing.assert_close(mean_logits([first]).softmax(1), first.softmax(1))
    assert (mean_logits([first]).argmax(1) == first.argmax(1)).all()


def test_balanced_weights_make_each_class_count_alike():
    """Against the loss written out: the mean over classes of the mean over a class's images."""
    label = torch.tensor([0] * 6 + [1] * 3 + [2])
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    assert class_weights("none", label.bincount()) is None
    weight = class_weights("balanced", label.bincount())
    torch.testing.assert_close(weight, torch.tensor([10 / 18, 10 / 9, 10 / 3]))
    each = -logits.log_softmax(1)[range(10), label]
    expected = torch.stack([each[label == c].mean() for c in range(3)]).mean()
    torch.testing.assert_close(cross_entropy(logits, label, weight=weight), expected)
    shares = torch.nn.functional.one_hot(label, 3).float()
    torch.testing.assert_close(cross_entropy(logits, shares, weight=weight), expected)
    torch.testing.assert_close(class_weights("balanced", torch.tensor([4, 0])), torch.tensor([0.5, 2.0]))


def test_weights_are_those_of_the_mean_softmax():
    first, second, third = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 4.0):
        found = mean_logits([first, second, third], temperature, [3, 0, 1])
        wanted = (3 * (first / temperature).softmax(1) + (third / temperature).softmax(1)) / 4
        torch.testing.assert_close((found / temperature).softmax(1), wanted)
    torch.testing.assert_close(mean_logits([first, second], 2.0, [1, 1]), mean_logits([first, second], 2.0))
