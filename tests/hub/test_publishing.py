"""A student on the Hub: pushed by this package, pulled by plain timm; and every failure has a message."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
import yaml
from conftest import ROOT, contents, draw_image, tree, write
from helpers.hub import TOKEN, Fault, files
from safetensors.torch import load_file, save_file

import train
from meco_timm import UserError, load_recipe
from meco_timm.cli import main
from meco_timm.hub.publishing import publish, publish_settings
from meco_timm.hub.retries import ATTEMPTS, _response
from meco_timm.recipe import Publish, recipe_key, to_yaml
from meco_timm.training import RunFolder

NAMED = {"model.safetensors", "config.json", "README.md", "recipe.yaml", "table.json", "metrics.jsonl",
         "figures/cost.png", "figures/curves.png", "figures/soft_labels.png"}  # fmt: skip
REPO = Publish(repo="me/student")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def error_of(settings: Publish, run: Path) -> str:
    """What a publishing that fails says; it says how to go on, and never the token."""
    with pytest.raises(UserError) as error:
        publish(run, settings)
    text = str(error.value)
    assert TOKEN not in text
    assert "Traceback" not in text
    return text


# What is pushed, and what is pulled

STRANGER = r"""
import re, sys
import timm, torch

torch.set_num_threads(1)
sys.modules["meco_timm"] = None  # installed or not, any import of it now fails
images = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
logits = {}
for name in sys.argv[3:]:
    logits[name] = timm.create_model(name, pretrained=True).eval()(images).detach()
    maps = timm.create_model(name, pretrained=True, features_only=True).eval()(images)
    assert len(maps) > 2 and all(m.ndim == 4 for m in maps)
(lines,) = re.findall(r"```python\n(.*?)```", open(sys.argv[2]).read(), re.DOTALL)
exec(lines)  # what the card says, which defines model and transform
logits["card"] = model(images).detach()
assert transform.transforms and not model.training
torch.save(logits, sys.argv[1])
"""


def test_a_stranger_to_this_package_pulls_what_was_pushed(hub, run, tmp_path, capsys):
    """Pushed by the command, pulled in a fresh process that knows only timm, and by the lines of the card:
    identical logits, of main, of a branch and of a commit."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT), "HF_HUB_CACHE": str(tmp_path / "hf/hub"),
    }  # fmt: skip

    assert main(["publish", str(run), "--repo", "me/student", "--license", "mit"]) == 0
    said = capsys.readouterr()
    assert 'timm.create_model("hf-hub:me/student", pretrained=True)' in said.out
    assert TOKEN not in said.out + said.err
    assert files(hub).keys() == NAMED
    hub.repos["me/student"].branches["old"] = hub.repos["me/student"].branches["main"]
    commit = hub.repos["me/student"].branches["main"]
    names = ["hf-hub:me/student", "hf-hub:me/student@old", f"hf-hub:me/student@{commit}"]
    card = tmp_path / "card.md"
    card.write_bytes(files(hub)["README.md"])
    draw_image(0, seed=0).save(tmp_path / "photo.jpg")  # that the card's lines open
    words = [sys.executable, "-I", "-c", STRANGER, str(tmp_path / "logits.pt"), str(card), *names]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    here = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()(images).detach()
    logits = torch.load(tmp_path / "logits.pt")
    assert logits.keys() == {*names, "card"}
    assert all(torch.equal(one, here) for one in logits.values())


def test_nothing_but_the_named_files_in_one_commit(hub, run):
    (run / "student/notes.txt").write_text("mine")
    (run / "student/pytorch_model.bin").write_bytes(b"a pickle")
    assert publish(run, REPO) == "hf-hub:me/student"
    assert files(hub).keys() == NAMED
    assert len(hub.repos["me/student"].commits) == 2  # the Hub's own first, and one
    for name in NAMED - {"recipe.yaml"}:
        path = run / name if (run / name).exists() else run / "student" / name
        assert files(hub)[name] == path.read_bytes()


def test_a_branch_of_its_own(hub, run, unchecked):
    publish(run, Publish(repo="me/student", revision="v2"))
    assert files(hub, "v2").keys() == NAMED
    assert files(hub) == {}
    assert 'create_model("hf-hub:me/student@v2"' in files(hub, "v2")["README.md"].decode()


@pytest.mark.parametrize("private", [True, False])
def test_private_is_what_is_asked(hub, run, unchecked, private):
    publish(run, Publish(repo="me/student", private=private))
    assert hub.repos["me/student"].private is private


def test_a_private_student_is_not_put_into_a_public_repository(hub, run, unchecked):
    hub.new_repo("me/student")
    message = error_of(Publish(repo="me/student", private=True), run)
    assert "me/student is there already and public, but private is asked for. Nothing was uploaded to it." in message
    assert files(hub) == {}
    hub.new_repo("me/student", private=True)
    publish(run, Publish(repo="me/student", private=True))
    assert files(hub).keys() == NAMED


def test_the_command_after_a_failure_repeats_all_options(hub, run, unchecked, waits, capsys, tmp_path):
    """As it is printed it publishes the same once the Hub works: private, with its licence and card."""
    (tmp_path / "my card.md").write_text("---\n{{ front }}\n---\nmine")
    options = ["--private", "--revision", "v2", "--license", "cc-by-nc-4.0", "--card", str(tmp_path / "my card.md")]
    options += ["--space", "me/try", "--overwrite", "--examples"]
    hub.faults.append(Fault("repos/create", 500))
    assert main(["publish", str(run), "--repo", "me/student", *options]) == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1].strip()
    assert shlex.split(printed) == ["meco-timm", "publish", str(run), "--repo", "me/student", *options]
    hub.faults.clear()
    assert main(shlex.split(printed)[1:]) == 0
    assert hub.repos["me/student"].private
    assert b"license: cc-by-nc-4.0" in files(hub, "v2")["README.md"]
    assert files(hub, "v2")["README.md"].endswith(b"mine")
    assert "examples/1.png" in files(hub, repo="spaces/me/try")


def test_repeating_it_changes_nothing(hub, run, unchecked):
    publish(run, REPO)
    before = (dict(hub.repos["me/student"].branches), len(hub.repos["me/student"].commits))
    assert publish(run, REPO) == "hf-hub:me/student"
    assert (hub.repos["me/student"].branches, len(hub.repos["me/student"].commits)) == before


def test_a_new_card_of_the_same_model_needs_no_leave(hub, run, unchecked):
    publish(run, REPO)
    publish(run, Publish(repo="me/student", license="mit"))
    assert "license: mit" in files(hub)["README.md"].decode()


def test_a_dry_run_talks_to_nobody_and_changes_nothing(hub, run, capsys):
    before = contents(run)
    assert publish(run, REPO, dry_run=True) == "hf-hub:me/student"
    assert hub.requests == []
    assert contents(run) == before
    assert all(name in capsys.readouterr().out or name in NAMED for name in NAMED)


# Another model is there


@pytest.mark.parametrize("there", [{"model.safetensors": b"another"}, {"pytorch_model.bin": b"a pickle"}])
def test_another_model_is_not_replaced_unasked(hub, run, unchecked, there):
    hub.new_repo("me/student", there)
    message = error_of(REPO, run)
    assert "me/student contains another model" in message
    assert "--overwrite" in message
    assert files(hub) == there


def test_with_overwrite_it_is_replaced_whole(hub, run, unchecked):
    hub.new_repo("me/student", {"model.safetensors": b"another", "pytorch_model.bin": b"a pickle", "x/y.txt": b"z"})
    publish(run, Publish(repo="me/student", overwrite=True))
    assert files(hub).keys() == NAMED
    assert files(hub)["model.safetensors"] == (run / "student/model.safetensors").read_bytes()


def test_an_empty_repository_is_taken(hub, run, unchecked):
    hub.new_repo("me/student")
    publish(run, REPO)
    assert files(hub).keys() == NAMED


# The Hub refuses or fails


def test_without_a_token(hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    message = error_of(REPO, run)
    assert "no Hugging Face token was found" in message
    assert "hf auth login" in message
    assert hub.requests == []


def test_a_wrong_token(hub, run, unchecked, monkeypatch, waits):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    message = error_of(REPO, run)
    assert "401" in message or "Unauthorized" in message or "credentials" in message
    assert "hf auth login" in message
    assert f"meco-timm publish {run} --repo me/student" in message
    assert "hf_wrong" not in message
    assert waits == []
    assert hub.repos == {}


@pytest.mark.parametrize(
    "name", ["student", "me/stu dent", "a/b/c", "me/-x-", "me/a..b", "https://huggingface.co/me/x"]
)
def test_a_name_that_is_none(ended, name, capsys):
    with pytest.raises(UserError, match="publish: repo"):
        publish_settings(ended, {"repo": name})
    assert main(["publish", str(ended), "--repo", name]) == 2
    assert "publish: repo" in capsys.readouterr().err


def test_a_name_that_is_none_in_the_recipe(recipe, tmp_path, capsys):
    assert train.main([write(recipe | {"publish": {"repo": "student"}}, tmp_path)]) == 2
    assert "publish.repo: repo is written owner/name" in capsys.readouterr().err


def test_no_name_at_all(ended):
    with pytest.raises(UserError, match="--repo owner/name"):
        publish_settings(ended, {})


PLACES = ["repos/create", "GET /api/models", "validate-yaml", "preupload", "objects/batch", "PUT /objects", "/commit/"]


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("status", [429, 500, 0])
def test_failing_twice_is_overcome(hub, run, unchecked, waits, where, status):
    """Too busy, broken, or a connection that is cut inside what is sent, at every request that there is."""
    hub.faults.append(Fault(where, status, times=2))
    publish(run, REPO)
    assert files(hub).keys() == NAMED
    assert hub.faults[0].times == 0
    assert waits
    assert waits == sorted(waits) or 0 < len(waits) <= 4  # longer each time; two kinds of waiting may follow each other


@pytest.mark.parametrize(("where", "status"), [("repos/create", 500), ("/commit/", 503), ("PUT /objects", 0)])
def test_a_permanent_failure_is_reported_and_nothing_is_lost(hub, run, unchecked, waits, where, status):
    hub.faults.append(Fault(where, status))
    message = error_of(REPO, run)
    assert f"The run is complete in {run}" in message
    assert f"meco-timm publish {run} --repo me/student" in message
    assert tree(run) >= {f"student/{name}" for name in ("model.safetensors", "config.json", "README.md")}
    assert len(waits) >= ATTEMPTS - 1
    assert sum(waits) < 500  # of four files at once: about 100 s each
    assert not hub.repos or files(hub) == {}
    hub.faults.clear()
    publish(run, REPO)
    assert files(hub).keys() == NAMED


@pytest.mark.parametrize(
    ("licence", "hint"),
    [("MIT License", "Did you mean 'mit'?"), ("apache", "Did you mean 'apache-2.0'?"), ("other", "write other:NAME")],
)
def test_a_licence_that_the_hub_does_not_know(hub, ended, recipe, tmp_path, capsys, licence, hint):
    """Refused before anything else is done: by the command, in a dry run too, and in a recipe."""
    for options in ([], ["--dry-run"]):
        assert main(["publish", str(ended), "--repo", "me/student", "--license", licence, *options]) == 2
        assert hint in capsys.readouterr().err
    path = write(recipe | {"publish": {"repo": "me/student", "license": licence}}, tmp_path)
    assert train.main([path, "--plan"]) == 2
    assert "publish.license: license is not an identifier of the Hub's" in capsys.readouterr().err
    assert hub.requests == []


def test_a_licence_with_a_name_of_its_own(hub, run, unchecked):
    publish(run, Publish(repo="me/student", license="other:dinov3-license"))
    front = yaml.safe_load(files(hub)["README.md"].decode().split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "dinov3-license")
    assert "published under dinov3-license" in files(hub)["README.md"].decode()


def test_a_wait_that_the_hub_asks_for_is_kept(monkeypatch):
    from huggingface_hub.errors import HfHubHTTPError

    class Response:
        headers = {"retry-after": "7"}  # noqa: RUF012
        status_code = 429

    error = HfHubHTTPError.__new__(HfHubHTTPError)
    error.response = Response()  # type: ignore[assignment]
    assert _response(error) == (429, 7)
    assert _response(OSError()) == (None, 0)


# The run is not what it says


def test_a_run_that_has_not_ended(hub, run):
    (run / "table.json").unlink()
    message = error_of(REPO, run)
    assert f"{run}: the run has not finished" in message
    assert f"accelerate launch -m meco_timm {run}" in message
    assert hub.requests == []


def test_no_run_at_all(hub, tmp_path):
    assert f"{tmp_path} is not a run folder" in error_of(REPO, tmp_path)


def test_a_student_that_is_not_what_the_table_says(hub, run):
    weights = run / "student/model.safetensors"
    state = load_file(weights)
    save_file(
        {name: tensor.roll(1, 0) if name.startswith("classifier") else tensor for name, tensor in state.items()},
        weights,
    )
    message = error_of(REPO, run)
    assert "% on the test split, but the table has" in message
    assert "Nothing was uploaded" in message
    assert hub.requests == []


def test_the_test_data_are_gone(hub, run):
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("/shapes", "/gone"))
    message = error_of(REPO, run)
    assert "the student is evaluated again before it is uploaded" in message
    assert "data.source: there is no folder" in message
    assert hub.requests == []


def test_a_file_is_missing(hub, run):
    (run / "metrics.jsonl").unlink()
    assert f"{run / 'metrics.jsonl'} is missing" in error_of(REPO, run)


# The recipe says it


def test_a_recipe_that_publishes_when_it_has_ended(ended, run, hub, unchecked, capsys):
    """Added to the recipe of a run that has ended, it publishes and trains nothing; it is no other recipe."""
    path = ended.parent / "recipe.yaml"
    before = (run / "recipe.yaml").read_bytes()
    assert train.main([str(path), f"run={run}", "publish={repo: me/student, license: mit}"]) == 0
    message = capsys.readouterr().err
    assert "nothing is trained again" in message
    assert "warning" not in message
    assert "step" not in message
    assert files(hub).keys() == NAMED
    assert (run / "recipe.yaml").read_bytes() == before


def test_a_recipe_that_cannot_publish_yet_says_so_at_once(ended, run, hub, unchecked, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert train.main([str(ended.parent / "recipe.yaml"), f"run={run}", "publish={repo: me/student}"]) == 2
    *before, last = capsys.readouterr().err.splitlines()
    assert any(line.startswith("warning: publish: no Hugging Face token") for line in before)
    assert last.startswith("publish: no Hugging Face token was found")


def test_where_it_is_published_is_no_part_of_what_the_run_is(recipe, tmp_path):
    plain, public = (
        write(base, tmp_path, f"{i}.yaml") for i, base in enumerate((recipe, recipe | {"publish": {"repo": "a/b"}}))
    )
    a, b = (load_recipe(path) for path in (plain, public))
    folder = RunFolder(Path(recipe["run"]))
    folder.create(to_yaml(a), "")
    folder.check_recipe(recipe_key(b))
    del recipe["run"]
    same = write(recipe, tmp_path, "same.yaml")
    assert load_recipe(same).run == load_recipe(same, ["publish={repo: a/b}"]).run


def test_the_token_is_written_nowhere(hub, run, unchecked, capsys):
    hub.faults.append(Fault("repos/create", 500, times=1))
    publish(run, REPO)
    message = capsys.readouterr()
    assert TOKEN not in message.out + message.err
    assert not any(TOKEN.encode() in data for data in contents(run).values())
    assert not any(TOKEN.encode() in data for data in files(hub).values())


def test_the_table_says_what_it_was_made_with(ended):
    about = json.loads((ended / "table.json").read_text())["about"]
    assert about["images"] == {"train": 27, "labelled": 27, "validation": 9, "test": 18}
    assert about["versions"]["timm"] == timm.__version__
    assert about["origins"]["test_resnet"] == {"start": "random weights", "hub": None, "licence": None}


def test_no_local_folder_is_published(hub, run, unchecked):
    """Neither in the recipe nor on the card, whatever is written with a path; the run keeps its own."""
    recipe = (run / "recipe.yaml").read_text()
    assert str(run.parent.parent) in recipe or str(Path.home()) in recipe or "/shapes" in recipe
    wrapped = recipe.replace("model: test_efficientnet", f"model: local-dir:{run}/secret/net", 1)
    (run / "recipe.yaml").write_text(wrapped)
    publish(run, REPO)
    for name, content in files(hub).items():
        if name.endswith((".md", ".yaml", ".json", ".jsonl")):
            assert b"secret" not in content.replace(b"local-dir:net", b""), name
            assert str(run.parent).encode() not in content, name
    published = yaml.safe_load(files(hub)["recipe.yaml"])
    assert published["data"]["source"] == "shapes"
    assert (run / "recipe.yaml").read_text() == wrapped
