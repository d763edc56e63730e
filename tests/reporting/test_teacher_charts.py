"""What each teacher adds, as the report shows it: from the run folder only, of new runs and older ones."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.predictions import some_predictions

from meco_timm.evaluation.predictions import Predictions, load_predictions, save_predictions
from meco_timm.reporting.compare_page import compare_page
from meco_timm.reporting.results import Results, read_results
from meco_timm.reporting.run_page import report_page
from meco_timm.reporting.teacher_charts import added_by_teachers, teacher_charts
from meco_timm.selection import read_measured

TITLES = ["Contribution of each teacher", "Disagreement", "Ensemble size and cost", "Agreement of the student"]


@pytest.fixture(scope="module")
def results(ended: Path) -> Results:
    return read_results(ended)


def predictions_of(results: Results) -> Predictions:
    assert results.predictions is not None
    return results.predictions


def test_a_run_keeps_the_ensembles_that_its_report_needs(results, ended, tmp_path):
    p = predictions_of(results)
    assert set(p.ensembles) == {"without/test_resnet", "without/test_efficientnet", "size/1", "size/2"}
    measured = read_measured(ended)
    assert measured is not None
    assert p.counts.tolist() == measured["choices"]
    save_predictions(p, tmp_path / "file")
    found = load_predictions(tmp_path / "file")
    assert found is not None
    assert found.ensembles.keys() == p.ensembles.keys()
    assert all(np.array_equal(found.ensembles[name], p.ensembles[name]) for name in p.ensembles)
    assert np.array_equal(found.counts, p.counts)


def test_without_one_of_two_the_ensemble_is_the_other(results):
    p = predictions_of(results)
    added = added_by_teachers(results)
    for name, other in (("test_resnet", "test_efficientnet"), ("test_efficientnet", "test_resnet")):
        assert np.array_equal(p.ensembles[f"without/{name}"], p.predicted[p.networks.index(other)])
        rows = results.row("true ensemble"), results.row(other)
        assert added[name].top1.mean == pytest.approx(rows[0].top1 - rows[1].top1)
        assert added[name].nll.mean == pytest.approx(rows[0].nll - rows[1].nll, rel=1e-3, abs=1e-5)
        assert added[name].nll.low <= added[name].nll.mean <= added[name].nll.high


def test_the_section_is_there_with_text_for_each_figure(results):
    charts = teacher_charts(results)
    assert [chart.title for chart in charts] == TITLES
    for chart in charts:
        assert all(name in chart.text for name in results.teachers) or chart.title == TITLES[2]
    page = report_page(results)
    assert re.search(r"<h2[^>]*>What each teacher adds</h2>", page)
    assert "Best ensemble" not in page or TITLES[2] in page


def test_one_teacher_has_no_section(results):
    p = some_predictions()
    rows = [row._replace(name=name) for row, name in zip(results.rows, p.networks, strict=False)]
    alone = results._replace(predictions=p, rows=rows)
    assert teacher_charts(alone) == []


def test_runs_are_compared_side_by_side(results):
    page = compare_page({"one": results, "<two>": results})
    assert "<h2>What each teacher adds</h2>" in page
    assert page.count("True ensemble with each teacher minus without it") == 2
    assert "<h3>&lt;two&gt;</h3>" in page
