"""Recipes and data that come with the package: named without folder, written to be edited, found from any folder."""

import re
from pathlib import Path

import pytest
from conftest import ROOT

from meco_timm import UserError, load_recipe
from meco_timm.recipe import RECIPES, purpose, shipped_recipes, write_recipe

DIGITS = "recipes/data/digits"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_in_a_clone_they_are_the_files_at_its_top():
    assert RECIPES == ROOT / "recipes"
    assert set(shipped_recipes().values()) == set((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", shipped_recipes())
def test_its_purpose_is_one_line(name):
    text = purpose(shipped_recipes()[name])
    assert re.fullmatch(r"[A-Z].{30,110}\.", text), text


def test_a_name_is_the_recipe_and_its_data_are_found_from_any_folder(elsewhere, caplog):
    recipe = load_recipe("quickstart", ["seed=3"])
    assert recipe.seed == 3
    assert recipe.data.source == str(RECIPES / "data/digits")
    assert recipe.run.startswith("runs/quickstart-")
    message = f"there is no folder {DIGITS} (relative to {elsewhere}); the package's own is used: {recipe.data.source}"
    assert message in caplog.text


def test_what_lies_in_the_working_directory_goes_first(elsewhere, caplog):
    (elsewhere / DIGITS).mkdir(parents=True)
    (elsewhere / "quickstart").write_text((RECIPES / "svhn_ensemble.yaml").read_text())
    assert load_recipe("quickstart").data.source == "ufldl-stanford/svhn"
    assert load_recipe(RECIPES / "quickstart.yaml").data.source == DIGITS
    assert caplog.text == ""


@pytest.mark.parametrize("source", ["data/digits", "recipes/data/faces", "recipes/quickstart.yaml", "you/recipes"])
def test_no_other_path_is_looked_up_in_the_package(elsewhere, source):
    assert load_recipe("quickstart", [f"data.source={source}"]).data.source == source


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_written_recipe_is_the_same_with_a_command_of_its_own(elsewhere, name):
    path = write_recipe(name, elsewhere)
    written, shipped = load_recipe(path), load_recipe(name)
    assert written == shipped
    head = path.read_text()[: path.read_text().index("\ndata:")]
    assert f" -m meco_timm {name}.yaml" in head
    assert "train.py" not in head
    assert Path(re.search(r"\$schema=(.+)", head)[1]).is_file()
    assert all(Path(file).is_file() for file in re.findall(r"--config_file (\S+)", head))


def test_a_file_of_that_name_is_not_replaced(elsewhere):
    (elsewhere / "quickstart.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"quickstart.yaml exists already. Rename it"):
        write_recipe("quickstart", elsewhere)
    assert (elsewhere / "quickstart.yaml").read_text() == "mine"


def test_a_misspelled_name_is_refused(elsewhere):
    with pytest.raises(UserError, match=r"there is no 'quikstart'. Did you mean 'quickstart'\?"):
        write_recipe("quikstart", elsewhere)
    with pytest.raises(UserError, match=r"there is no such recipe. Did you mean 'quickstart'\?"):
        load_recipe("quikstart")
    with pytest.raises(UserError, match=r"The recipes are .*quickstart"):
        write_recipe("zzz", elsewhere)
    assert not list(elsewhere.iterdir())
