"""The model card: metadata by the Hub's rules, all that people ask of a student, and no text that is more than text."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ODD_CLASSES, ROOT
from helpers.hub import card_errors
from huggingface_hub import ModelCard

from meco_timm import UserError, load_recipe
from meco_timm.hub.card import card_files, model_card
from meco_timm.hub.finish import describe_origin
from meco_timm.hub.licences import licence_note, licence_warning, strictness
from meco_timm.recipe.networks import Network, Teacher
from meco_timm.recipe.recipe import Publish
from meco_timm.reporting.pages import escape_markdown, render_markdown
from meco_timm.reporting.results import Results, read_results

FIGURES = {"cost.png": "a picture"}


@pytest.fixture(scope="module")
def results(ended: Path) -> Results:
    return read_results(ended)


def card(results: Results, **publish: Any) -> str:
    settings = Publish(repo="me/student", **publish)
    return model_card(results, list(ODD_CLASSES), FIGURES, settings)


def with_origins(results: Results, licences: dict[str, str | None]) -> Results:
    """The run as if its teachers had come from the Hub."""
    origins = {name: {"start": f"timm/{name}", "hub": f"timm/{name}", "licence": li} for name, li in licences.items()}
    teachers = [results.recipe["teachers"][0]] * len(origins)
    return results._replace(recipe=results.recipe | {"teachers": teachers}, about=results.about | {"origins": origins})


# Metadata


def test_it_is_valid_by_the_hubs_rules_and_reads_back(results):
    text = card(results, license="mit")
    assert card_errors(text) == []
    data = ModelCard(text).data  # the client's own parser, which reads the model index too
    assert (data.library_name, data.pipeline_tag, data.license) == ("timm", "image-classification", "mit")
    assert {"timm", "image-classification"} <= set(data.tags or [])
    student = results.row("student")
    found = {result.metric_type: result.metric_value for result in data.eval_results or []}
    assert found == {"accuracy": round(student.top1, 4), "nll": round(student.nll, 4), "ece": round(student.ece, 4)}
    (dataset,) = {
        (result.dataset_name, result.dataset_type, result.dataset_split) for result in data.eval_results or []
    }
    assert dataset == ("shapes", "imagefolder", "test")
    assert data.model_name == "student"


def test_what_the_hub_would_refuse_is_refused_by_the_rules(results):
    assert card_errors("# no metadata")
    good = card(results, license="mit")
    assert card_errors(good.replace("license: mit", "license: my own"))
    assert card_errors(good.replace("license: mit", "license: other"))
    assert card_errors(good.replace("type: imagefolder", "kind: imagefolder"))
    assert card_errors(good.replace("- timm\n", "- [timm]\n", 1))
    assert card_errors(good.replace("library_name: timm", "base_model_relation: distil"))


def test_teachers_on_the_hub_are_its_base_models(results):
    data = ModelCard(card(with_origins(results, {"a.x_in1k": "apache-2.0", "b.y_in1k": "mit"}))).data
    assert data.base_model == ["timm/a.x_in1k", "timm/b.y_in1k"]
    assert data.base_model_relation == "finetune"
    assert card_errors(card(with_origins(results, {"a": None}))) == []
    assert ModelCard(card(results)).data.base_model is None  # trained here


def test_a_data_set_on_the_hub_is_named(results):
    data = results.recipe["data"] | {"source": "owner/photos", "test_split": "valid"}
    there = results._replace(recipe=results.recipe | {"data": data}, about=results.about | {"local_data": False})
    front = ModelCard(card(there)).data
    assert front.datasets == ["owner/photos"]
    (result, *_) = front.eval_results or []
    assert (result.dataset_type, result.dataset_split) == ("owner/photos", "valid")


@pytest.mark.parametrize(
    ("network", "start", "hub", "licence"),
    [
        (Teacher(model="resnet18.a1_in1k"), "timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k", "apache-2.0"),
        (Teacher(model="resnet18.a1_in1k", train=True), "timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k", "apache-2.0"),
        (Teacher(model="resnet18"), "timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k", "apache-2.0"),
        (Teacher(model="resnet18", train=True), "random weights", None, None),
        (Network(model="resnet18"), "random weights", None, None),
        (Network(model="resnet18.a1_in1k"), "timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k", "apache-2.0"),
        (Teacher(model="hf-hub:me/x@v2"), "me/x", "me/x", "cc-by-nc-4.0"),
        (Teacher(model="local-dir:some/place"), "a local file", None, "cc-by-nc-4.0"),
        (Teacher(model="resnet18", weights="some.pth"), "a local file", None, "cc-by-nc-4.0"),
    ],
)
def test_where_weights_come_from(network, start, hub, licence):
    assert describe_origin(network.model_dump(), {"license": "cc-by-nc-4.0"}) == {
        "start": start,
        "hub": hub,
        "licence": licence,
    }


# Licences


def test_licences_are_ordered_by_what_they_ask():
    order = ["apache-2.0", "gpl-3.0", "dinov3-license", "cc-by-nc-4.0"]
    assert sorted(order, key=strictness) == order
    assert strictness("cc-by-sa-4.0") == strictness("agpl-3.0")
    assert strictness(None) == strictness("other") == strictness("dinov3-license")
    assert strictness("cc-by-nd-4.0") == strictness("CC-BY-NC-SA-4.0")


def test_the_strictest_licence_is_reported_and_none_is_guessed(results):
    mixed = with_origins(results, {"a": "apache-2.0", "b": "cc-by-nc-4.0", "c": None})
    note = licence_note(mixed, None)
    assert "No licence has been chosen" in note
    assert "The strictest of these licences is cc-by-nc-4.0 (b): it forbids commercial use" in note
    assert "c (unknown)" in note
    assert "license" not in yaml.safe_load(card(mixed).split("---")[1])
    warning = licence_warning(mixed, None)
    assert warning is not None
    assert "cc-by-nc-4.0" in warning


def test_a_licence_less_strict_than_a_teachers_gives_a_warning(results):
    strict = with_origins(results, {"a": "cc-by-nc-4.0"})
    assert "less strict than cc-by-nc-4.0" in str(licence_warning(strict, "mit"))
    assert licence_warning(strict, "cc-by-nc-4.0") is None
    assert licence_warning(with_origins(results, {"a": "mit"}), "apache-2.0") is None
    assert licence_warning(results, "mit") is None  # all from random weights
    assert "random weights" in licence_note(results, "mit")


# What people read


def test_it_says_all_that_it_should(results):
    text = card(results, revision="v2")
    for heading in ("Use", "Results", "Training", "Intended use and limits", "Licence", "Citation"):
        assert f"\n## {heading}\n" in text
    assert '"hf-hub:me/student@v2"' in text
    assert all(re.search(rf"^\| {row.name} \| {row.top1:.2f} \|", text, re.MULTILINE) for row in results.rows)
    (table,) = re.findall(r"(?:^\|.*top-1.*\n)(?:^\|.*\n)+", text, re.MULTILINE)
    assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "![a picture](figures/cost.png)" in text
    assert f"timm {results.about['versions']['timm']}" in text
    assert "MEAL" in text
    assert "\n\n\n\n" not in text


def test_pictures_are_there_and_named(results):
    files = card_files(results, list(ODD_CLASSES))
    assert files.keys() == {"README.md", "figures/cost.png", "figures/curves.png", "figures/soft_labels.png"}
    assert all(content.startswith(b"\x89PNG") for name, content in files.items() if name.endswith("png"))
    assert set(re.findall(r"\]\((figures/[^)]+)\)", files["README.md"])) == files.keys() - {"README.md"}
    assert "local-dir:" in files["README.md"]


def test_of_many_classes_the_first_are_named(results):
    text = model_card(results, [f"class {i}" for i in range(1000)], {})
    assert "class 29, …" in text
    assert "class 30" not in text
    assert "1000 classes" in text


# Text stays text


def test_names_of_classes_stay_text(results):
    text = card(results)
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert r"\[cross\](javascript:x) \*b\* \|c\|" in text
    assert r"dash &amp; \$\\frac\$ \`q\` \_u\_" in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("test_resnet", "test_resnet"),
        ("# head", r"\# head"),
        ("- item", r"\- item"),
        ("a\nb", "a b"),
        ("https://x.y", "https:&#47;&#47;x.y"),
        ("~~a~~", r"\~\~a\~\~"),
        ("![x](y)", r"!\[x\](y)"),
        (7, "7"),
    ],
)
def test_markdown_is_escaped(text, escaped):
    assert escape_markdown(text) == escaped


def test_the_metadata_stay_metadata(results):
    """A source and a repository name with YAML's signs in them."""
    data = results.recipe["data"] | {"source": "a: [b\nlicense: mit"}
    front = card(results._replace(recipe=results.recipe | {"data": data})).split("\n---\n")[0]
    assert "license" not in yaml.safe_load(front.removeprefix("---\n"))


# A template of one's own


def test_a_template_of_ones_own(results, tmp_path):
    (tmp_path / "mine.md").write_text(
        "---\n{{ front }}\n---\n# {{ title }}\n{% for name in classes %}{{ name }}{% endfor %}"
    )
    text = card(results, card=str(tmp_path / "mine.md"))
    assert card_errors(text) == []
    assert "# test_efficientnet from 2 teachers" in text
    assert "<img" not in text


@pytest.mark.parametrize(
    "template", ["{{ titel }}", "{{ images.tests }}", "{% for x in y %}", "{{ title | nonsense }}"]
)
def test_a_field_that_there_is_not(results, tmp_path, template):
    (tmp_path / "mine.md").write_text(f"\n\n{template}")
    with pytest.raises(UserError) as error:
        card(results, card=str(tmp_path / "mine.md"))
    message = str(error.value)
    assert message.startswith(str(tmp_path / "mine.md"))
    assert "Fields of a card: again, background, classes, " in message


def test_a_template_that_is_not_there(results, tmp_path):
    with pytest.raises(UserError, match=r"publish\.card: the template .* cannot be read"):
        card(results, card=str(tmp_path / "mine.md"))


def test_what_is_marked_as_markdown_is_let_through():
    from markupsafe import Markup

    assert render_markdown("{{ a }}{{ b }}", "here", a=Markup("*a*"), b="*b*") == r"*a*\*b\*"


# The card that the README shows


def test_the_card_of_the_quickstart_is_valid_and_of_its_recipe():
    text = (ROOT / "docs/quickstart/README.md").read_text(encoding="utf-8")
    assert card_errors(text) == []
    assert ModelCard(text).data.eval_results
    recipe = load_recipe(ROOT / "recipes/quickstart.yaml")
    assert f"# {recipe.student.model} from {len(recipe.teachers)} teachers" in text
    assert all(f"| {teacher.model} |" in text for teacher in recipe.teachers)
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert "recipe.yaml" in linked
    assert all((ROOT / "docs/quickstart" / name).is_file() for name in linked)
    assert "/tmp" not in text
