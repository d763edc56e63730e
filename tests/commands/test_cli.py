"""The console command: every subcommand calls its function, --help is fast, and errors are messages."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
from conftest import ROOT, write

import meco_timm
from meco_timm import UserError, evaluate, list_teachers, load_recipe
from meco_timm.cli import main
from meco_timm.data.loading import load_data
from meco_timm.recipe.sections import Data
from meco_timm.reporting.results import read_results

COMMANDS = ("recipes", "plan", "train", "evaluate", "predict", "report", "compare", "publish", "teachers")


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard output of a command that succeeds."""
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard error of a command that fails with exit code 2."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_help_names_every_command_and_each_has_its_own(capsys):
    text = output_of(capsys, "--help")
    assert all(re.search(rf"^ +{command} +\S", text, re.MULTILINE) for command in COMMANDS)
    assert "--install-completion" in text
    for command in COMMANDS:
        assert "Usage: " in output_of(capsys, command, "--help")


def test_help_is_quick_and_imports_no_torch():
    code = "import sys; from meco_timm.cli import main; main(['publish', '--help']); print('torch' in sys.modules)"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert time.monotonic() - started < 5  # in half a second on an idle machine


def test_recipes_are_listed_with_their_purpose_or_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = output_of(capsys, "recipes").splitlines()
    names = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    assert [line.split()[0] for line in lines[: len(names)]] == names
    assert lines[names.index("quickstart")].startswith("quickstart              Quickstart: three small teachers")
    assert output_of(capsys, "recipes", "quickstart") == "quickstart.yaml\n"
    assert load_recipe("quickstart.yaml") == load_recipe("quickstart")
    assert "quickstart.yaml (relative to " in error_of(capsys, "recipes", "quickstart")


def test_it_is_what_the_package_installs():
    assert '[project.scripts]\nmeco-timm = "meco_timm.cli:main"\n' in (ROOT / "pyproject.toml").read_text()


def test_python_has_the_same():
    assert set(meco_timm.__all__) >= {
        "distill",
        "load_recipe",
        "evaluate",
        "predict",
        "report",
        "compare",
        "publish",
        "plan",
    }
    assert all(callable(getattr(meco_timm, name)) for name in meco_timm.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        meco_timm.nonsense  # noqa: B018


def test_plan_says_and_writes_nothing(recipe, tmp_path, capsys):
    path = write(recipe, tmp_path)
    assert "3 classes" in output_of(capsys, "plan", path, "loop.steps=3")
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_train_of_a_run_that_has_ended_says_so(ended, capsys):
    assert main(["train", str(ended.parent / "recipe.yaml")]) == 0
    text = "".join(capsys.readouterr())
    assert "nothing is trained again" in text
    assert "report.html" in text


def test_report_makes_the_page_again(ended, tmp_path, capsys):
    run = shutil.copytree(ended, tmp_path / "run")
    (run / "report.html").unlink()
    assert output_of(capsys, "report", str(run)).strip() == str(run / "report.html")
    assert (run / "report.html").is_file()


def test_compare_takes_runs_and_a_place(ended, tmp_path, capsys):
    other = shutil.copytree(ended, tmp_path / "other")
    assert output_of(capsys, "compare", str(ended), str(other), "-o", str(tmp_path / "x.html")).strip() == str(
        tmp_path / "x.html"
    )


def test_publish_without_leaving_the_machine(ended, capsys):
    text = output_of(capsys, "publish", str(ended), "--repo", "me/student", "--license", "mit", "--dry-run")
    assert "model.safetensors" in text
    assert "warning" not in text


def test_teachers_of_the_zoo_best_first(ended, capsys):
    found = list_teachers(ended.parent / "zoo")
    assert sorted((one.model, one.role) for one in found) == [
        ("test_efficientnet", "student alone"),
        ("test_efficientnet", "teacher"),
        ("test_resnet", "teacher"),
    ]
    assert [one.top1 for one in found] == sorted((one.top1 for one in found), reverse=True)
    assert all(one.steps == 30 and one.image_size == 32 and one.megabytes > 0.1 for one in found)
    text = output_of(capsys, "teachers", str(ended.parent / "zoo"))
    assert all(one.folder in text and f"{one.top1:.2f}" in text for one in found)


def test_no_zoo_an_empty_one_and_one_in_the_making(ended, tmp_path, capsys):
    assert "there is no folder" in error_of(capsys, "teachers", str(tmp_path / "zoo"))
    shutil.copytree(ended.parent / "zoo", tmp_path / "zoo")
    for place in (tmp_path / "zoo").iterdir():
        (place / "made_by.json").write_text("{") if place.is_dir() and place.name[0] != "." else None
    assert list_teachers(tmp_path / "zoo") == []
    assert "There are no trained networks" in output_of(capsys, "teachers", str(tmp_path / "zoo"))


def test_the_notebook_of_the_documentation_runs(recipe, tmp_path, capsys, monkeypatch):
    """As it stands, but with a recipe of seconds and without drawing."""
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "distill(recipe)" in block]
    del recipe["run"]
    recipe |= {"teachers": [{"train": "test_resnet"}], "loop": recipe["loop"] | {"steps": 2}}
    path = write(recipe, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("meco_timm.reporting.drawing.Chart.svg", lambda self: "")
    monkeypatch.setattr("meco_timm.reporting.drawing.Chart.png", lambda self: b"")
    source = recipe["data"]["source"]
    names: dict = {}
    exec(code.replace("recipes/quickstart.yaml", path).replace("recipes/data/digits", source), names)
    assert [recipe.seed for recipe in names["recipes"]] == [0, 1]
    assert names["page"] == Path("compare.html")
    assert names["page"].is_file()
    assert names["row"].top1 == names["tables"][0][-1].top1
    assert "model.safetensors" in capsys.readouterr().out


# Any network on any data set


def test_evaluate_gives_the_tables_row(ended, capsys):
    """Of a teacher in the zoo and of the student, by the recipe's own view of the data."""
    results = read_results(ended)
    row = evaluate(f"local-dir:{ended / 'student'}", Data(**results.recipe["data"]))
    student = results.row("student")
    assert (row.top1, row.parameters, row.multiply_adds) == (student.top1, student.parameters, student.multiply_adds)
    assert row.nll == pytest.approx(student.nll, rel=1e-4)
    assert row.ece == pytest.approx(student.ece, abs=0.01)


def test_evaluate_sees_the_data_as_the_network_asks(ended, capsys):
    """By its name only: size, crop and filter are those of the exported config, which are the recipe's."""
    source = str(ended.parent / "shapes")
    row = evaluate(f"local-dir:{ended / 'student'}", source)
    assert row.nll == pytest.approx(read_results(ended).row("student").nll, rel=1e-4)
    text = output_of(capsys, "evaluate", f"local-dir:{ended / 'student'}", "--data", source)
    assert f"{row.nll:.4f}" in text
    assert "Test split of" in text


def test_evaluate_on_another_split_has_all_of_its_images(ended, capsys):
    data = Data(**read_results(ended).recipe["data"])
    train = evaluate(f"local-dir:{ended / 'student'}", data, split="train")
    test = evaluate(f"local-dir:{ended / 'student'}", load_data(data, 0))
    assert train.nll != test.nll
    output_of(
        capsys,
        "evaluate",
        f"local-dir:{ended / 'student'}",
        "--data",
        data.source,
        "--split",
        "train",
        "--size",
        "64",
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["resnet1888", "--data", "{data}"], "timm has no model 'resnet1888'. Did you mean"),
        (["{student}", "--data", "/no/such/place"], "--data: there is no folder /no/such/place"),
        (["{student}", "--data", "{data}", "--split", "nope"], "--split: 'nope' is not a split"),
        (["{student}", "--data", "{digits}"], "evaluate: the network has 3 classes"),
        (["{student}", "--data", "{data}", "--size", "-3"], "--size"),
        (
            ["{student}", "--data", "{data}", "--classes", "/no/file"],
            "--classes: the class names in /no/file cannot",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_told(ended, capsys, arguments, expected):
    places = {
        "data": ended.parent / "shapes",
        "student": f"local-dir:{ended / 'student'}",
        "digits": ROOT / "recipes/data/digits",
    }
    assert expected in error_of(capsys, "evaluate", *(argument.format(**places) for argument in arguments))


def test_a_class_map_is_taken(ended, capsys, tmp_path):
    names = timm.create_model(f"local-dir:{ended / 'student'}").pretrained_cfg["label_names"]
    (tmp_path / "names.txt").write_text("\n".join(" ".join(name.split()) for name in names))
    command = ["evaluate", f"local-dir:{ended / 'student'}", "--data", str(ended.parent / "shapes")]
    text = error_of(capsys, *command, "--classes", str(tmp_path / "names.txt"))
    assert "lacks 1" in text  # the name with a line separator in it is another in a file of lines


# Plain words


@pytest.mark.parametrize("command", ["report", "publish"])
def test_a_folder_that_is_no_run(tmp_path, capsys, command):
    more = ["--repo", "a/b"] if command == "publish" else []
    assert "is not a run folder" in error_of(capsys, command, str(tmp_path), *more)


def test_what_the_library_refuses_has_its_own_words(capsys):
    assert main(["evalute"]) == 2
    assert "No such command 'evalute'. Did you mean 'evaluate'?" in capsys.readouterr().err
    assert main(["nonsense"]) == 2
    assert "nonsense (relative to" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "Missing argument" in capsys.readouterr().err
    assert main(["compare", "one"]) == 2


PLANNED = [
    ["plan", "RECIPE", "loop.steps=3"],
    ["RECIPE", "--plan", "loop.steps=3"],
    ["--plan", "RECIPE", "loop.steps=3"],
    ["train", "RECIPE", "loop.steps=3", "--plan", "-q"],
    ["-q", "--utilisation", "0.3", "RECIPE", "loop.steps=3", "--plan"],
]


@pytest.mark.parametrize("words", PLANNED, ids=" ".join)
def test_a_recipe_is_a_command_with_options_in_any_position(capsys, monkeypatch, recipe, tmp_path, words):
    path, seen = write(recipe, tmp_path), []
    monkeypatch.setattr(meco_timm, "plan", lambda *given, **named: seen.append(given) or "the plan", raising=False)
    assert output_of(capsys, *(path if word == "RECIPE" else word for word in words)) == "the plan"
    assert seen == [(load_recipe(path, ["loop.steps=3"]), 0.3 if "--utilisation" in words else None)]


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_all_commands_have_one_help(words):
    """`meco-timm`, `python -m meco_timm` and train.py differ in their names only."""
    texts = set()
    for start in (["train.py"], ["-m", "meco_timm"]):
        done = subprocess.run([sys.executable, *start, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == (0 if words else 2)
        texts.add((done.stdout + done.stderr).partition(" [OPTIONS] ")[2])
    assert len(texts) == 1
    assert "train " in texts.pop()


def test_the_version(capsys):
    assert output_of(capsys, "--version") == f"meco_timm {meco_timm.__version__}\n"


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("lr=3", "Did you mean 'loop.lr' or 'discriminators.lr'?"),
        ("epochs=3", "Did you mean 'loop.epochs'?"),
        ("image_size=64", "Did you mean 'data.image_size'?"),
        ("sed=1", "Did you mean 'seed'?"),
    ],
)
def test_a_key_without_its_section_is_suggested_with_it(capsys, override, hint):
    key = override.partition("=")[0]
    assert error_of(capsys, "quickstart", override) == f"command line: {key}: there is no such key. {hint}\n"


def test_an_interrupted_command_says_how_to_continue(capsys, monkeypatch, recipe, tmp_path):
    def interrupt(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(meco_timm, "distill", interrupt, raising=False)
    assert main([write(recipe, tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("\nStopped. Repeat the command to continue.\n")


def test_the_recipe_in_a_run_folder_is_a_recipe(ended):
    assert load_recipe(ended / "recipe.yaml").student.model == "test_efficientnet"
    with pytest.raises(UserError):
        load_recipe(Path("nowhere.yaml"))
