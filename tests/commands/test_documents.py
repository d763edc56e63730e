"""README, CONTRIBUTING and docs/*.md are true: commands parse, examples load, links, keys and words exist."""

import argparse
import ast
import importlib
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT
from helpers.documents import PAGES, commands, fenced, inline, inline_commands, read
from torch.distributed.run import get_args_parser

from meco_timm import load_recipe
from meco_timm.cli import app
from meco_timm.recipe.recipe import Recipe
from meco_timm.recipe.schema import reference

EXTRA = re.search(r"^dev = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]  # type: ignore[index]
TOOLS = {"lint-imports": "import-linter"}  # commands named otherwise than their package
GENERATED = "docs/recipe.md"
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def each(found: Any, name: Any) -> Any:
    """Parameters of (page, one thing found on it), for every page."""
    cases = [pytest.param(page, one, id=f"{page}: {name(one)}"[:100]) for page in PAGES for one in found(page)]
    return pytest.mark.parametrize(("page", "found"), cases)


# Commands


class _Parsed(Exception):
    """Raised where a command would begin its work."""


def check_recipe(words: list[str]) -> None:
    """RECIPE, overrides and options of train.py."""
    given = COMMANDS["train"].make_context("train", list(words)).params
    file = ROOT / given["recipe"]
    load_recipe(file if file.is_file() else given["recipe"], given["overrides"] or [])


def check_module(words: list[str]) -> None:
    """`python -m benchmarks.NAME …`, up to where its arguments have been parsed."""
    assert words[1] == "-m"
    module = importlib.import_module(words[2])
    if ">" in words:  # the two generated files, which tests compare with what is generated
        written = words.index(">")
        assert words[3:written] in ([], ["--docs"])
        assert (ROOT / words[written + 1]).is_file()
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser) -> None:
        parse(parser, words[3:])
        raise _Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(_Parsed):
            module.main()


def check_python(words: list[str]) -> None:
    """`python train.py …`, `python -m meco_timm …`, or another module."""
    if words[1] == "train.py":
        check_recipe(words[2:])
    elif words[2] == "meco_timm":
        check_recipe(words[3:])
    else:
        check_module(words)


def check_slurm(words: list[str]) -> None:
    script = words.index("recipes/launch/slurm.sh")
    lines = (ROOT / words[script]).read_text(encoding="utf-8")
    options = [word for word in words[1:script] if word.startswith("--")]
    assert all(f"#SBATCH {option}=" in lines for option in options)
    check_recipe(words[script + 1 :])


def check_console(words: list[str]) -> None:
    """`meco-timm COMMAND …` or `meco-timm RECIPE …`, parsed and not run."""
    if words[1].endswith(".yaml"):
        words = [words[0], "train", *words[1:]]
    COMMANDS[words[1]].make_context(words[1], words[2:])


def check_launched(words: list[str]) -> None:
    """train.py or `-m meco_timm` under `accelerate launch` or torchrun, whose own options their parsers read."""
    script = words.index("train.py" if "train.py" in words else "meco_timm")
    if words[0] == "accelerate":
        config = launch_command_parser().parse_args(words[2:]).config_file
        assert config is None or (ROOT / config).is_file()
    else:
        get_args_parser().parse_args(words[1:])
    if len(words) > script + 1:
        check_recipe(words[script + 1 :])


def check_tool(words: list[str]) -> None:
    assert TOOLS.get(words[0], words[0]) in re.findall(r'"([\w-]+)', EXTRA)


def check_pip(words: list[str]) -> None:
    assert words[1:] in (["install", "."], ["install", "-e", ".[dev]"], ["install", "-e", ".[export]"])


def check_hub(words: list[str]) -> None:
    assert words == ["hf", "auth", "login"]
    assert "hf" in {script.name for script in entry_points(group="console_scripts")}


def check_export(words: list[str]) -> None:
    assert all(re.fullmatch(r"[A-Z_]+=\w+", word) for word in words[1:])


CHECKS = {
    "accelerate": check_launched,
    "torchrun": check_launched,
    "sbatch": check_slurm,
    "meco-timm": check_console,
    "python": check_python,
    "pip": check_pip,
    "hf": check_hub,
    "export": check_export,
    **dict.fromkeys(("ruff", "mypy", "lint-imports", "pytest"), check_tool),
    "git": lambda words: words[1] == "clone" or pytest.fail(words[1]),
    "find": lambda words: check_console(words[words.index("|") + 1 :]),
    "cd": lambda words: len(words) == 2 or pytest.fail(str(words)),
    "bash": lambda words: (ROOT / words[1]).is_file() or pytest.fail(words[1]),
}


@each(commands, " ".join)
def test_every_command_parses(page, found):
    CHECKS[found[0]](found)


@each(inline_commands, " ".join)
def test_every_command_in_passing_exists(page, found):
    if found[0] == "train.py":  # an option, without a recipe
        check_recipe(["recipes/quickstart.yaml", *found[1:]])
    elif found[0] != "meco-timm":
        CHECKS[found[0]](found)
    elif found[1] != "--help":
        assert found[1] in COMMANDS


# Examples


@each(lambda page: fenced(page, "yaml"), lambda text: text.splitlines()[0])
def test_every_example_of_a_recipe_parses(tmp_path, page, found):
    (tmp_path / "example.yaml").write_text(found, encoding="utf-8")
    assert load_recipe(tmp_path / "example.yaml").teachers


@each(lambda page: fenced(page, "python"), lambda text: text.splitlines()[0])
def test_every_example_in_python_names_what_exists(page, found):
    names = {}
    for node in ast.walk(ast.parse(found)):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            names |= {alias.name: getattr(module, alias.name) for alias in node.names}
    assert names
    for node in ast.walk(ast.parse(found)):
        chain = ast.unparse(node).split(".") if isinstance(node, ast.Attribute) else []
        if all(part.isidentifier() for part in chain) and chain and chain[0] in names:
            value = names[chain[0]]
            for attribute in chain[1:]:
                value = getattr(value, attribute)


def test_the_sentence_in_python_names_what_exists():
    (sentence,) = re.findall(r"`(from meco_timm import .+?)`", read("docs/api.md"))
    statements = ast.parse(sentence).body
    assert isinstance(statements[0], ast.ImportFrom)
    module = importlib.import_module("meco_timm")
    assert all(callable(getattr(module, alias.name)) for alias in statements[0].names)
    check_recipe([re.search(r'load_recipe\("(.+?)"', sentence)[1]])  # type: ignore[index]


def test_every_public_function_is_described():
    public = set(importlib.import_module("meco_timm").__all__)
    assert {name for name in public if f"`{name}`" not in read("docs/api.md")} <= {"UserError"}


# Links, keys, words


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", read(page)):
        target, _, anchor = link.partition("#")
        path = (PAGES[page].parent / target).resolve() if target else PAGES[page]
        assert link.startswith("https://") or path.exists(), link
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), link


def test_the_page_of_keys_is_the_recipes():
    """When this fails: python -m meco_timm.recipe.schema --docs > docs/recipe.md"""
    assert read(GENERATED) == reference()


def field_of(key: str) -> Any:
    """A dotted key's field in the schema."""
    section, field = Recipe, None
    for name in key.split("."):
        field = section.model_fields[name]
        kinds = (field.annotation, *get_args(field.annotation))
        section = next((kind for kind in kinds if hasattr(kind, "model_fields")), Recipe)
    return field


def test_the_words_of_the_method_are_the_schemas():
    lines = re.findall(r"^\| `(\w+\.\w+)` \| (.+) \|$", read("docs/method.md"), re.MULTILINE)
    assert len(lines) >= 5
    for key, meaning in lines:
        field = field_of(key)
        assert get_origin(field.annotation) is Literal, key
        assert set(re.findall(r"`([^`]+)`", meaning)) == set(get_args(field.annotation)), key
        assert re.findall(r"`(\w+)` \(default", meaning) == [field.default], key


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED])
def test_keys_and_files_in_passing_exist(page):
    """`data.labelled: 300` and `loop.lr=5e-4` are keys with a value that fits; `distiller.py` is a module."""
    for code in inline(page):
        if match := re.fullmatch(r"([a-z]+(?:\.[a-z_]+)+)(?:(?:=|: )(\S+))?", code):
            key, value = match.groups()
            if key.split(".")[0] in Recipe.model_fields:
                field_of(key)
                repo = ["publish.repo=you/student"] if key.startswith("publish.") else []
                load_recipe(ROOT / "recipes/quickstart.yaml", [*repo, f"{key}={value}"] if value else [])
        if re.fullmatch(r"[\w/]+\.py", code):
            assert (ROOT / code).is_file() or list((ROOT / "meco_timm").rglob(Path(code).name)), code
        if re.fullmatch(r"recipes/[\w./]+", code):
            assert (ROOT / code).exists(), code
