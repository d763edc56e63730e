"""Confusion matrices and the gallery of mistakes."""

import numpy as np
import pytest
from helpers.predictions import some_predictions

from meco_timm.evaluation.predictions import choose_mistakes
from meco_timm.reporting import read_results, report
from meco_timm.reporting.drawing import chart_style
from meco_timm.reporting.mistakes import confused_classes, confusion_matrix, confusion_matrix_charts, mistakes


def test_the_matrix_counts_images_of_each_label_in_each_prediction():
    p = some_predictions()
    found = confusion_matrix(p, "student")
    longhand = np.zeros((4, 4), int)
    for label, predicted in zip(p.label, p.predicted_by("student"), strict=True):
        longhand[label, predicted] += 1
    assert (found == longhand).all()
    assert found.sum() == len(p.label)
    assert found.trace() == p.right("student").sum()


def test_of_many_classes_the_most_confused_are_drawn():
    matrix = np.diag(np.full(50, 9))
    matrix[7, 30] = 5
    matrix[41, 2] = 4
    assert confused_classes([matrix], 4).tolist() == [2, 7, 30, 41]
    assert confused_classes([matrix], 50).tolist() == list(range(50))
    p = some_predictions(images=300, classes=60)
    with chart_style():
        charts = confusion_matrix_charts(p)
        assert all("20 are left out" in chart.caption for chart in charts)
        assert all(chart.figure.axes[0].images[0].get_array().shape == (40, 40) for chart in charts)


def test_the_change_is_that_from_the_student_alone():
    p = some_predictions()
    with chart_style():
        _, change = confusion_matrix_charts(p)
        drawn = change.figure.axes[0].images[0].get_array()
    assert (drawn == confusion_matrix(p, "student") - confusion_matrix(p, "student alone")).all()
    wrong = [int((~p.right(name)).sum()) for name in ("student alone", "student")]
    assert f"student alone {wrong[0]} images in a wrong class, student {wrong[1]}" in change.text


def test_the_surest_mistakes_are_chosen():
    predicted, label = np.array([0, 1, 1, 0, 2]), np.array([0, 0, 2, 1, 2])
    confidence = np.array([0.99, 0.6, 0.9, 0.7, 0.8])
    assert choose_mistakes(predicted, confidence, label).tolist() == [2, 3, 1]
    assert choose_mistakes(predicted, confidence, label, 1).tolist() == [2]
    assert not len(choose_mistakes(label, confidence, label))


def test_the_gallery_has_what_every_network_says():
    p = some_predictions()
    rows = np.flatnonzero(~p.right("student"))[:2].astype(np.int32)
    found = mistakes(p._replace(mistakes=rows, mistake_images=p.images[:2]))
    assert [one["label"] for one in found] == [p.classes[p.label[row]] for row in rows]
    for one, row in zip(found, rows, strict=True):
        assert [name for name, *_ in one["said"]] == ["student", "teacher", "student alone"]
        assert one["said"][0][1:] == (p.classes[p.predicted_by("student")[row]], f"{100 * p.confidence[2, row]:.0f} %")
        assert one["said"][0][1] != one["label"]
        assert one["image"].startswith("data:image/png")


def test_the_page_has_them_and_the_curves_of_all_networks(ended):
    results = read_results(ended)
    page = report(ended).read_text()
    p = results.predictions
    assert (
        p.mistakes.tolist()
        == choose_mistakes(p.predicted_by("student"), p.confidence[p.networks.index("student")], p.label).tolist()
    )
    assert page.count("<li><img") == len(p.mistakes)
    assert "Confusion matrix" in page
    assert set(results.about["curves"]) == {"test_resnet", "test_efficientnet", "student alone"}
    assert "student alone from " in page
    assert 'href="#run"' in page
    assert len(p.mistakes) == pytest.approx(min(12, (~p.right("student")).sum()))
