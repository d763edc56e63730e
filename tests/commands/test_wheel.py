"""The wheel: all that the package needs is in it. That its quickstart runs in an empty folder is tested by .ci/run."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import meco_timm


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs, made from the repository's files as CI makes it, offline."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("meco_timm", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob(f"meco_timm-{meco_timm.__version__}-*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name.as_posix(): path.read_bytes() for name, path in found.items() if "__pycache__" not in name.parts}


def test_it_has_every_file_of_the_package_and_the_recipes(installed):
    recipes = {f"recipes/{name}": content for name, content in files(ROOT / "recipes").items()}
    assert recipes.pop("recipes/data/make_digits.py")  # how the digits were made; needs scikit-learn
    assert files(installed / "meco_timm") == files(ROOT / "meco_timm") | recipes
