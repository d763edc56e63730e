"""Leave-one-out, selection, intervals and temperatures, against references written out."""

import numpy as np
import pytest
import torch
from torch import Tensor

from meco_timm.evaluation import ensemble
from meco_timm.evaluation.ensemble import (
    all_but_one,
    bootstrap_interval,
    disagreement,
    error_kappa,
    fit_temperature,
    select,
    vote,
)
from meco_timm.networks import NEVER

MEMBERS, IMAGES, CLASSES = 5, 70, 6


@pytest.fixture(scope="module")
def logits() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [2 * generator.standard_normal((IMAGES, CLASSES)) for _ in range(MEMBERS)]


@pytest.fixture(scope="module")
def label(logits: list[np.ndarray]) -> Tensor:
    """Often the class that the members prefer."""
    noise = np.random.default_rng(1).standard_normal((IMAGES, CLASSES))
    return torch.from_numpy((sum(logits) + 5 * noise).argmax(1))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def nll(p: np.ndarray, label: Tensor) -> float:
    return float(np.mean([-np.log(p[i, y]) for i, y in enumerate(label.tolist())]))


def test_leave_one_out_is_that_of_the_mean_softmax_written_out(logits, label, monkeypatch):
    monkeypatch.setattr(ensemble, "PART", 4 * MEMBERS * CLASSES)  # many parts, the last one smaller
    temperatures = [1.0, 0.5, 2.0, 1.3, 0.9]
    found = vote(logits, label, all_but_one(torch.ones(MEMBERS)), torch.tensor(temperatures))
    for m in range(MEMBERS):
        rest = [softmax(z / t) for i, (z, t) in enumerate(zip(logits, temperatures, strict=True)) if i != m]
        mean = sum(rest) / (MEMBERS - 1)
        assert found.losses[m].mean().item() == pytest.approx(nll(mean, label), rel=1e-5)
        assert found.predicted[m].tolist() == mean.argmax(1).tolist()
        np.testing.assert_allclose(found.confidence[m], mean.max(1), rtol=1e-5)
        assert found.right(label)[m].double().mean().item() == np.mean(mean.argmax(1) == label.numpy())


def test_weights_are_those_of_the_mean(logits, label):
    weights = torch.tensor([[1.0, 0, 0, 0, 0], [0, 2, 0, 1, 1]])
    found = vote(logits, label, weights)
    mean = (2 * softmax(logits[1]) + softmax(logits[3]) + softmax(logits[4])) / 4
    np.testing.assert_allclose(found.of_label[0], softmax(logits[0])[range(IMAGES), label], rtol=1e-5)
    np.testing.assert_allclose(found.of_label[1], mean[range(IMAGES), label], rtol=1e-5)


def test_selection_is_the_greedy_one_written_out(logits, label):
    shares = [softmax(z) for z in logits]
    chosen: list[int] = []
    found = select(torch.from_numpy(np.stack([p[range(IMAGES), label] for p in shares])), 8)
    for size in range(8):
        trial = {m: nll(sum(shares[i] for i in [*chosen, m]) / (size + 1), label) for m in range(MEMBERS)}
        chosen.append(min(trial, key=trial.__getitem__))
        assert found[size].tolist() == [chosen.count(m) for m in range(MEMBERS)]
    assert found.max() > 1  # with replacement


def test_a_duplicate_is_never_selected_beside_its_first(logits, label):
    doubled = [*logits, logits[0], logits[2]]
    members = vote(doubled, label, torch.eye(7))
    found = select(members.of_label, 7)
    assert found[:, 5:].sum() == 0
    assert found[:, :5].equal(select(members.of_label[:5], 7))


def test_agreement_and_kappa_are_their_definitions(logits, label):
    members = vote(logits, label, torch.eye(MEMBERS))
    predicted, right = members.predicted, members.right(label)
    found, kappa = disagreement(predicted), error_kappa(right)
    for a in range(MEMBERS):
        for b in range(MEMBERS):
            assert found[a, b].item() == pytest.approx(
                np.mean([p != q for p, q in zip(*predicted[[a, b]], strict=True)])
            )
            table = [[np.mean([(p, q) == (x, y) for p, q in right[[a, b]].T.tolist()]) for x in (0, 1)] for y in (0, 1)]
            seen = table[0][0] + table[1][1]
            chance = sum((table[0][x] + table[1][x]) * (table[x][0] + table[x][1]) for x in (0, 1))
            assert kappa[a, b].item() == pytest.approx((seen - chance) / (1 - chance))
    torch.testing.assert_close(kappa.diagonal(), torch.ones(MEMBERS).double())
    assert error_kappa(torch.ones(2, 9).bool()).isnan().all()


def test_bootstrap_intervals_cover_what_they_should():
    """Of 400 samples of 200 images, 95 % of the intervals hold the true mean: of accuracies, and of skewed losses."""
    generator = torch.Generator().manual_seed(3)
    right = (torch.rand(400, 200, generator=generator) < 0.8).double()
    loss = -torch.rand(400, 200, generator=generator).double().log()  # exponential, mean 1
    for values, truth in ((right, 0.8), (loss, 1.0)):
        low, high = bootstrap_interval(values).T
        share = ((low <= truth) & (truth <= high)).double().mean().item()
        assert 0.92 <= share <= 0.98
        assert ((high - low) < 6 * values.std() / 200**0.5).all()


def test_bootstrap_is_a_function_of_its_seed_and_pairs_rows():
    values = torch.randn(2, 30, generator=torch.Generator().manual_seed(0)).double()
    rows = torch.stack([*values, values[0] - values[1] * 0 - values[0]])
    assert bootstrap_interval(values).equal(bootstrap_interval(values))
    assert not bootstrap_interval(values, seed=1).equal(bootstrap_interval(values))
    torch.testing.assert_close(bootstrap_interval(rows)[2], torch.zeros(2).double())  # a row minus itself


def test_the_temperature_is_that_of_the_lowest_nll(logits, label):
    sharp = logits[0] + 2 * np.eye(CLASSES)[label]
    fitted = fit_temperature(sharp, label)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 2000))
    best = min(grid, key=lambda t: nll(softmax(sharp / t), label))
    assert fitted == pytest.approx(best, rel=5e-3)
    assert fit_temperature(sharp * 2, label) == pytest.approx(2 * fitted, rel=1e-6)


def test_the_temperature_stays_within_its_bounds_and_skips_classes_that_are_not_there(logits, label):
    certain = np.eye(CLASSES)[label]
    assert fit_temperature(certain, label) == pytest.approx(0.05, rel=1e-3)  # never wrong: as sharp as may be
    masked = logits[0].copy()
    masked[:, 2] = NEVER
    kept = label != 2
    assert fit_temperature(masked, label) == fit_temperature(masked[kept], label[kept])
    assert fit_temperature(masked[~kept], label[~kept]) == 1


def test_half_precision_and_memory_maps_give_the_same(logits, label, tmp_path):
    whole = np.stack(logits).astype(np.float16)
    np.save(tmp_path / "z.npy", whole)
    mapped = list(np.load(tmp_path / "z.npy", mmap_mode="r"))
    weights = all_but_one(torch.ones(MEMBERS))
    for found, wanted in zip(vote(mapped, label, weights), vote(list(whole), label, weights), strict=True):
        assert found.equal(wanted)


def test_a_class_that_no_member_has_costs_a_finite_loss(logits, label):
    masked = [np.where(np.arange(CLASSES) == 2, NEVER, z) for z in logits]
    losses = vote(masked, label, torch.ones(1, MEMBERS)).losses[0]
    assert losses[label == 2].tolist() == pytest.approx([-np.log(1e-20)] * int((label == 2).sum()))
    assert (losses[label != 2] < 20).all()
