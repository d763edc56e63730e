"""Temperatures and weights of teachers: fitted, kept with the run, applied wherever logits are drawn or averaged."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import write
from torch import Tensor

import train
from meco_timm import UserError, load_recipe, plan
from meco_timm.common import draw
from meco_timm.data.loading import DataSource, load_data
from meco_timm.networks import Combination
from meco_timm.pipeline import assemble_zoo
from meco_timm.recipe.recipe import Recipe
from meco_timm.reporting.results import drawn_teachers, read_results
from meco_timm.selection import combining
from meco_timm.selection.combining import combine_teachers
from meco_timm.zoo.zoo import Zoo

Settings = dict[str, Any]
COMBINED = Combination({"test_resnet": 2.0, "test_efficientnet": 0.5}, {"test_resnet": 3.0, "test_efficientnet": 1.0})


@pytest.fixture
def trained(ended: Path, tmp_path: Path) -> Settings:
    """The recipe of a run whose two teachers are in the zoo."""
    return yaml.safe_load((ended.parent / "recipe.yaml").read_text()) | {"run": str(tmp_path / "run")}


def opened(settings: Settings, accelerator: Accelerator) -> tuple[Zoo, Recipe, DataSource]:
    recipe = Recipe.model_validate(settings)
    data = load_data(recipe.data, recipe.seed, recipe.store.views)
    return assemble_zoo(recipe, data, accelerator), recipe, data


def with_zoo(settings: Settings, **keys: Any) -> Settings:
    return settings | {"zoo": settings["zoo"] | keys}


# Drawing


def test_teachers_are_drawn_in_proportion_to_their_weights():
    """Pearson's χ² of 6,000 draws stays under its 99.9 % quantile for 2 degrees of freedom; weight 0 is never drawn."""
    drawn = Counter(draw(0, step, 4, weights=[1, 0, 3, 2]) for step in range(6000))
    assert set(drawn) == {0, 2, 3}
    assert sum((drawn[i] - n) ** 2 / n for i, n in ((0, 1000), (2, 3000), (3, 2000))) < 13.8
    assert {draw(0, step, 2, weights=[0.0, 1e-9]) for step in range(100)} == {1}


@pytest.mark.parametrize("sampling", ["random", "average"])
@torch.no_grad()
def test_logits_are_divided_and_weighted_as_combined(trained, accelerator, sampling):
    teachers, recipe, data = opened(with_zoo(trained, sampling=sampling), accelerator)
    batch = next(iter(data.in_order(data.test, 9)))
    z = {name: stream(batch.image).logits / COMBINED.temperatures[name] for name, stream in teachers.streams.items()}
    teachers.combine(COMBINED)
    for step in range(6):
        found = teachers.targets(batch, batch.image, step).logits
        torch.testing.assert_close(found, expected(sampling, z, step, recipe.losses.temperature))


def expected(sampling: str, z: dict[str, Tensor], step: int, temperature: float) -> Tensor:
    first, second = z.values()
    if sampling == "random":
        return list(z.values())[draw(0, step, 2, weights=[3, 1])]
    mean = (3 * (first / temperature).softmax(1) + (second / temperature).softmax(1)) / 4
    centred = temperature * mean.log()
    return centred


def test_a_teacher_of_weight_0_is_not_run(trained, accelerator, monkeypatch):
    teachers, _, data = opened(with_zoo(trained, sampling="average"), accelerator)
    teachers.combine(Combination(dict.fromkeys(teachers.names, 1.0), {"test_resnet": 0.0, "test_efficientnet": 2.0}))
    live, seen = Zoo.live, set()
    monkeypatch.setattr(Zoo, "live", lambda self, name, image: seen.add(name) or live(self, name, image))
    batch = next(iter(data.in_order(data.test, 9)))
    found = teachers.targets(batch, batch.image, 0).logits
    assert seen == {"test_efficientnet"}
    torch.testing.assert_close(found.softmax(1), live(teachers, "test_efficientnet", batch.image).logits.softmax(1))


@torch.no_grad()
def test_a_store_keeps_logits_as_the_networks_gave_them(trained, accelerator, tmp_path):
    from meco_timm.zoo.precompute import use_store

    settings = trained | {"store": {"folder": str(tmp_path / "store"), "views": 1, "precision": "float32"}}
    teachers, recipe, data = opened(with_zoo(settings, sampling="average"), accelerator)
    use_store(teachers, recipe.store, recipe.data, data, 5, accelerator)
    rows = torch.from_numpy(data.train.rows[:8]).long()
    batch = next(data.chosen(data.train, torch.zeros(8).long(), rows, 8, 5))
    plain = teachers.targets(batch, batch.image, 0)
    teachers.combine(COMBINED)
    live = {name: stream(batch.image).logits / COMBINED.temperatures[name] for name, stream in teachers.streams.items()}
    found = teachers.targets(batch, batch.image, 0).logits
    torch.testing.assert_close(found, expected("average", live, 0, recipe.losses.temperature))
    teachers.combine(Combination.equal(teachers.names))
    torch.testing.assert_close(teachers.targets(batch, batch.image, 0).logits, plain.logits, rtol=0, atol=0)


# Fitting


def test_what_was_fitted_is_kept_with_the_run(trained, accelerator, tmp_path, monkeypatch):
    teachers, recipe, data = opened(with_zoo(trained, calibrate=True, weights="validation"), accelerator)
    first = combine_teachers(teachers, data, recipe.data, tmp_path, accelerator)
    assert first.temperatures.keys() == first.weights.keys() == {"test_resnet", "test_efficientnet"}
    assert all(temperature != 1 for temperature in first.temperatures.values())
    assert 1 <= sum(first.weights.values()) <= 2
    assert teachers.combination == first
    monkeypatch.setattr(combining, "measure_teachers", lambda *_: pytest.fail("computed again"))
    assert combine_teachers(teachers, data, recipe.data, tmp_path, accelerator) == first
    teachers.fingerprints["test_resnet"] = "of other weights"
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        combine_teachers(teachers, data, recipe.data, tmp_path, accelerator)


def test_a_run_without_these_keys_combines_equally(trained, accelerator, tmp_path):
    teachers, recipe, data = opened(trained, accelerator)
    assert combine_teachers(teachers, data, recipe.data, tmp_path, accelerator) == Combination.equal(teachers.names)
    teachers.settings = recipe.zoo.model_copy(update={"weights": [2.0, 1.0]})
    found = combine_teachers(teachers, data, recipe.data, tmp_path, accelerator)
    assert found.weights == {"test_resnet": 2.0, "test_efficientnet": 1.0}


def test_harm_and_duplicates_are_warned_of(trained):
    generator = np.random.default_rng(0)
    label = torch.from_numpy(generator.integers(0, 3, 600))
    good, other, blind = (generator.standard_normal((600, 3)) + skill * np.eye(3)[label] for skill in (2, 2, 0))
    logits = {"a": good, "b": other, "c": 8 * blind, "d": good.copy()}
    digests, settings = {"a": "1", "b": "2", "c": "3", "d": "4"}, Recipe.model_validate(trained).zoo
    zoo: Any = SimpleNamespace(names=list("abcd"), fingerprints=digests, settings=settings)
    measured = combining._summary(zoo, logits, label)
    (duplicate,) = measured["notes"]
    assert measured["harmful"].keys() == {"c"}
    assert measured["harmful"]["c"].startswith("makes the true ensemble worse: top-1 by −")
    assert "points, NLL by +" in measured["harmful"]["c"]
    assert duplicate.startswith("teachers a and d have the same prediction on 100.00 % of the images")
    zoo.fingerprints["d"] = "1"
    assert "have the same weights" in combining._summary(zoo, logits, label)["notes"][0]
    alone: Any = SimpleNamespace(names=["a"], fingerprints={"a": "1"}, settings=settings)
    assert combining._summary(alone, {"a": good}, label)["harmful"] == {}
    few = {name: z[:50] for name, z in logits.items()}
    measured = combining._summary(zoo, few, label[:50])
    assert not measured["harmful"]
    assert not measured["notes"]


# A whole run


def test_a_run_shows_temperatures_and_weights_and_its_ensemble_is_theirs(trained, tmp_path, capsys):
    path = write(with_zoo(trained, calibrate=True, weights=[2.0, 1.0], sampling="random"), tmp_path)
    assert train.main([path]) == 0
    shown = capsys.readouterr()
    assert "temperatures of the teachers, fitted on 9 validation images: test_resnet" in shown.err
    assert (
        "zoo.calibrate: the logits of each teacher are divided by a temperature"
        in (tmp_path / "run/plan.txt").read_text()
    )
    (head,) = [line for line in shown.out.splitlines() if "top-1 %" in line]
    assert head.split().index("T") + 1 == head.split().index("weight")
    results = read_results(tmp_path / "run")
    kept = json.loads((tmp_path / "run/combination.json").read_text())
    rows = {row.name: row for row in results.rows}
    assert rows["test_resnet"].temperature == kept["temperatures"]["test_resnet"]
    assert (rows["test_resnet"].weight, rows["test_efficientnet"].weight) == (2, 1)
    assert rows["student"].temperature is rows["true ensemble"].weight is None
    p = results.predictions
    assert p is not None
    first, second, ensemble = (
        p.of_label[p.networks.index(n)] for n in ("test_resnet", "test_efficientnet", "true ensemble")
    )
    np.testing.assert_allclose(ensemble, (2 * first + second) / 3, rtol=1e-4)
    assert drawn_teachers(results).tolist() == [draw(0, step, 2, weights=[2.0, 1.0]) for step in range(30)]


# Recipes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"weights": [1.0]}, "zoo.weights has 1 numbers for 2 teachers"),
        ({"weights": [0.0, 0.0]}, "zoo.weights are all 0"),
        ({"weights": "banana"}, "zoo.weights: 'banana' is not a value of this key: uniform, validation"),
        ({"weights": [1.0, -1.0]}, "zoo.weights.1: input should be greater than or equal to 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(trained, tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        load_recipe(write(with_zoo(trained, **keys), tmp_path))


def test_what_cannot_be_fitted_is_refused_by_the_plan(trained, tmp_path):
    without = trained | {"data": trained["data"] | {"validation": 0.0}}
    for keys in ({"calibrate": True}, {"weights": "validation"}):
        with pytest.raises(UserError, match=f"zoo.{next(iter(keys))}: there is no labelled validation image"):
            plan(load_recipe(write(with_zoo(without, **keys), tmp_path)))
    (place,) = (Path(trained["zoo"]["folder"])).glob("test_resnet-*")
    blocks = [{"model": f"local-dir:{place}", "gives": "blocks"}, {"train": "test_efficientnet"}]
    mixed = trained | {"teachers": blocks, "discriminators": {"adversary": "none"}, "losses": {"blocks": 0.3}}
    with pytest.raises(UserError, match="gives blocks only"):
        plan(load_recipe(write(with_zoo(mixed, weights="validation"), tmp_path)))
    with pytest.raises(UserError, match="nothing would train the student's head"):
        plan(load_recipe(write(with_zoo(mixed, weights=[1.0, 0.0]), tmp_path)))
