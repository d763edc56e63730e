"""The README: one page, with the main commands, the quickstart's table and the map of the rooms."""

import json
import re

import pytest
from conftest import ROOT
from helpers.documents import PAGES, commands, fenced, read

README = read("README.md")
ROWS = ("true ensemble", "student alone", "student")


def test_it_is_one_page():
    assert len(README.splitlines()) <= 150


def test_it_begins_with_a_clone_and_two_commands():
    clone, enter, *two = commands("README.md")[:4]
    assert (clone[:2], enter) == (["git", "clone"], ["cd", clone[-1]])
    assert two == [["pip", "install", "."], ["python", "train.py", "recipes/quickstart.yaml"]]


def test_the_test_command_uses_all_tools():
    tools = {"ruff", "mypy", "lint-imports", "pytest"}
    assert tools <= {words[0] for words in commands("README.md")}


def test_the_same_commands_everywhere():
    """README, CONTRIBUTING and what CI runs from nothing."""
    (test,) = [line for block in fenced("README.md", "bash") for line in block.splitlines() if "pytest" in line]
    ci = (ROOT / ".ci/run").read_text().splitlines()
    assert test in read("CONTRIBUTING.md").splitlines()
    assert set(test.split(" && ")) <= set(ci)
    assert any(line.removeprefix("nice ").startswith("python train.py recipes/quickstart.yaml ") for line in ci)


def test_it_leads_to_every_page():
    pages = set(PAGES) - {"README.md"}
    assert len(pages) >= 9
    assert {page for page in pages if f"]({page})" not in README} == set()


def test_its_first_table_is_the_quickstarts():
    """Four rows; the multiply-adds do not depend on the processor and are those of the committed run."""
    table = re.findall(r"^\| (.+) \| [\d.*]+ \| ([\d.]+) \|$", README, re.MULTILINE)
    assert [re.match(r"[*]*([\w ]+)", name)[1] for name, _ in table] == ["best of the three teachers", *ROWS]  # type: ignore[index]
    run = {row["name"]: row for row in json.loads((ROOT / "docs/quickstart/table.json").read_text())["rows"]}
    assert [float(macs) for _, macs in table] == [
        round(run[name]["multiply_adds"] / 1e6, 1) for name in ("test_resnet", *ROWS)
    ]


# The map


def drawn_tree() -> list[str]:
    """The files that the README's tree names, each a path from the root."""
    (tree,) = [block for block in fenced("README.md", "") if block.startswith("train.py ")]
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
    (picture,) = [block for block in fenced("docs/method.md", "") if block.startswith("recipe.yaml ")]
    names = set(re.findall(r"\b(\w+)/", picture))
    assert len(names) > 5
    assert all((ROOT / "meco_timm" / name).is_dir() for name in names)
