"""The adversary: gradient signs of all its words, on student and on discriminator, against formulas written out."""

import math

import pytest
import torch
from torch import Tensor, nn

from meco_timm.distillation.discriminators import ADVERSARIES, Discriminator, minimax, scale_gradient

LENGTH, WEIGHT = 16, 0.3


@pytest.fixture
def discriminator() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(LENGTH)


def sides() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, LENGTH, generator=generator) + 1, torch.randn(6, LENGTH, generator=generator)


def gradients(loss: Tensor, student: Tensor, discriminator: nn.Module) -> tuple[Tensor, list[Tensor]]:
    parameters = list(discriminator.parameters())
    of_student, *of_discriminator = torch.autograd.grad(loss, [student, *parameters], allow_unused=True)
    return of_student, of_discriminator


def played(discriminator: nn.Module, word: str) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """(student's gradient, discriminator's gradients, loss, accuracy) of one game."""
    teacher, student = sides()
    student.requires_grad_()
    loss, right = ADVERSARIES[word](discriminator, teacher, student, WEIGHT)
    return *gradients(loss, student, discriminator), loss, right


def student_wins(discriminator: nn.Module, student: Tensor) -> Tensor:
    """E_S log D, in the paper's words: how much the discriminator takes the student for a teacher."""
    return discriminator(student).sigmoid().log().mean()


def discriminator_loss(discriminator: nn.Module, teacher: Tensor, student: Tensor) -> Tensor:
    """−E_T log D − E_S log(1 − D), written out."""
    return -discriminator(teacher).sigmoid().log().mean() - (1 - discriminator(student).sigmoid()).log().mean()


@pytest.mark.parametrize("word", ADVERSARIES)
def test_the_discriminator_always_learns_to_tell_them_apart(discriminator, word):
    _, found, _, _ = played(discriminator, word)
    teacher, student = sides()
    expected = torch.autograd.grad(discriminator_loss(discriminator, teacher, student), discriminator.parameters())
    torch.testing.assert_close(found, list(expected))


@pytest.mark.parametrize(
    ("word", "minimises"),
    [
        ("minimax", lambda d, s: (1 - d(s).sigmoid()).log().mean()),
        ("non_saturating", lambda d, s: -d(s).sigmoid().log().mean()),
        ("cooperative", lambda d, s: -(1 - d(s).sigmoid()).log().mean()),
    ],
)
def test_the_students_gradient_is_that_of_its_formula(discriminator, word, minimises):
    found, _, _, _ = played(discriminator, word)
    _, student = sides()
    student.requires_grad_()
    (expected,) = torch.autograd.grad(WEIGHT * minimises(discriminator, student), student)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("word", "sign"), [("minimax", 1), ("non_saturating", 1), ("cooperative", -1)])
def test_the_student_fools_the_discriminator_or_helps_it(discriminator, word, sign):
    """A step down its gradient makes the student look more like a teacher; with the released code's word, less."""
    gradient, _, _, _ = played(discriminator, word)
    _, student = sides()
    gained = student_wins(discriminator, student - 0.1 * gradient) - student_wins(discriminator, student)
    assert sign * gained.item() > 1e-6


@pytest.mark.parametrize("word", ADVERSARIES)
def test_nothing_flows_to_the_teacher(discriminator, word):
    teacher, student = sides()
    teacher.requires_grad_()
    loss, _ = ADVERSARIES[word](discriminator, teacher, student.requires_grad_(), WEIGHT)
    loss.backward()
    assert teacher.grad is None


def test_the_loss_and_the_accuracy_of_the_game(discriminator):
    teacher, student = sides()
    _, _, loss, right = played(discriminator, "minimax")
    torch.testing.assert_close(loss, discriminator_loss(discriminator, teacher, student))
    on_teacher, on_student = discriminator(teacher), discriminator(student)
    assert right.item() == pytest.approx(((on_teacher > 0).sum() + (on_student < 0).sum()).item() / 12)
    assert not right.requires_grad


def test_a_discriminator_that_knows_nothing_loses_2_log_2(discriminator):
    nn.init.zeros_(discriminator.layers[-1].weight)
    nn.init.zeros_(discriminator.layers[-1].bias)
    assert played(discriminator, "minimax")[2].item() == pytest.approx(2 * math.log(2))


def test_the_loss_can_fall_below_what_a_final_relu_allows(discriminator):
    """Under the released code's last ReLU no loss is below log 2, here it goes to 0: logits are linear, of any sign."""
    teacher, student = sides()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        loss, _ = minimax(discriminator, teacher, student, WEIGHT)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert (discriminator(student) < 0).all()


@pytest.mark.parametrize(("word", "nearer"), [("minimax", True), ("non_saturating", True), ("cooperative", False)])
def test_the_whole_game_in_one_backward_per_step(discriminator, word, nearer):
    """Student vectors free to move and a discriminator under one optimizer: they meet the teacher's, or flee them."""
    teacher, student = sides()
    student.requires_grad_()
    before = (teacher.mean(0) - student.mean(0)).norm().item()
    optimizer = torch.optim.Adam([student, *discriminator.parameters()], lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        ADVERSARIES[word](discriminator, teacher, student, 1.0)[0].backward()
        optimizer.step()
    after = (teacher.mean(0) - student.mean(0)).norm().item()
    assert after < 0.8 * before if nearer else after > 1.05 * before


@pytest.mark.parametrize("length", [2, 3, 10, 256])
def test_one_logit_per_image_whatever_the_length(length):
    assert Discriminator(length)(torch.randn(5, length)).shape == (5,)


def test_scale_gradient_is_the_identity_forward():
    x = torch.randn(3, requires_grad=True)
    y = scale_gradient(x, -2.0)
    torch.testing.assert_close(y, x, rtol=0, atol=0)
    y.backward(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(x.grad, torch.tensor([-2.0, -4.0, -6.0]))
