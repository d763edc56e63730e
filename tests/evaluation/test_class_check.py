"""A network that does not know the classes, or knows them in another order, is found from its logits alone."""

import numpy as np
import pytest
import torch
from timm.utils import natural_key

from meco_timm.data.images import Images
from meco_timm.evaluation.class_check import balanced_sample, check_classes

CLASSES = sorted(f"class {i}" for i in range(1, 13))  # class 1, class 10, class 11, class 12, class 2, …
LABEL = torch.arange(12).repeat(25)


def logits_of(names: list[str], right: float, seed: int = 0, classes: list[str] = CLASSES) -> torch.Tensor:
    """Of a network with its classes in the order `names` that is right on that share of images of classes[LABEL]."""
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.tensor([names.index(classes[i]) for i in LABEL])
    guess = torch.randint(len(names), wanted.shape, generator=generator)
    chosen = torch.where(torch.rand(len(LABEL), generator=generator) < right, wanted, guess)
    return 5 * torch.nn.functional.one_hot(chosen, len(names)).float()


@pytest.mark.parametrize("right", [0.3, 0.7, 1.0])
@pytest.mark.parametrize(("order", "other"), [(natural_key, str), (str, natural_key)])
def test_the_order_that_fits_is_offered(order, other, right):
    """Both ways: the data set sorted as text and the network by number, and the reverse."""
    theirs, ours = sorted(CLASSES, key=order), sorted(CLASSES, key=other)
    logits = logits_of(theirs, right, classes=ours)
    check = check_classes(logits, LABEL, ours)
    assert check.chance == pytest.approx(100 / 12)
    assert check.other is not None
    assert check.other.names == theirs
    assert check.other.classes == [theirs.index(name) for name in ours]
    again = check_classes(logits[:, check.other.classes], LABEL, ours, torch.tensor(check.other.classes))
    assert again.other is None
    assert not again.at_chance
    assert again.accuracy == pytest.approx(check.other.accuracy)


def test_a_network_in_the_order_of_the_data_set_is_left_alone():
    for seed in range(20):
        check = check_classes(logits_of(CLASSES, 0.4, seed), LABEL, CLASSES)
        assert (check.at_chance, check.other) == (False, None)


def test_a_network_that_guesses_is_at_chance():
    found = [check_classes(logits_of(CLASSES, 0.0, seed), LABEL, CLASSES) for seed in range(10)]
    assert all(check.at_chance and check.other is None for check in found)


def test_a_constant_answer_is_chance_however_many_images_its_class_has():
    label = torch.tensor([0] * 90 + [1] * 10)
    check = check_classes(torch.tensor([[1.0, 0.0]]).repeat(100, 1), label, ["many", "few"])
    assert check.at_chance
    assert check.accuracy == pytest.approx(50)


def test_a_map_to_some_of_many_classes_has_no_other_order():
    check = check_classes(torch.eye(12)[LABEL], LABEL, CLASSES, torch.arange(12) + 40)
    assert check.other is None
    assert check.accuracy == 100


def test_the_sample_has_each_class_alike():
    labels = np.repeat([0, 1, 2], [20, 5, 2])
    images = Images(None, labels, np.arange(27), None)
    sample = balanced_sample(images, 12, None)
    assert np.bincount(labels[sample.rows]).tolist() == [5, 5, 2]
    assert len(balanced_sample(images, 1000, None)) == 27
