"""Embeddings: the loss written out, a projection per teacher, standardisation by what was measured, who learns."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meco_timm.distillation import Distiller, Targets
from meco_timm.distillation.projections import EmbeddingProjection
from meco_timm.distillation.similarity import embeddings
from meco_timm.networks import Stream, student_stream
from meco_timm.recipe import Recipe

B, SIZES = 6, [5, None, 7]  # of three teachers, of which the second gives no embedding
LABEL = torch.full((B,), -1)


def make_recipe(**changes: Any) -> Recipe:
    tree: dict[str, Any] = {
        "task": "backbone",
        "data": {"source": "x", "image_size": 32},
        "teachers": ["resnet18.a1_in1k"],
        "student": "test_efficientnet",
        "losses": {"blocks": 0.0},
    }
    return Recipe.model_validate(tree | changes)


@pytest.fixture(scope="module")
def student() -> Stream:
    recipe = make_recipe()
    return student_stream(recipe.student, recipe.alignment, 0, 32, seed=1).eval()


def make(student: Stream, **changes: Any) -> Distiller:
    torch.manual_seed(0)
    return Distiller(student, make_recipe(**changes).method, 0, [[], [], []], SIZES)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGE = torch.randint(0, 256, (B, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_loss_is_its_formula():
    teacher, student = 2 * noise(B, 5), noise(B, 5, seed=1)
    cosine = (teacher * student).sum(1) / (teacher.norm(dim=1) * student.norm(dim=1))
    far = (teacher - student).abs()
    smooth = torch.where(far < 1, far.square() / 2, far - 0.5)
    torch.testing.assert_close(embeddings(teacher, student), 1 - cosine.mean() + smooth.mean())
    assert embeddings(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("isotropic", [False, True])
def test_a_teacher_is_standardised_by_what_was_measured(isotropic):
    """By dimension to mean 0 and deviation 1; isotropic to the same mean square, which keeps all proportions."""
    teacher = noise(1000, 4) * torch.tensor([1.0, 2.0, 3.0, 0.0]) + torch.tensor([0.0, 5.0, -1.0, 2.0])
    projection = EmbeddingProjection(3, 4, mlp=False)
    deviation, mean = torch.std_mean(teacher, 0, correction=0)
    projection.standardise_by(mean, deviation, isotropic)
    found, _ = projection(teacher, noise(1000, 3))
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    spread = found.std(0, correction=0)
    if isotropic:
        torch.testing.assert_close(spread.square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
        torch.testing.assert_close(spread[:3] / spread[0], deviation[:3] / deviation[0])
    else:
        torch.testing.assert_close(spread[:3], torch.ones(3), atol=1e-3, rtol=0)
        assert spread[3] == 0  # a dimension that never varies


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_term_is_the_mean_over_teachers_of_the_projected_embedding(student, kind):
    distiller = make(student, alignment={"embedding": kind}, losses={"blocks": 0.0, "embedding": 0.5})
    targets = Targets([], {0: noise(B, 5), 2: noise(B, 7, seed=2)}, None)
    found = distiller(IMAGE, LABEL, targets)
    own, each = student(IMAGE).embedding, []
    for i, teacher in targets.embeddings.items():
        layers = distiller.embedding_projections[str(i)].layers
        hidden = F.gelu(own @ layers[0].weight.T + layers[0].bias) if kind == "mlp" else own
        each.append(embeddings(teacher, hidden @ layers[-1].weight.T + layers[-1].bias))
    torch.testing.assert_close(found["similarity/embedding"], torch.stack(each).mean().detach())
    torch.testing.assert_close(found["total"].detach(), 0.5 * found["similarity/embedding"])
    assert found.keys() == {"total", "similarity/embedding"}


def test_only_the_drawn_teachers_projection_learns_and_all_have_a_gradient(student):
    distiller = make(student)
    distiller(IMAGE, LABEL, Targets([], {2: noise(B, 7)}, None))["total"].backward()
    assert [name for name, p in distiller.named_parameters() if p.grad is None] == []
    for name, p in distiller.embedding_projections.named_parameters():
        assert bool(p.grad.any()) == name.startswith("2"), name


def test_a_teacher_without_an_embedding_leaves_the_student_alone(student):
    """And every parameter is in the graph, as several processes need it."""
    distiller = make(student, losses={"blocks": 1.0})
    distiller.zero_grad()
    found = distiller.zero_of_unused(student(IMAGE), Targets([], {}, None))
    found.backward()
    assert [name for name, p in distiller.named_parameters() if p.grad is None] == []
    assert found.item() == 0
    assert not any(p.grad.any() for p in distiller.parameters())


def test_what_was_measured_is_part_of_the_checkpoint(student):
    distiller, other = make(student), make(student)
    distiller.embedding_projections.standardise_by({0: (noise(5), noise(5).abs())}, isotropic=False)
    other.load_state_dict(distiller.state_dict())
    torch.testing.assert_close(other.embedding_projections["0"].mean, noise(5))


def test_a_classifier_compares_embeddings_beside_logits():
    """The key in a classification recipe: off by default, and of the same loss."""
    plain = make_recipe(task="classification", losses={"blocks": 0.0})
    assert (plain.losses.embedding, plain.alignment.embedding) == (0.0, "none")
    recipe = make_recipe(task="classification", losses={"blocks": 0.0, "embedding": 2.0})
    assert recipe.alignment.embedding == "linear"
    own = student_stream(recipe.student, recipe.alignment, 4, 32, seed=1).eval()
    distiller = Distiller(own, recipe.method, 4, [[]], [5])
    found = distiller(IMAGE, LABEL, Targets([], {0: noise(B, 5)}, noise(B, 4)))
    assert found.keys() == {"total", "similarity/logits", "similarity/embedding"}
    expected = found["similarity/logits"] + 2 * found["similarity/embedding"]
    torch.testing.assert_close(found["total"].detach(), expected)


def test_a_backbones_defaults():
    recipe = make_recipe(losses={})
    assert (recipe.losses.logits, recipe.losses.blocks, recipe.losses.embedding) == (0.0, 3.0, 3.0)
    assert (recipe.alignment.embedding, recipe.discriminators.adversary) == ("linear", "none")
    assert recipe.data.validation == 0
    again = Recipe.model_validate(recipe.model_dump())
    assert again.model_dump() == recipe.model_dump()
