"""Pretrained teachers that are trained on: from their own weights, with a head for the data set, as their loop says."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import write
from helpers.checkpoints import local_dir, network

from meco_timm import load_recipe, plan
from meco_timm.data.loading import load_data
from meco_timm.networks import LOGITS_ONLY, factory
from meco_timm.networks.streams import student_stream
from meco_timm.pipeline import assemble_zoo
from meco_timm.recipe.recipe import Recipe
from meco_timm.training import loop

HEAD = ("fc.weight", "fc.bias")


@pytest.fixture
def five(recipe: dict[str, Any], tmp_path: Path) -> Any:
    """A network of five other classes, to be fine-tuned in the recipe's zoo beside one from random weights."""
    model = network("test_resnet", 5)
    name = local_dir(tmp_path / "five", model, list("abcde"))
    recipe["teachers"] = [{"train": name, "loop": {"lr": 1e-4, "layer_decay": 0.5}}, {"train": "test_vit"}]
    recipe["loop"] |= {"steps": 2, "schedule": "none", "weight_decay": 0.0}
    return model


def test_it_starts_from_its_weights_with_a_new_head_and_its_own_rates(recipe, five, accelerator, monkeypatch):
    started: dict[str, tuple[dict[str, torch.Tensor], list[float]]] = {}
    run = loop.Training.run

    def watched(self: loop.Training) -> Any:
        state = {name: tensor.clone() for name, tensor in self.state.student.model.state_dict().items()}
        started[self.job.title] = state, [group["lr"] for group in self.state.optimizer.param_groups]
        return run(self)

    monkeypatch.setattr(loop.Training, "run", watched)
    settings = Recipe.model_validate(recipe)
    zoo = assemble_zoo(settings, load_data(settings.data, settings.seed), accelerator)
    assert list(zoo.streams) == ["five", "test_vit"]

    state, rates = started["teacher five"]
    theirs = five.state_dict()
    assert state.keys() == theirs.keys()
    assert [name for name in state if not torch.equal(state[name], theirs[name])] == list(HEAD)
    assert state["fc.weight"].shape == (3, theirs["fc.weight"].shape[1])
    assert max(rates) == 1e-4
    assert sorted({rate / 1e-4 for rate in rates}) == [0.5**n for n in range(5, -1, -1)]  # stem, four stages, head
    assert set(started["teacher test_vit"][1]) == {2e-3}

    (made,) = Path(settings.zoo.folder).glob("local-dir_*/made_by.json")
    assert json.loads(made.read_text())["starts_from"]
    ended = timm.create_model(f"local-dir:{made.parent}", pretrained=True).state_dict()
    moved = {name: (ended[name] - state[name]).abs().max() for name in ("conv1.0.weight", *HEAD)}
    assert 0 < moved["conv1.0.weight"] < moved["fc.weight"] < 1e-3  # two steps of so small a rate, less in front


def test_other_weights_under_the_same_name_are_fine_tuned_anew(recipe, five, accelerator, tmp_path):
    settings = Recipe.model_validate(recipe)
    data = load_data(settings.data, settings.seed)
    for seed in (0, 1):
        local_dir(tmp_path / "five", network("test_resnet", 5, seed=seed), list("abcde"))
        assemble_zoo(settings, data, accelerator)
    assert len(list(Path(settings.zoo.folder).glob("local-dir_*"))) == 2


def test_a_tag_is_asked_for_with_its_weights(monkeypatch):
    asked = []
    made = timm.create_model

    def watched(name: str, pretrained: bool = False, **options: Any) -> Any:
        asked.append((name, pretrained, options["num_classes"]))
        return made(name, pretrained=False, **options)

    monkeypatch.setattr(factory.timm, "create_model", watched)
    teacher = Recipe.model_validate(
        {"data": {"source": "x"}, "teachers": [{"train": "test_resnet.r160_in1k"}], "student": "test_vit"}
    ).teachers[0]
    student_stream(teacher, LOGITS_ONLY, 3, 32, role="teachers.0")
    assert asked[-1] == ("test_resnet.r160_in1k", True, 3)


def test_the_plan_tells_it_with_licence_and_warning(recipe, five, tmp_path):
    recipe["teachers"] += [{"train": "resnet18.fb_ssl_yfcc100m_ft_in1k"}, {"train": "test_vit.r160_in1k"}]
    recipe["student"] = "test_efficientnet.r160_in1k"
    text = plan(load_recipe(write(recipe, tmp_path)))
    # a wide table comes in parts, each with the name
    cells = [line for line in text.splitlines() if line.startswith("test_vit.r160_in1k ")]
    assert any("its own, new" in line for line in cells)
    assert any(line.endswith("apache-2.0") for line in cells)
    words = " ".join(text.split())
    assert words.count("fine-tuned") == 3
    assert "the weights of resnet18.fb_ssl_yfcc100m_ft_in1k are cc-by-nc-4.0" in words
    assert "4 teacher(s) and the student alone are trained on the labels first" in words
