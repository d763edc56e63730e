"""Recipes and data that come with the package: the repository's `recipes/`, in a wheel inside the package."""

import re
from pathlib import Path

from meco_timm.common import UserError, did_you_mean, get_logger, located, write_text

_PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "recipes"  # wheel, else clone
SCHEMA = "recipe.schema.json"

logger = get_logger(__name__)


def shipped_recipes() -> dict[str, Path]:
    """The file of every recipe that comes with the package, by its name."""
    return {file.stem: file for file in sorted(RECIPES.glob("*.yaml"))}


def purpose(file: Path) -> str:
    """What a recipe is for: the first sentence of the comment at its top, after the line for editors."""
    comment = file.read_text(encoding="utf-8").split("\n#\n")[0].splitlines()[1:]
    return re.split(r"(?<=\.) ", " ".join(line.removeprefix("#").strip() for line in comment))[0]


def recipe_file(path: str | Path) -> Path:
    """`path`; where that is no file and has neither folder nor suffix, the recipe of that name in the package."""
    path = Path(path)
    return path if path.is_file() else shipped_recipes().get(str(path), path)


def write_recipe(name: str, folder: Path) -> Path:
    """Write the package's recipe `name` into `folder`, to be edited; its own command then names that file.

    Raises:
        UserError: there is no recipe of that name, or the folder has a file named so.
    """
    recipes, target = shipped_recipes(), folder / f"{name}.yaml"
    if name not in recipes:
        hint = did_you_mean(name, [*recipes]) or f" The recipes are {', '.join(recipes)}."
        raise UserError(f"recipes: there is no {name!r}.{hint}")
    if target.exists():
        raise UserError(f"recipes: {located(target)} exists already. Rename it, or run the command in another folder.")
    text = recipes[name].read_text(encoding="utf-8")
    changes = {
        f"$schema={SCHEMA}": f"$schema={RECIPES / SCHEMA}",
        "recipes/launch/": f"{RECIPES}/launch/",
        f"train.py recipes/{name}.yaml": f"-m meco_timm {name}.yaml",
    }
    for old, new in changes.items():
        text = text.replace(old, new)
    write_text(target, text)
    return target


def shipped_data(path: str) -> str:
    """`path`; of `recipes/…`, where the working directory has no such folder, the one that comes with the package.

    So a recipe of the package runs in any folder. A message names the folder that is used.
    """
    parts = Path(path).parts
    shipped = RECIPES.joinpath(*parts[1:])
    if parts[:1] != ("recipes",) or Path(path).exists() or not shipped.is_dir():
        return path
    logger.info("data.source: there is no folder %s; the package's own is used: %s", located(path), shipped)
    return str(shipped)
