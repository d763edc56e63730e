"""The recipe of a published student: whole, readable, and enough for another person to repeat the run."""

import json
from pathlib import Path

import pytest
import timm
from conftest import refused
from helpers.hub import files

from meco_timm import UserError, load_recipe, publish
from meco_timm.evaluation import Row
from meco_timm.hub.shared_recipe import shared_recipe
from meco_timm.recipe import Publish, recipe_key
from meco_timm.recipe.reading import saved_key
from meco_timm.reporting import read_results


@pytest.fixture
def published(hub, run, unchecked) -> Path:
    """The run, of which `me/student` is the published student."""
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("publish: null", "publish: {repo: me/student}"))
    publish(run, Publish(repo="me/student"))
    return run


@pytest.mark.parametrize("name", ["hf-hub:me/student", "hf-hub:me/student@main", "a file"])
def test_the_run_is_repeated_from_the_hub_or_a_file(hub, published, tmp_path, name):
    """Only the folder of the images has to be named; the run has a folder of its own, and is not uploaded again."""
    if name == "a file":
        name = str(tmp_path / "student.yaml")
        Path(name).write_bytes(files(hub)["recipe.yaml"])
    data = read_results(published).recipe["data"]["source"]
    recipe = load_recipe(name, [f"data.source={data}"])
    assert recipe_key(recipe) == saved_key(published / "recipe.yaml")
    assert str(recipe.run).startswith("runs/student")
    assert recipe.publish is None
    assert load_recipe(name).data.source == "shapes"


def test_table_and_environment_stand_above_it(hub, published):
    text = files(hub)["recipe.yaml"].decode()
    head, _, keys = text.partition("\n\n")
    assert all(line.startswith("#") for line in head.splitlines())
    assert not keys.startswith("#")
    results = read_results(published)
    for row in results.rows:
        (line,) = [line for line in head.splitlines() if line.startswith(f"# {row.name}  ")]
        assert f"{row.top1:.2f}" in line
    assert "# command    meco-timm train hf-hub:me/student data.source=FOLDER" in head
    assert f"timm {timm.__version__}" in head
    assert "meco_timm commit " in head
    assert "thread(s)" in head
    assert "# seed       0" in head
    assert "`meco-timm train hf-hub:me/student data.source=FOLDER`" in files(hub)["README.md"].decode()


def test_text_with_line_breaks_stays_a_comment(ended):
    results = read_results(ended)
    odd = [Row(**{**row._asdict(), "name": "a\nseed: 7\u2028b"}) for row in results.rows]
    text = shared_recipe(results._replace(rows=[*results.rows, *odd]), Publish(repo="me/student"))
    assert "\nseed: 7" not in text


def test_what_is_not_there_is_one_line(hub, published, capsys, monkeypatch):
    message = refused(capsys, "hf-hub:me/nothing", "--plan")
    assert message.startswith("hf-hub:me/nothing: its recipe.yaml cannot be fetched from the Hub: ")
    assert len(message.splitlines()) == 1
    assert "cannot be fetched" in refused(capsys, "hf-hub:me/student@v9", "--plan")
    assert "cannot be fetched" in refused(capsys, "hf-hub:nonsense//", "--plan")
    hub.repos["me/student"].commit("main", {"recipe.yaml": b"seed: [1"})
    with pytest.raises(UserError, match=r"hf-hub:me/student:1: not valid YAML"):
        load_recipe("hf-hub:me/student")


def test_the_facts_of_the_environment_are_in_the_table(ended):
    about = json.loads((ended / "table.json").read_text())["about"]
    assert about["versions"]["meco_timm"].startswith("commit ")
    assert about["hardware"].endswith("thread(s)")
