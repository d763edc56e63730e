"""The rooms: each imports only from those below it, and says what comes in, what goes out and what it never does."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

ROOMS = sorted(path.parent.name for path in (ROOT / "meco_timm").glob("*/__init__.py"))


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the package in `root`."""
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {script}"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "meco_timm", tmp_path / "meco_timm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_that_lead_up_are_refused_and_no_others(copy):
    wrong = [("common", "recipe"), ("distillation", "zoo"), ("zoo", "reporting")]
    for room, upper in wrong:
        with (copy / "meco_timm" / room / "__init__.py").open("a") as file:
            file.write(f"import meco_timm.{upper}\n")
    done = lint_imports(copy)
    assert done.returncode == 1
    found = re.findall(r"meco_timm\.(\w+) is not allowed to import meco_timm\.(\w+)", done.stdout)
    assert sorted(found) == sorted(wrong)


def test_a_room_that_the_contract_does_not_name_is_refused(copy):
    (copy / "meco_timm/attic").mkdir()
    (copy / "meco_timm/attic/__init__.py").touch()
    assert lint_imports(copy).returncode == 1


MAY_KNOW_THE_RECIPE = {"__init__", "__main__", "cli", "pipeline", "planning", "recipe", "runs", "task"}


def importers(name: str) -> set[str]:
    """The rooms and modules at the top in which a name is imported, also only for types."""
    package, found = ROOT / "meco_timm", set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
                found.add(file.relative_to(package).parts[0].removesuffix(".py"))
    return found


def test_rooms_take_sections_and_not_the_recipe():
    assert importers("Recipe") <= MAY_KNOW_THE_RECIPE
    assert {"planning", "pipeline"} <= importers("Recipe")  # the search finds what is there
    assert "zoo" in importers("Teacher")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is(room):
    text = (ROOT / "meco_timm" / room / "__init__.py").read_text()
    assert text.startswith('"""')
    assert "\nIn" in text
    assert "Out: " in text or "In and out: " in text
    assert "\nNever: " in text
