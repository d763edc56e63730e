"""What each of several made-up teachers adds, which of them suffice, and which are the same."""

import numpy as np
import pytest
import torch
from torch import Tensor

from meco_timm.evaluation.ensemble import fit_temperature
from meco_timm.evaluation.teacher_contributions import Contributions, contributions, lowest_share, temperature_of

IMAGES, CLASSES = 600, 5


def teacher(label: Tensor, skill: float, seed: int, sharpness: float = 1.0) -> np.ndarray:
    """Logits that prefer the label by `skill` standard deviations of their noise."""
    noise = np.random.default_rng(seed).standard_normal((IMAGES, CLASSES))
    return sharpness * (noise + skill * np.eye(CLASSES)[label])


@pytest.fixture(scope="module")
def label() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, CLASSES, IMAGES))


@pytest.fixture(scope="module")
def zoo(label: Tensor) -> list[np.ndarray]:
    """Two good teachers, one of them twice, and one that is sure of what it does not know."""
    good, other = teacher(label, 2.0, 1), teacher(label, 2.0, 2)
    return [good, other, good, teacher(label, 0.0, 3, sharpness=6.0)]


@pytest.fixture(scope="module")
def found(zoo: list[np.ndarray], label: Tensor) -> Contributions:
    return contributions(zoo, label)


def test_the_harmful_one_and_the_duplicate_are_found(found):
    assert [added.worse for added in found.added] == ["", "", "", "top-1 and NLL"]
    assert [pair[:2] for pair in found.duplicates()] == [(0, 2)]
    assert found.duplicates()[0][2] == 1


def test_few_images_on_which_two_agree_are_no_proof(zoo, label):
    """All of 100 are right by two good teachers without their being one."""
    assert contributions([z[:100] for z in zoo], label[:100]).duplicates() == []
    assert lowest_share(1.0, 400) > 0.99 > lowest_share(1.0, 300)
    assert lowest_share(0.5, 100) == pytest.approx(0.404, abs=1e-3)  # Wilson's, from a table


def test_what_a_teacher_adds_lies_in_its_interval(found, zoo, label):
    for added in found.added:
        for change in added:
            assert change.low <= change.mean <= change.high
    alone = contributions(zoo[:1], label)
    pair = contributions(zoo[:2], label)
    assert pair.added[1].nll.mean == pytest.approx(pair.ensemble.nll - alone.ensemble.nll, rel=1e-5)
    assert pair.added[1].top1.mean == pytest.approx(pair.ensemble.top1 - alone.ensemble.top1)
    assert not alone.added


def test_the_suggestion_leaves_out_both(found):
    assert found.suggested.counts == [1, 1, 0, 0]
    assert [sum(choice.counts) for choice in found.choices] == [1, 2, 3, 4]
    assert all(choice.counts[2] == choice.counts[3] == 0 for choice in found.choices)
    assert found.suggested.quality.nll < found.ensemble.nll


def test_all_are_suggested_where_each_counts(label):
    """Equal strangers, too flat together: fewer have a lower NLL but are less often right."""
    zoo = [teacher(label, 1.0, seed) for seed in range(4)]
    found = contributions(zoo, label, temperatures=[3.0] * 4)
    assert found.suggested.quality.top1 >= max(choice.quality.top1 for choice in found.choices[:2])
    assert sum(map(bool, found.suggested.counts)) == 4


def test_temperatures_and_weights_are_applied(label, zoo):
    temperatures = [temperature_of(z, label) for z in zoo]
    assert temperatures == pytest.approx([fit_temperature(z, label) for z in zoo])
    assert temperatures[3] > 6 * temperatures[0]
    plain, calibrated = contributions(zoo, label), contributions(zoo, label, temperatures=temperatures)
    assert calibrated.temperatures == plain.temperatures
    assert calibrated.ensemble.nll < plain.ensemble.nll
    assert [a.top1 for a in calibrated.members] == [a.top1 for a in plain.members]
    only = contributions(zoo, label, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert only.ensemble.nll == pytest.approx(plain.suggested.quality.nll)
