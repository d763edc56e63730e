"""The table: scores against formulas written out, every image once, and rows that say what they measure."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from meco_timm.data.loading import load_data
from meco_timm.evaluation.measures import (
    accuracy,
    class_accuracies,
    mean_of_known,
    negative_log_likelihood,
    quality,
)
from meco_timm.evaluation.rows import Row, print_table
from meco_timm.evaluation.table import compute_logits, images_per_second, make_table, validate
from meco_timm.networks.streams import student_stream
from meco_timm.recipe.networks import Network
from meco_timm.recipe.recipe import Alignment
from meco_timm.recipe.sections import Data


def scores(n: int = 200, k: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, k, generator=generator)
    label = torch.randint(0, k, (n,), generator=generator)
    logits[range(n), label] += 1.5
    return logits, label


@pytest.mark.parametrize("k", [1, 5])
def test_accuracy_counts_rows_whose_label_is_among_the_largest(k):
    logits, label = scores()
    right = 0
    for row, place in zip(logits.tolist(), label.tolist(), strict=True):
        right += place in sorted(range(7), key=lambda i: -row[i])[:k]
    assert 0 < right < 200
    assert accuracy(logits, label, k) == pytest.approx(100 * right / 200)


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(z) for z in row]
    return [p / sum(powers) for p in powers]


def test_nll_is_the_mean_of_minus_log_softmax():
    logits, label = scores()
    rows = zip(logits.tolist(), label.tolist(), strict=True)
    expected = sum(-math.log(softmax(row)[place]) for row, place in rows) / 200
    assert negative_log_likelihood(logits, label) == pytest.approx(expected)


def test_calibration_error_is_the_gap_over_bins_written_out():
    logits, label = scores()
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, place in zip(logits.tolist(), label.tolist(), strict=True):
        p = softmax(row)
        bins.setdefault(min(int(max(p) * 15), 14), []).append((max(p), p.index(max(p)) == place))
    error = 0.0
    for items in bins.values():
        confidence, right = (sum(values) / len(items) for values in zip(*items, strict=True))
        error += len(items) / 200 * abs(confidence - right)
    assert error > 0.01
    assert quality(logits, label)["ece"] == pytest.approx(100 * error)


def test_a_perfect_and_a_perfectly_wrong_network():
    label = torch.tensor([0, 1, 2])
    right = 1000 * torch.eye(3)
    assert quality(right, label) == {"top1": 100, "top5": None, "nll": 0, "ece": 0}
    assert quality(right, label.roll(1))["ece"] == pytest.approx(100)
    assert quality(right, label.roll(1))["top1"] == 0


def test_top5_is_given_where_there_are_more_than_five_classes():
    logits, label = scores(k=6)
    assert quality(logits, label)["top5"] is not None
    logits, label = scores(k=5)
    assert quality(logits, label)["top5"] is None


@pytest.fixture(scope="module")
def data(shapes):
    return load_data(Data(source=str(shapes), image_size=32, crop_pct=1.0, workers=0, validation=0.25), 0)


@pytest.fixture(scope="module")
def stream():
    return student_stream(Network(model="test_resnet"), Alignment(blocks=1, length=16), 3, 32, seed=3).eval()


@pytest.mark.parametrize("batch_size", [1, 5, 12, 64])
def test_every_image_is_seen_once_in_order_whatever_the_batch(data, stream, batch_size):
    accelerator = Accelerator()
    found, label = compute_logits({"a": lambda x: stream(x).logits}, data, data.test, accelerator, batch_size)
    assert label.tolist() == data.test.labels.tolist()
    with torch.no_grad():
        one_by_one = torch.cat([stream(data.test.__getitems__([i])[0][0][None]).logits for i in range(12)])
    torch.testing.assert_close(found["a"], one_by_one, atol=1e-5, rtol=1e-4)


def test_validation_uses_the_validation_split_and_eval_mode(data, stream):
    stream.train()
    before = stream.state_dict()["model.conv1.1.running_mean"].clone()
    found = validate(stream, data, Accelerator(), 8)
    assert torch.equal(stream.state_dict()["model.conv1.1.running_mean"], before)
    logits, label = compute_logits({"": lambda x: stream(x).logits}, data, data.validation, Accelerator(), 64)
    assert len(label) == 9
    assert found["top1"] == pytest.approx(accuracy(logits[""], label))
    assert found["nll"] == pytest.approx(negative_log_likelihood(logits[""], label))


@pytest.fixture(scope="module")
def rows(data, stream) -> list[Row]:
    alignment = Alignment(blocks=1, length=16)
    vit = student_stream(Network(model="test_vit"), alignment, 3, 32, seed=1).eval()
    return make_table(stream, stream, {"one": stream, "two": vit}, data, Accelerator()).rows


def test_the_table_has_a_row_for_everyone_in_order(rows):
    assert [row.name for row in rows] == ["one", "two", "true ensemble", "student alone", "student"]


def test_the_true_ensemble_is_the_mean_softmax_at_the_cost_of_all(rows, data, stream):
    vit = student_stream(Network(model="test_vit"), Alignment(blocks=1, length=16), 3, 32, seed=1).eval()
    predictors = {"one": lambda x: stream(x).logits, "two": lambda x: vit(x).logits}
    logits, label = compute_logits(predictors, data, data.test, Accelerator(), 64)
    mean = sum(z.softmax(1) for z in logits.values()) / 2
    one, two, ensemble, *_ = rows
    assert ensemble.nll == pytest.approx(negative_log_likelihood(mean.log(), label), rel=1e-5)
    assert ensemble.top1 == pytest.approx(accuracy(mean, label))
    assert ensemble.parameters == one.parameters + two.parameters
    assert ensemble.multiply_adds == one.multiply_adds + two.multiply_adds
    assert ensemble.nll < (one.nll + two.nll) / 2  # Jensen


def test_the_same_network_has_the_same_row(rows):
    one, *_, student = rows
    same = [
        (getattr(one, key), getattr(student, key))
        for key in Row._fields
        if key not in ("name", "images_per_s", "latency_ms")
    ]
    assert all(a == b for a, b in same)


def test_speed_is_images_over_seconds():
    def slow(image: Tensor) -> Tensor:
        import time

        time.sleep(0.02)
        return image[:, 0, 0, 0].float()

    assert 64 / 0.2 < images_per_second(slow, 4, torch.device("cpu"), seconds=0.1) <= 64 / 0.02


def test_tables_for_people(rows, capsys):
    print_table(rows, "Test split of shapes")
    told = capsys.readouterr().out
    assert "Test split of shapes" in told
    assert all(row.name in told and f"{row.top1:.2f}" in told for row in rows)
    assert "top-5" not in told


def test_accuracy_of_each_class_and_their_mean():
    """8 of 8 of the first class right, 1 of 2 of the second, none of the third; the fourth has no image."""
    label = torch.tensor([0] * 8 + [1, 1, 2])
    predicted = torch.tensor([0] * 8 + [1, 0, 0])
    logits = torch.nn.functional.one_hot(predicted, 4).float()
    found = class_accuracies(logits, label)
    assert found == [100, 50, 0, None]
    assert mean_of_known(found) == pytest.approx(50)
    assert accuracy(logits, label) == pytest.approx(100 * 9 / 11)
