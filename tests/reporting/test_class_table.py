"""Accuracy of each class in table.json, on the card and in the report, and classes that have no test image."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLASSES, ODD_CLASSES, base_recipe, fill, refused, write

import train
from meco_timm import load_recipe, plan
from meco_timm.reporting.results import class_table, read_results
from meco_timm.reporting.run_page import report_page


def test_it_is_in_the_table_the_card_and_the_report(ended):
    rows = json.loads((ended / "table.json").read_text())["rows"]
    results = read_results(ended)
    p = results.predictions
    assert p is not None
    for row in rows:
        right = p.right(row["name"])
        by_class = {name: 100 * right[p.label == i].mean() for i, name in enumerate(ODD_CLASSES)}
        assert row["per_class"] == pytest.approx(by_class)
        assert row["balanced"] == pytest.approx(np.mean(list(by_class.values())))
    head, *lines = class_table(results, 30)
    assert head == ["class", "test images", "student %", "student alone %", "true ensemble %"]
    assert [line[:2] for line in lines] == [[name, "6"] for name in ODD_CLASSES]
    card = (ended / "student/README.md").read_text()
    assert "| class | test images | student % | student alone % | true ensemble % |" in card
    assert len(re.findall(r"^\| .*\| 6 \| \d+\.\d \| \d+\.\d \| \d+\.\d \|$", card, re.MULTILINE)) == 3
    assert "balanced %" in card
    page = report_page(results)
    assert "Accuracy of each class on the test split" in page
    assert "balanced %" in page


def test_of_many_classes_the_worst(ended):
    results = read_results(ended)
    worst = {ODD_CLASSES[0]: 90.0, ODD_CLASSES[1]: None, ODD_CLASSES[2]: 10.0}
    rows = [row._replace(per_class=worst) for row in results.rows]
    lines = class_table(results._replace(rows=rows), 2)[1:]
    assert [line[0] for line in lines] == [ODD_CLASSES[2], ODD_CLASSES[0]]
    assert [line[2] for line in class_table(results._replace(rows=rows), 3)[1:]] == ["90.0", "–", "10.0"]


def test_the_plan_names_classes_without_a_test_image(tmp_path: Path, capsys):
    fill(tmp_path / "data/train", dict.fromkeys(CLASSES, 8))
    fill(tmp_path / "data/test", {"circle": 4, "dash": 4}, first_seed=500)
    recipe: dict[str, Any] = base_recipe(tmp_path / "data", tmp_path)
    assert train.main([write(recipe, tmp_path), "--plan"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "warning: 1 class(es) have no test image, so their accuracy is not measured: cross" in text


def test_the_plan_warns_of_two_remedies_at_once(recipe, tmp_path, capsys):
    path = write(recipe, tmp_path)
    both = ["data.sampling=balanced", "loop.class_weights=balanced"]
    assert train.main([path, *both, "--plan"]) == 0
    assert "both balanced, so rare classes count twice" in " ".join(capsys.readouterr().out.split())
    for one in both:
        assert "count twice" not in plan(load_recipe(path, [one]))
    assert "class_weights: 'equal' is not a value of this key: none, balanced" in refused(
        capsys, path, "loop.class_weights=equal", "--plan"
    )
