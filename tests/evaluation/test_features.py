"""k-NN, probe and PCA colours against references written out, and what a backbone's table says."""

import numpy as np
import pytest
import torch
from torch import Tensor

from meco_timm.evaluation.features import knn_accuracy, nearest, pca_colours, probe_accuracy
from meco_timm.evaluation.rows import BackboneRow, Row, compare_features, read_rows, table_columns


def clusters(count: int, seed: int, spread: float = 1.0, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Features of some classes around 3 · their unit vectors, in eight dimensions."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % classes
    return 3 * torch.eye(8)[label] + spread * torch.randn(count, 8, generator=generator), label


def test_knn_is_the_weighted_vote_written_out():
    reference, labels = clusters(60, 0, 2.0)
    query, truth = clusters(40, 1, 2.0)
    right = 0
    for features, label in zip(query.double().numpy(), truth.tolist(), strict=True):
        r = reference.double().numpy()
        cosine = r @ features / np.linalg.norm(r, axis=1) / np.linalg.norm(features)
        votes = np.zeros(4)
        for i in np.argsort(-cosine)[:20]:
            votes[labels[i]] += np.exp(cosine[i] / 0.07)
        right += int(votes.argmax() == label)
    assert 8 < right < 40
    assert knn_accuracy(reference, labels, query, truth) == pytest.approx(100 * right / 40)
    assert knn_accuracy(reference, labels, 7 * query, truth) == pytest.approx(100 * right / 40)  # cosine has no scale


def test_nearest_are_sorted_and_no_more_than_there_are():
    reference, _ = clusters(5, 0)
    cosine, places = nearest(reference, reference, 9)
    assert places[:, 0].tolist() == list(range(5))
    assert places.shape == (5, 5)
    torch.testing.assert_close(cosine[:, 0], torch.ones(5))
    assert (cosine.diff(dim=1) <= 0).all()


def test_the_probe_finds_what_is_linear_and_no_more():
    reference, labels = clusters(200, 0)
    query, truth = clusters(200, 1)
    right = probe_accuracy(reference, labels, query, truth)
    assert right > 90
    assert right == probe_accuracy(reference, labels, query, truth)
    assert probe_accuracy(100 * reference + 5, labels, 100 * query + 5, truth) == pytest.approx(right, abs=1)
    noise = torch.randn(200, 8, generator=torch.Generator().manual_seed(2))
    assert probe_accuracy(noise, labels, noise.flip(0), truth) < 45
    constant = torch.cat([reference, torch.ones(200, 1)], 1)  # a dimension that never varies
    assert probe_accuracy(constant, labels, torch.cat([query, torch.ones(200, 1)], 1), truth) == pytest.approx(right)


def test_the_probe_is_the_minimum_of_its_loss():
    """Against plain gradient descent on the same loss."""
    reference, labels = clusters(40, 3, 3.0)
    x = (reference - reference.mean(0)) / reference.std(0)
    weight, bias = torch.zeros(4, 8, requires_grad=True), torch.zeros(4, requires_grad=True)
    for _ in range(3000):
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels) + 5e-4 * weight.square().sum()
        for parameter, gradient in zip((weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True):
            parameter.data -= 0.5 * gradient
    right = ((x @ weight.T + bias).argmax(1) == labels).double().mean().item()
    assert probe_accuracy(reference, labels, reference, labels) == pytest.approx(100 * right, abs=2.6)


def test_equal_positions_have_equal_colours_and_others_differ():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, 16, generator=generator)
    maps = torch.stack([base[(torch.arange(16) > 7).long()].T.reshape(16, 4, 4)] * 3)
    colours = pca_colours(maps)
    assert colours.shape == (3, 4, 4, 3)
    assert colours.dtype == torch.uint8
    assert len(colours.reshape(-1, 3).unique(dim=0)) == 2
    assert colours.equal(pca_colours(maps * 5))
    assert pca_colours(torch.randn(1, 2, 3, 3, generator=generator)).shape == (1, 3, 3, 3)  # of two channels


def row(name: str, knn: float | None, cost: int = 100, **more: float) -> BackboneRow:
    return BackboneRow(name, knn, knn, 10, cost, 1.0, **more)


@pytest.mark.parametrize(
    ("student", "before", "expected"),
    [
        (72.5, 47.8, "is 72.50 %, 24.70 points more than before the training and 3.30 points less than that of its "
                     "best teacher, a, at 1/8 of its multiply-adds."),
        (75.8, 75.8, "is 75.80 %, as much as before the training and as much as that of its best"),
    ],
)  # fmt: skip
def test_the_verdict_compares_with_before_and_with_the_best_teacher(student, before, expected):
    rows = [row("a", 75.8, 800), row("b", 73.9), row("student before", before), row("student", student)]
    assert compare_features(rows).startswith(f"The backbone's k-NN accuracy {expected}")


def test_without_labels_the_agreement():
    rows = [row("a", None, cka_before=0.2, cka=0.71), row("student before", None), row("student", None)]
    assert compare_features(rows).endswith("(CKA), before → after: a 0.20 → 0.71.")
    heads = [column[0] for column in table_columns(rows)]
    assert heads == ["", "CKA before", "CKA", "params M", "MACs M", "images/s"]
    assert "No image has a label" in compare_features(rows[1:])


def test_rows_come_back_from_a_table():
    classifier = Row("student", 90.0, None, 0.1, 1.0, 10, 100, 1.0, 90.0, {})
    assert read_rows([classifier._asdict(), row("a", 1.0)._asdict()]) == [classifier, row("a", 1.0)]
