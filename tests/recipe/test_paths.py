"""Paths in a recipe: ~ is a home folder in every key, and others do not get to read local folders."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, refused, write

import train
from meco_timm import load_recipe
from meco_timm.common.paths import public
from meco_timm.hub.shared_recipe import public_values

PATHS = {
    "run": "~/run",
    "data.source": "~/shapes",
    "data.unlabelled": "~/more",
    "teachers.0.model": "local-dir:~/net",
    "teachers.0.weights": "~/net.pth",
    "teachers.0.classes": "~/classes.txt",
    "student.model": "local-dir:~/net",
    "student.weights": "~/net.pth",
    "zoo.folder": "~/zoo",
    "store.folder": "~/store",
    "publish.card": "~/card.md",
}


@pytest.fixture
def everywhere(recipe: dict[str, Any], tmp_path: Path) -> str:
    """A recipe with a path in every key that takes one."""
    recipe["teachers"] = [{"model": "x"}, {"model": "y"}]
    recipe |= {"store": {"views": 2}, "publish": {"repo": "a/b"}, "student": {"model": "x"}}
    for key, path in PATHS.items():
        *sections, last = key.split(".")
        place: Any = recipe
        for name in sections:
            place = place[int(name) if name.isdigit() else name]
        place[last] = path
    return write(recipe, tmp_path)


def values(tree: Any) -> list[str]:
    if isinstance(tree, dict | list):
        return [text for inner in (tree.values() if isinstance(tree, dict) else tree) for text in values(inner)]
    return [tree] if isinstance(tree, str) else []


def test_home_is_expanded_in_every_key(everywhere, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = values(load_recipe(everywhere).model_dump())
    assert not [text for text in found if "~" in text]
    assert {text.replace("~", "/home/me") for text in PATHS.values()} <= set(found)


def test_home_of_nobody_is_refused_and_no_folder_is_made(everywhere, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for key in ("run", "zoo.folder", "data.source", "teachers.1.weights"):
        told = refused(capsys, everywhere, f"{key}=~nobody-of-that-name/x", "--plan")
        assert told.startswith(f"command line: {key}: ~ stands for a home folder, and there is no user of that name")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_run_at_home_lies_there(recipe, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    recipe |= {"run": "~/run", "zoo": {"folder": "~/zoo"}, "teachers": [{"train": "test_resnet"}]}
    recipe["loop"]["steps"] = 1
    path = write(recipe, tmp_path)
    assert train.main([path]) == 0
    assert (tmp_path / "home/run/table.json").is_file()
    assert list((tmp_path / "home/zoo").glob("test_resnet-*"))
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("data.source=nowhere", "data.source: there is no folder nowhere"),
        ("teachers.0={model: test_resnet, weights: no.pth}", "teachers.0.weights: there is no file no.pth"),
        ("teachers.0=local-dir:nowhere", "teachers.0: local-dir:nowhere"),
    ],
)
def test_what_is_not_there_is_told_with_where_it_was_looked_for(recipe, tmp_path, monkeypatch, capsys, change, what):
    monkeypatch.chdir(tmp_path)
    path = write(recipe, tmp_path)
    assert refused(capsys, path, change, "--plan").startswith(f"{what} (relative to {tmp_path})")


def test_a_recipe_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, "no.yaml").startswith(f"no.yaml (relative to {tmp_path}): there is no such recipe.")


def test_others_read_the_last_component_of_a_local_path(everywhere, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = yaml.safe_dump(public_values(load_recipe(everywhere).model_dump(mode="json")))
    assert "/home" not in text
    read = yaml.safe_load(text)
    assert (read["data"]["source"], read["student"]["model"]) == ("shapes", "local-dir:net")
    assert public("../me/secret") == "secret"
    kept = ("recipes/data/digits", "hf-hub:you/model@main", "resnet18.a1_in1k", "local-dir:runs/x/student")
    assert [public(text) for text in kept] == list(kept)


BUDGET = ["loop.epochs=5", "zoo.loop.epochs=2", "teachers.0.loop.steps=7"]


def test_a_budget_of_the_command_line_takes_the_place_of_the_recipes():
    recipe = load_recipe(ROOT / "recipes/quickstart.yaml", BUDGET)
    assert (recipe.loop.epochs, recipe.loop.steps) == (5, None)
    assert [(teacher.loop.epochs, teacher.loop.steps) for teacher in recipe.teachers][:2] == [(None, 7), (2, None)]
    assert load_recipe(ROOT / "recipes/quickstart.yaml", ["loop.epochs=null"]).loop.steps == 1000


@pytest.mark.parametrize(
    ("words", "budgets"),
    [
        ([], [(60, None, 2000), (15, None, 2000)]),
        (["loop.epochs=5"], [(5, None, 0), (15, None, 2000)]),
        (["loop.steps=5", "zoo.loop.steps=3"], [(None, 5, 0), (None, 3, 0)]),
        (["loop.epochs=5", "loop.min_steps=8", "zoo.loop.min_steps=0"], [(5, None, 8), (15, None, 0)]),
        (["teachers.0.loop={epochs: 2}"], [(60, None, 2000), (2, None, 0)]),
    ],
)
def test_a_budget_of_the_command_line_ends_the_recipes_smallest_number_of_steps(words, budgets):
    recipe = load_recipe(ROOT / "recipes/own_images.yaml", words)
    loops = [recipe.loop, recipe.teachers[0].loop]
    assert [(loop.epochs, loop.steps, loop.min_steps) for loop in loops] == budgets


def test_an_error_of_the_command_line_names_it(recipe, tmp_path, capsys):
    path = write(recipe, tmp_path)
    told = refused(capsys, path, "loop.epochs=5", "loop.steps=3", "--plan")
    assert told == "command line: loop: epochs and steps exclude each other; keep one.\n"
    told = refused(capsys, path, "data.unlabelled=x", "data.student_sees=labelled", "--plan")
    assert told.startswith("command line: data: unlabelled images are for the student")
    recipe["loop"]["epochs"] = 3
    told = refused(capsys, write(recipe, tmp_path), "loop.lr=1e-3", "--plan")
    assert told.startswith(f"{path}:")
    assert "command line" not in told
