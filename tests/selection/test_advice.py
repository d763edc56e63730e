"""What a run says of its teachers before its student is trained, and of its student at the end."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, base_recipe, image_folder
from helpers.checkpoints import local_dir
from helpers.checkpoints import network as network_of_timm

from meco_timm import UserError, distill
from meco_timm.networks import Combination
from meco_timm.recipe import Losses, Recipe, load_recipe
from meco_timm.selection.advice import Advice, Trainings, advise, explain_student, judge_curve

N, K = 400, 5
FLAT = [(step, 90.0) for step in (100, 200, 300, 400)]
RISING = [(100, 40.0), (200, 60.0), (300, 75.0), (400, 84.0)]
FALLING = [(100, 90.0), (200, 88.0), (300, 84.0), (400, 80.0)]
LABEL = torch.arange(N) % K


def network(right: float, seed: int = 0, sure: float = 8.0) -> np.ndarray:
    """Logits of a network that is right on just this share of the images, and sure of each answer."""
    generator = np.random.default_rng(seed)
    answer = np.where(generator.permutation(N) < right * N, LABEL, (LABEL + 1 + generator.integers(K - 1, size=N)) % K)
    return sure * np.eye(K)[answer]


def advice(
    alone: float,
    members: dict[str, float],
    curves: Any = None,
    harmful: Any = None,
    images: int = N,
    weights: Any = None,
    miscalibrated: tuple[str, ...] = (),
    **losses: float,
) -> Advice:
    logits = {name: network(share, seed)[:images] for seed, (name, share) in enumerate(members.items(), 1)}
    recipe = Recipe.model_validate(
        {
            "data": {"source": "x"},
            "teachers": [{"train": name} for name in members],
            "student": "s",
            "zoo": {"weights": weights or "uniform"},
            "loop": {"steps": 500},
            "losses": losses,
        }
    )
    teachers = dict(zip(members, recipe.teachers, strict=True))
    by = Combination.equal(members)
    own, label = network(alone)[:images], LABEL[:images]
    trainings = Trainings(teachers, curves or {}, 1000, recipe.zoo, recipe.losses)
    return advise(logits, own, label, by, harmful or {}, miscalibrated, trainings)


def test_good_teachers_get_no_sentence():
    found = advice(0.7, {"a": 0.9, "b": 0.9, "c": 0.9}, {"a": FLAT})
    assert found.sentences == []
    assert found.overrides == ""
    assert found.better is True
    assert "on 400 validation images the student alone has a top-1 of 70.00 %, the true" in found.state


@pytest.mark.parametrize(("steps", "top1", "brief"), [(120, 60.0, True), (120, 95.0, False), (800, 60.0, False)])
def test_a_brief_training_is_named_though_its_curve_is_flat(steps, top1, brief):
    """The rate has fallen to 0 at its end."""
    curve = [(steps * i // 4, top1) for i in range(1, 5)]
    found = advice(0.5, {"a": 0.6, "b": 0.6}, {"a": curve})
    assert found.sentences == (["teacher a: its training took 120 step(s) only"] if brief else [])
    assert found.overrides == ("teachers.0.loop.steps=1500" if brief else "")


@pytest.mark.parametrize(
    ("curve", "note", "overrides"),
    [
        (FLAT, "", "'teachers=[{train: a}, {train: b}]'"),
        (RISING, "; its training still improved at its end, by 9.0 points in its last", "teachers.2.loop.steps=1000"),
        (FALLING, "; its training was best after 100 of 400 steps, and 10.0 points w", "teachers.2.loop.steps=200"),
        ([(3, 20.0)], "; its training took 3 step(s), that of the student alone 1000", "teachers.2.loop.steps=1000"),
    ],
    ids=["flat", "rising", "falling", "short"],
)
def test_a_teacher_worse_than_the_student_alone_is_named_with_a_reason(curve, note, overrides):
    curve = [(2 * step, top1) for step, top1 in curve] if curve is FLAT else curve  # as long as the student's
    found = advice(0.7, {"a": 0.9, "b": 0.9, "weak": 0.4}, {"weak": curve})
    (sentence,) = found.sentences
    assert sentence.startswith("teacher weak is worse than the student alone: −")
    assert f"of top-1{note}" in sentence
    assert found.overrides == overrides


def test_an_ensemble_that_is_no_better_is_said_with_its_reason():
    found = advice(0.8, {"a": 0.81, "b": 0.3, "c": 0.3}, {"b": [(10, 30.0)]}, {"c": "makes the true ensemble worse"})
    weak_b, weak_c, harm, whole = found.sentences
    assert weak_b.startswith("teacher b is worse")
    assert weak_c.startswith("teacher c is worse")
    assert harm == "teacher c makes the true ensemble worse"
    assert whole.startswith("the true ensemble is not better than the student alone (−")
    assert whole.endswith(": c makes it worse")
    assert found.overrides == "'teachers=[{train: a}, {train: b, loop: {steps: 1000}}]'"
    assert found.better is False


@pytest.mark.parametrize(
    ("losses", "overrides"), [({}, "losses.labels=0.5"), ({"labels": 1.0}, "zoo.sampling=average")]
)
def test_where_no_teacher_is_to_blame_a_key_is_named(losses, overrides):
    found = advice(0.8, {"a": 0.79}, **losses) if not losses else advice(0.8, {"a": 0.79, "b": 0.79}, **losses)
    assert found.overrides == overrides
    assert "even the best teacher, " in found.sentences[-1]


def test_a_teacher_whose_probabilities_alone_harm_is_calibrated_and_not_dropped():
    found = advice(0.7, {"a": 0.9, "b": 0.9}, harmful={"b": "makes the NLL worse"}, miscalibrated=("b",))
    assert found.sentences == ["teacher b makes the NLL worse"]
    assert found.overrides == "zoo.calibrate=true"


def test_weights_follow_when_a_teacher_is_left_out():
    found = advice(0.7, {"a": 0.9, "weak": 0.2, "b": 0.9}, weights=[1.0, 2.0, 3.0])
    assert found.overrides == "'teachers=[{train: a}, {train: b}]' 'zoo.weights=[1.0, 3.0]'"


def test_few_images_say_little_and_close_ones_cannot_be_told_apart():
    found = advice(0.5, {"a": 0.1}, images=40)
    assert (found.sentences, found.better) == ([], None)
    assert found.state.endswith("; so few images say little")
    found = advice(0.80, {"a": 0.815})
    assert (found.sentences, found.better) == ([], None)
    assert found.state.endswith("400 images cannot tell these apart")


def test_what_is_advised_can_be_copied(tmp_path):
    """Each line is one that a recipe takes."""
    import shlex

    for curves in ({}, {"weak": RISING}):
        found = advice(0.7, {"a": 0.9, "b": 0.9, "weak": 0.3}, curves)
        changed = load_recipe("quickstart", shlex.split(found.overrides))
        assert len(changed.teachers) == (3 if curves else 2)
        assert not curves or changed.teachers[2].loop.steps == 1000


@pytest.mark.parametrize(
    ("curve", "budget"), [(FLAT, 0), (RISING, 800), (FALLING, 200), ([], 0), ([(1, 0.0), (2, 90.0)], 0)]
)
def test_the_length_of_a_training_by_its_curve(curve, budget):
    assert judge_curve(curve, 1000)[1] == budget


@pytest.mark.parametrize(
    ("student", "ensemble", "curve", "words"),
    [
        (0.9, 95.0, FLAT, []),
        (0.6, 95.0, RISING, ["still improved at its end", "loop.steps=800"]),
        (0.6, 70.0, FLAT, ["its teachers are no better than that network", "teachers=[a]"]),
        (0.6, 95.0, FLAT, ["it learned from its teachers' outputs only", "losses.labels=0.5"]),
    ],
)
def test_a_student_worse_than_itself_alone_is_explained(student, ensemble, curve, words):
    top1 = {"a": 90.0, "true ensemble": ensemble, "student alone": 80.0, "student": 100 * student}
    rows = [SimpleNamespace(name=name, top1=value) for name, value in top1.items()]
    logits = {"student": torch.tensor(network(student)), "student alone": torch.tensor(network(0.8))}
    evaluated: Any = SimpleNamespace(rows=rows, logits=logits, label=LABEL)
    zoo = load_recipe("quickstart").zoo
    found = explain_student(evaluated, {"advice": {"overrides": "teachers=[a]"}}, curve, zoo, Losses())
    assert len(found) == (2 if words else 0)
    for text, word in zip(found, words, strict=False):
        assert word in text


@pytest.fixture
def mixed(tmp_path: Path) -> dict[str, Any]:
    """A recipe with a good teacher, one that is trained for a step, and one that is sure of wrong answers."""
    wrong = network_of_timm("test_resnet", 3)
    with torch.no_grad():
        wrong.fc.weight *= 30
    settings = base_recipe(image_folder(tmp_path / "data", train_images=80), tmp_path)
    settings["data"]["validation"] = 0.5
    settings["teachers"] = [
        {"train": "test_efficientnet", "loop": {"steps": 60}},
        {"train": "test_vit", "loop": {"steps": 1}},
        {"model": local_dir(tmp_path / "wrong", wrong, CLASSES, {"input_size": (3, 32, 32)}), "trust": True},
    ]
    settings["student"] = "test_mambaout"
    settings["alignment"] = {"blocks": 0}
    settings["discriminators"] = {"adversary": "none"}
    settings["losses"] = {}
    settings["loop"] |= {"steps": 40, "batch_size": 16, "validations": 1}
    return settings


def test_a_run_says_it_before_the_first_step_of_its_student(mixed, tmp_path, caplog):
    said: list[str] = []

    def first_step(step: int, losses: dict[str, float]) -> bool:
        said.extend(record.getMessage() for record in caplog.records)
        return True

    distill(mixed, on_step=first_step)
    starts = [
        "teacher test_vit is worse than the student alone: −",
        "teacher wrong makes the true ensemble worse: ",
        "the true ensemble is not better than the student alone (−",
    ]
    for start in starts:
        assert any(sentence.startswith(start) for sentence in said), (start, said)
    assert any("its training took 1 step(s), that of the student alone 40" in sentence for sentence in said)
    (line,) = [sentence for sentence in said if sentence.startswith("To try, ")]
    assert "{train: test_efficientnet, loop: {steps: 60}}, {train: test_vit" in line
    assert "wrong" not in line
    recorded = json.loads((tmp_path / "run/combination.json").read_text())["advice"]
    assert recorded["better"] is False
    assert recorded["sentences"][-1].startswith(starts[-1])
    assert "The student is worse than the same network alone" in caplog.text
    with pytest.raises(UserError, match=r"zoo\.require: the true ensemble is not better than the student alone"):
        distill(mixed | {"zoo": mixed["zoo"] | {"require": "better"}, "run": str(tmp_path / "other")})
