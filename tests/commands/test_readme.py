"""What people read is true: recipes parse, commands and files exist, words are those of the schema."""

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from conftest import ROOT

from meco_timm import load_recipe
from meco_timm.cli import main
from meco_timm.recipe.recipe import Recipe
from meco_timm.recipe.schema import schema

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "launch")
ROWS = ("true ensemble", "student alone", "student")


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for named, block in fenced if named == language]


def commands(text: str = README) -> list[list[str]]:
    """Every command of the bash blocks, in words; `a && b` are two."""
    lines = [line for block in blocks("bash", text) for line in block.splitlines()]
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [command for command in words if command]


def trainings(text: str = README) -> list[list[str]]:
    """The arguments of each `train.py` that is called."""
    return [words[words.index("train.py") + 1 :] for words in commands(text) if "train.py" in words]


# Recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_parses(path):
    assert load_recipe(path).teachers


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_begins_with_its_own_command_and_what_it_needs(path):
    text = path.read_text(encoding="utf-8")
    head = text[: text.index("\n\n")]
    assert head.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    command = shlex.split(re.search(r"^# command +(.+)$", head, re.MULTILINE)[1])  # type: ignore[index]
    recipe, *overrides = command[command.index("train.py") + 1 :]
    assert ROOT / recipe == path
    load_recipe(path, overrides)
    assert re.search(r"^# hardware +\S", head, re.MULTILINE)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_data_that_ship_with_the_repository_are_there(path):
    source = load_recipe(path).data.source
    if source.startswith("recipes/"):
        assert (ROOT / source).is_dir()


def test_the_schema_for_editors_is_the_recipes():
    """When this fails: python -m meco_timm.recipe.schema > recipes/recipe.schema.json"""
    assert (ROOT / "recipes/recipe.schema.json").read_text(encoding="utf-8") == schema()


# Commands and examples


def test_the_main_command_is_two_lines():
    assert commands()[0] == ["pip", "install", "."]
    assert commands()[1] == ["accelerate", "launch", "train.py", "recipes/quickstart.yaml"]


@pytest.mark.parametrize("arguments", trainings(), ids=lambda words: " ".join(words)[:60])
def test_every_command_names_a_recipe_and_overrides_that_exist(arguments):
    recipe, *overrides = arguments
    load_recipe(ROOT / recipe, [word for word in overrides if not word.startswith("--")])


@pytest.mark.parametrize("words", [w for w in commands() if w[0] == "meco-timm"], ids=lambda words: words[1])
def test_every_console_command_and_its_options_exist(words, capsys):
    assert main([words[1], "--help"]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in words[2:] if word.startswith("--"))


def test_the_test_command_uses_what_the_extra_installs():
    dev = re.search(r"^dev = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    extra = set(re.findall(r'"([\w-]+)', dev[1]))  # type: ignore[index]
    tools = {"ruff", "mypy", "pytest"}
    assert tools <= {words[0] for words in commands()}
    assert {*tools, "pytest-xdist"} <= extra


def test_the_same_commands_everywhere():
    """README, CONTRIBUTING and what CI runs from nothing."""
    (test,) = [line for block in blocks("bash") for line in block.splitlines() if "pytest" in line]
    main = "accelerate launch train.py recipes/quickstart.yaml"
    ci = (ROOT / ".ci/run").read_text().splitlines()
    assert test in CONTRIBUTING.splitlines()
    assert test in ci
    assert main in ci


@pytest.mark.parametrize("text", blocks("yaml"), ids=lambda text: text.splitlines()[0])
def test_every_example_of_a_recipe_parses(tmp_path, text):
    (tmp_path / "example.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "example.yaml").teachers


@pytest.mark.parametrize("text", blocks("python"), ids=lambda text: text.splitlines()[0])
def test_every_example_in_python_names_what_exists(text):
    names = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            names |= {alias.name: getattr(module, alias.name) for alias in node.names}
    assert names
    for node in ast.walk(ast.parse(text)):
        chain = ast.unparse(node).split(".") if isinstance(node, ast.Attribute) else []
        if all(part.isidentifier() for part in chain) and chain and chain[0] in names:
            value = names[chain[0]]
            for attribute in chain[1:]:
                value = getattr(value, attribute)


def test_the_sentence_in_python_names_what_exists():
    (sentence,) = re.findall(r"`(from meco_timm import .+?)`", README)
    statements = ast.parse(sentence).body
    assert isinstance(statements[0], ast.ImportFrom)
    module = importlib.import_module("meco_timm")
    assert all(callable(getattr(module, alias.name)) for alias in statements[0].names)
    assert (ROOT / re.search(r'load_recipe\("(.+?)"', sentence)[1]).is_file()  # type: ignore[index]


# The map, the table, the words


def drawn_tree() -> list[str]:
    """The files that the README's tree names, each a path from the root."""
    (tree,) = [block for block in blocks("") if block.startswith("train.py ")]
    found, folder = [], ""
    for line in tree.splitlines():
        indent, names = re.match(r"( *)((?:[\w./]+(?:, )?)+)", line).groups()  # type: ignore[union-attr]
        for name in names.split(", "):
            found.append(f"{folder}{name}" if indent else name)
            if name.endswith("/") and not indent:
                folder = name
    return found


@pytest.mark.parametrize("name", drawn_tree())
def test_every_line_of_the_tree_is_there(name):
    path = ROOT / name
    assert path.is_dir() if name.endswith("/") else path.is_file()


def test_every_room_is_in_the_tree():
    rooms = {f"meco_timm/{path.parent.name}/" for path in (ROOT / "meco_timm").glob("*/__init__.py")}
    modules = {f"meco_timm/{path.name}" for path in (ROOT / "meco_timm").glob("*.py")} - {"meco_timm/__init__.py"}
    assert rooms | modules <= set(drawn_tree())


def test_every_room_of_the_picture_is_there():
    (picture,) = [block for block in blocks("") if block.startswith("recipe.yaml ")]
    names = set(re.findall(r"\b(\w+)/", picture))
    assert len(names) > 5
    assert all((ROOT / "meco_timm" / name).is_dir() for name in names)


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_links_lead_somewhere(text):
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_readme_shows_the_quickstarts_own_table():
    names = [teacher.model for teacher in load_recipe(ROOT / "recipes/quickstart.yaml").teachers]
    (table,) = [block for block in blocks("") if "top-1" in block]
    for name in (*names, *ROWS):
        assert re.search(rf"^ *{name} +\d", table, re.MULTILINE), name


def field_of(key: str) -> Any:
    """The type of a dotted key."""
    section: Any = Recipe
    for name in key.split("."):
        section = section.model_fields[name].annotation
    return section


def test_the_words_of_the_table_of_keys_are_the_schemas():
    lines = re.findall(r"^\| (`.+?) \| (.+) \|$", README, re.MULTILINE)
    assert len(lines) >= 4
    for keys, told in lines:
        words = [word for word in re.findall(r"`([^`]+)`", told) if ":" not in word]
        for key in re.findall(r"`([^`]+)`", keys):
            kind = field_of(key)
            if get_origin(kind) is Literal:
                assert set(words) == set(get_args(kind)), key


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_keys_and_files_in_passing_exist(text):
    """`data.labelled: 300` and `loop.lr=5e-4` are keys with a value that fits; `losses.py` is a module."""
    for code in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if match := re.fullmatch(r"([a-z]+(?:\.[a-z_]+)+)(?:(?:=|: )(\S+))?", code):
            key, value = match.groups()
            if key.endswith(".py"):
                assert (ROOT / key).is_file() or list((ROOT / "meco_timm").rglob(key)), key
            elif key.split(".")[0] in Recipe.model_fields:
                field_of(key)
                overrides = [f"{key}={value}"] if value else []
                load_recipe(ROOT / "recipes/quickstart.yaml", overrides)


def test_no_file_is_larger_than_it_should_be():
    """The data that ship with the repository stay well under 1 MiB."""
    assert sum(path.stat().st_size for path in Path(ROOT / "recipes").rglob("*") if path.is_file()) < 2**20
