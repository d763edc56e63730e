"""What is kept of the test split, and what is computed from it: against definitions written out."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.predictions import some_predictions

from meco_timm import UserError
from meco_timm.data.loading import load_data
from meco_timm.evaluation.agreement import block_agreement, cka
from meco_timm.evaluation.predictions import Predictions, choose_examples, load_predictions, save_predictions
from meco_timm.networks.streams import student_stream
from meco_timm.recipe.networks import Network
from meco_timm.recipe.recipe import Alignment
from meco_timm.recipe.sections import Data
from meco_timm.reporting.figures import Confidence, calibration, class_gains, confusions
from meco_timm.reporting.results import difference, interval, read_results


def same(a: Predictions, b: Predictions) -> bool:
    arrays = all(np.array_equal(x, y) for x, y in zip(a, b, strict=True) if isinstance(x, np.ndarray))
    return arrays and (a.classes, a.networks) == (b.classes, b.networks) and a.agreement.keys() == b.agreement.keys()


def test_what_is_kept_comes_back(tmp_path):
    kept = some_predictions(names=["a", "<b>", "ü", "d"])
    save_predictions(kept, tmp_path / "file")
    found = load_predictions(tmp_path / "file")
    assert found is not None
    assert same(kept, found)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_file_is_told_and_none_is_none(tmp_path):
    assert load_predictions(tmp_path / "file") is None
    (tmp_path / "file").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="is damaged"):
        load_predictions(tmp_path / "file")


def test_a_run_keeps_what_its_table_says(ended):
    results = read_results(ended)
    p = results.predictions
    assert p is not None
    assert p.networks == [row.name for row in results.rows]
    assert len(p.label) == 18
    for i, row in enumerate(results.rows):
        assert 100 * p.right(row.name).mean() == pytest.approx(row.top1)
        assert -np.log(p.of_label[i].astype(float)).mean() == pytest.approx(row.nll, rel=1e-4, abs=1e-6)
        bins: dict[int, list[float]] = {}
        for confidence, right in zip(p.confidence[i], p.right(row.name), strict=True):
            bins.setdefault(min(int(confidence * 15), 14), []).append(right - confidence)
        assert 100 * sum(abs(sum(gaps)) for gaps in bins.values()) / 18 == pytest.approx(row.ece, abs=1e-4)
    assert p.probabilities.shape == (6, 5, 3)
    np.testing.assert_allclose(p.probabilities.sum(2), 1, rtol=1e-5)
    np.testing.assert_array_equal(p.probabilities.argmax(2), p.predicted[:, p.examples].T)
    assert p.images.shape == (6, 3, 32, 32)


def test_the_ensemble_shown_is_the_mean_of_its_members(ended):
    p = read_results(ended).predictions
    assert p is not None
    members = p.probabilities[:, [p.networks.index(name) for name in ("test_resnet", "test_efficientnet")]]
    np.testing.assert_allclose(p.probabilities[:, p.networks.index("true ensemble")], members.mean(1), atol=1e-5)


def test_shown_are_the_least_probable_labels_one_per_class_first():
    of_label = np.array([0.9, 0.1, 0.2, 0.05, 0.3, 0.8])
    label = np.array([0, 0, 0, 0, 1, 2])
    assert choose_examples(of_label, label, 2).tolist() == [3, 4]
    assert choose_examples(of_label, label, 5).tolist() == [3, 4, 5, 1, 2]
    assert choose_examples(of_label, label, 99).tolist() == [3, 4, 5, 1, 2, 0]


def test_difference_is_that_of_pairs_with_its_interval():
    right, other = np.array([True] * 8 + [False] * 2), np.array([True] * 5 + [False] * 5)
    middle, half = difference(right, other)
    gaps = [0] * 5 + [1] * 3 + [0] * 2
    assert middle == pytest.approx(30)
    assert half == pytest.approx(196 * np.std(gaps) / 10**0.5)
    assert interval(right, other) == "95 % interval +1.6 to +58.4"
    assert interval(right[::-1], right).endswith(", not significant")
    assert interval(other[::-1], right).startswith("95 % interval −")


def test_calibration_gives_mean_confidence_and_accuracy_of_bins_with_images_enough():
    confidence = np.array([0.51, 0.53, 0.55, 0.57, 0.59, 0.95, 1.0, 1.0, 1.0, 1.0, 0.15])
    right = np.array([1, 0, 1, 0, 0, 1, 1, 1, 1, 0, 1], dtype=bool)
    mean, accuracy = calibration(Confidence(confidence, right, 0.0))
    np.testing.assert_allclose(mean, [0.55, 0.99])
    np.testing.assert_allclose(accuracy, [0.4, 0.8])


def test_gains_and_confusions_are_counted():
    p = some_predictions(200)
    gain, images = class_gains(p, "student", "student alone")
    for k in range(4):
        of_class = p.label == k
        expected = 100 * (p.right("student")[of_class].mean() - p.right("student alone")[of_class].mean())
        assert gain[k] == pytest.approx(expected)
        assert images[k] == of_class.sum()
    found = confusions(p, "student")
    assert found.total() == (~p.right("student")).sum()
    for (label, answer), count in found.items():
        assert count == ((p.label == label) & (p.predicted[2] == answer)).sum()
        assert label != answer


# Where blocks agree


def features(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_cka_is_one_for_rotated_and_scaled_and_near_nothing_for_unrelated():
    x = features(300, 20, 0)
    rotation = torch.linalg.qr(features(20, 20, 1))[0]
    assert cka(x, x) == pytest.approx(1)
    assert cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert abs(cka(x, features(300, 400, 2))) < 0.1  # without bias, although there are more features than images
    assert cka(x, features(300, 30, 3)) == cka(features(300, 30, 3), x)


def test_cka_is_the_definition_written_out():
    n = 12
    x, y = features(n, 5, 0).double(), features(n, 3, 1).double()

    def hsic(a: torch.Tensor, b: torch.Tensor) -> float:
        k, m = a @ a.T, b @ b.T
        k.fill_diagonal_(0)
        m.fill_diagonal_(0)
        trace = sum(k[i, j] * m[j, i] for i in range(n) for j in range(n))
        sums = k.sum() * m.sum() / ((n - 1) * (n - 2))
        rows = sum(k[i, j] * m[j, q] for i in range(n) for j in range(n) for q in range(n))
        return float(trace + sums - 2 / (n - 2) * rows) / (n * (n - 3))

    assert cka(x, y) == pytest.approx(hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5)


def test_cka_of_features_that_do_not_vary_is_not_a_number():
    assert np.isnan(cka(torch.ones(10, 3), features(10, 3, 0)))


@pytest.fixture(scope="module")
def data(shapes):
    return load_data(Data(source=str(shapes), image_size=32, crop_pct=1.0, workers=0), 0)


def stream(name: str, blocks: int = 2, seed: int = 0, gives: str = "all"):
    alignment = Alignment(blocks=blocks, length=32)
    return student_stream(Network(model=name), alignment, 3, 32, seed=seed, gives=gives).eval()


def test_each_block_of_both_students_with_each_of_every_teacher_that_has_some(data):
    student, alone = stream("test_resnet"), stream("test_resnet", blocks=0)
    teachers = {"same": student, "other": stream("test_vit"), "logits only": stream("test_vit", gives="logits")}
    found = block_agreement(student, alone, teachers, data, Accelerator())
    assert found.keys() == {f"{who}/{teacher}" for who in ("student", "student alone") for teacher in ("same", "other")}
    assert all(table.shape == (2, 2) for table in found.values())
    np.testing.assert_allclose(np.diag(found["student/same"]), 1, rtol=1e-5)
    np.testing.assert_allclose(found["student alone/same"], found["student/same"], rtol=1e-4)  # the same weights


def test_nothing_where_no_blocks_are_compared(data):
    without = stream("test_resnet", blocks=0)
    assert block_agreement(without, without, {"a": stream("test_vit")}, data, Accelerator()) == {}
    assert block_agreement(stream("test_resnet"), without, {"a": without}, data, Accelerator()) == {}


def test_images_are_taken_from_the_whole_split(data):
    assert data.test.subsample(4).rows.tolist() == [0, 3, 7, 11]
    assert data.test.subsample(100).rows.tolist() == list(range(12))
