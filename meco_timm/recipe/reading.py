"""Read a recipe: its file, overrides from the command line, and errors that name file, line and key."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from meco_timm.common import UserError, did_you_mean, located, short_name
from meco_timm.recipe.hub_recipe import HUB, read_hub_recipe
from meco_timm.recipe.recipe import Recipe
from meco_timm.recipe.sections import WATCHING, Loop
from meco_timm.recipe.shipped import recipe_file, shipped_recipes
from meco_timm.recipe.yaml_text import Path_, dump_yaml, parse_yaml

COMMAND_LINE = "command line"
# Keys, and words of a key, that earlier versions had and no experiment earned; with what to do instead.
WEAKENED = "no way of weakening the discriminators paid. Leave it out; discriminators.weight says how much they count."
DROPPED = {
    "alignment.projection": "learned maps are those of method projection. Leave it out, or write that method.",
    "discriminators.condition": "it brought nothing. Leave it out.",
    "discriminators.form": "it follows from alignment.method: maps are compared by position, vectors as a whole.",
    "discriminators.r1": WEAKENED,
    "discriminators.smoothing": WEAKENED,
    "discriminators.spectral_norm": WEAKENED,
    "zoo.scope": "all processes use the same teacher in a step. Leave it out.",
    "zoo.sampling: random_image": "it brought nothing, at a ninth of the speed on a GPU. Write random or average.",
}
# By the type of a validation error and that of the value.
HINTS: dict[tuple[str, type], str] = {("bool_type", str): " Write true or false."}
HINTS |= {(kind, str): " Write it in decimal digits, without quotes." for kind in ("int_type", "float_type")}
HINTS |= {("string_type", kind): " Write it in quotes: '{}'." for kind in (int, float)}
BRANCH = r"float|constrained-float|list\[constrained-float\]|literal\[.*\]"  # of a value that may be of several types


def read_recipe_text(path: str | Path) -> str:
    """The file's text.

    Raises:
        UserError: it cannot be read or is empty.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = did_you_mean(path, near) or did_you_mean(path.stem, [*shipped_recipes()])
        raise UserError(f"{located(path)}: there is no such recipe.{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a recipe: {error}") from None
    if not text.strip():
        raise UserError(f"{path}: the recipe is empty. Start from one that `meco-timm recipes` lists.")
    return text


def _override(raw: dict[str, Any], lines: dict[Path_, Any], argument: str) -> None:
    """Set `a.b=value` in `raw`; list items are numbers, as in `teachers.0.size=64`."""
    dotted, equals, text = argument.partition("=")
    if not equals or not dotted:
        raise UserError(f"{COMMAND_LINE}: {argument!r} is not an override. Write key=value, for example loop.lr=5e-4.")
    if re.search(r"(^|\s)#", re.sub(r"'[^']*'|\"[^\"]*\"", "", text)):
        raise UserError(f"{COMMAND_LINE}: {dotted}: what follows # is a comment. Write {dotted}=\"'{text}'\".")
    value, _ = parse_yaml(text, f"{COMMAND_LINE}: {dotted}")
    keys: tuple[Any, ...] = tuple(int(key) if key.isdecimal() else key for key in dotted.split("."))
    target: Any = raw
    for key in keys[:-1]:
        if isinstance(target, list) and isinstance(key, int) and key < len(target):
            if isinstance(target[key], str):
                target[key] = {"model": target[key]}
            target = target[key]
        elif isinstance(target, dict):
            target[key] = target.get(key) or {}
            if isinstance(target[key], str) and key == "student":
                target[key] = {"model": target[key]}
            target = target[key]
        else:
            break
    if (isinstance(target, list) and isinstance(keys[-1], int) and keys[-1] < len(target)) or isinstance(target, dict):
        target[keys[-1]] = value
    else:
        raise UserError(f"{COMMAND_LINE}: {dotted}: the recipe has no such entry to change.")
    others: Any = {"epochs", "steps", "min_steps"} - {keys[-1]} if keys[-1] in ("epochs", "steps") else ()
    for other in others:  # `loop.epochs=5` takes the place of the recipe's `steps`; two overrides exclude each other
        if value is not None and other in target and lines.get((*keys[:-1], other)) != COMMAND_LINE:
            del target[other]
    for stale in [path for path in lines if path[: len(keys)] == keys]:
        del lines[stale]
    for depth in range(1, len(keys) + 1):
        lines.setdefault(keys[:depth], COMMAND_LINE)


def _section_at(loc: Path_) -> type[BaseModel] | None:
    """The schema of the section that holds the last key of `loc`."""
    section: Any = Recipe
    for key in loc[:-1]:
        if isinstance(key, str) and isinstance(section, type) and issubclass(section, BaseModel):
            field = section.model_fields.get(key)
            section = field.annotation if field else None
        while not isinstance(section, type) or not issubclass(section, BaseModel):
            inner = [a for a in get_args(section) if a is not type(None)]
            if not inner:
                return None
            section = inner[0]
    return section


def _keys_named(name: str) -> list[str]:
    """The keys of sections that have this name, as `loop.lr`; those of `loop` first."""
    sections = sorted(Recipe.model_fields, key=lambda section: section != "loop")
    return [f"{section}.{name}" for section in sections if _is_key(section, name)]


def _is_key(section: str, name: str) -> bool:
    model = _section_at((section, name))
    return model is not None and model is not Recipe and name in model.model_fields and section != "teachers"


def _message(problem: Any) -> str:
    """Message of one validation error: what is wrong, what to write instead."""
    loc, kind, value = problem["loc"], problem["type"], problem["input"]
    key = ".".join(map(str, loc))
    if kind in ("extra_forbidden", "literal_error") and (why := DROPPED.get(key) or DROPPED.get(f"{key}: {value}")):
        return f"{'this key' if key in DROPPED else value} was dropped: {why}"
    if kind == "extra_forbidden":
        section = _section_at(loc)
        keys = list(section.model_fields) if section else []
        elsewhere = _keys_named(str(loc[0])) if len(loc) == 1 else []
        hint = f" Did you mean {' or '.join(map(repr, elsewhere))}?" if elsewhere else did_you_mean(loc[-1], keys)
        return f"there is no such key.{hint}" if hint else f"there is no such key. The keys here: {', '.join(keys)}."
    if kind == "missing":
        return "this key is required and missing."
    if kind == "literal_error":
        words = re.findall(r"'([^']+)'", problem["ctx"]["expected"])
        hint = did_you_mean(value, words)
        return f"{value!r} is not a value of this key: {', '.join(words)}.{hint}"
    if kind == "too_short" and loc == ("teachers",):
        return "the list of teachers is empty. Name at least one timm model, or write `- train: resnet18`."
    message = problem["msg"].removeprefix("Value error, ")
    hint = HINTS.get((kind, type(value)), "").format(value)
    return f"{message[0].lower()}{message[1:]}" + ("." if isinstance(value, dict) else f", but it is {value!r}.{hint}")


def _located(problem: Any, name: str, lines: dict[Path_, Any]) -> str:
    loc = tuple(part for part in problem["loc"] if not re.fullmatch(BRANCH, str(part)))
    named = re.match(r"Value error, ([a-z0-9_.]+)\b", problem["msg"])
    words = named[1].split(".") if not loc and named else loc
    path: Path_ = tuple(int(word) if str(word).isdecimal() else word for word in words)
    while path and path not in lines:
        path = path[:-1]
    line = COMMAND_LINE if _overridden(path, problem["msg"], lines) else lines.get(path)
    where = COMMAND_LINE if line == COMMAND_LINE else f"{name}:{line}" if line else name
    key = ".".join(map(str, loc))
    return f"{where}: {key}: {_message(problem)}" if key else f"{where}: {_message(problem)}"


def _overridden(path: Path_, message: str, lines: dict[Path_, Any]) -> bool:
    """Whether a message about the section at `path` names a key in it that the command line has set."""
    words = set(re.findall(r"\w+", message))
    return any(
        line == COMMAND_LINE and place[: len(path)] == path and (place == path or place[-1] in words)
        for place, line in lines.items()
    )


def check_recipe(raw: dict[str, Any], name: str, lines: dict[Path_, Any] | None = None) -> Recipe:
    """The recipe with the keys of `raw`. `name`: where they are written, `lines`: on which line, for messages.

    Raises:
        UserError: one line per error, with key and what to write instead.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        problems = [_located(problem, name, lines or {}) for problem in error.errors()]
        raise UserError("\n".join(dict.fromkeys(problems))) from None


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read the recipe in the file `path`, changed by `key.sub=value` overrides.

    `path` may be the name of a recipe that comes with the package, as `quickstart`; a file of that name goes first. Or
    it is `hf-hub:owner/name`, a published student whose run is repeated.

    Raises:
        UserError: one line per error, with file, line, key, and what to write instead.
    """
    raw, path, lines = read_keys(path)
    for argument in overrides:
        _override(raw, lines, argument)
    return with_run(check_recipe(raw, str(path), lines), path.stem)


def read_keys(path: str | Path) -> tuple[dict[str, Any], Path, dict[Path_, Any]]:
    """(the keys of a recipe's file before they are checked, the file, the line of each key).

    Raises:
        UserError: there is no such file, or it is no mapping.
    """
    path = recipe_file(path)
    text = read_hub_recipe(str(path)) if str(path).startswith(HUB) else read_recipe_text(path)
    raw, lines = parse_yaml(text, str(path))
    if raw is None:
        raise UserError(f"{path}: the recipe is empty. Start from one that `meco-timm recipes` lists.")
    if not isinstance(raw, dict):
        raise UserError(f"{path}:1: a recipe is a mapping of sections (data:, teachers:, student:, …), not a list.")
    return raw, path, lines


def with_run(recipe: Recipe, name: str) -> Recipe:
    """The recipe with a run folder, where it names none: `runs/NAME-HASH`, with a hash of the recipe."""
    if recipe.run is None:
        recipe.run = f"runs/{name}-{fingerprint(recipe_key(recipe))}"
    return recipe


def headline(recipe: Recipe) -> str:
    """The recipe in a line: which teachers, which student, where."""
    teachers = ", ".join(teacher.model for teacher in recipe.teachers)
    return f"{teachers} → {recipe.student.model}, on {short_name(recipe.data.source)}, in {recipe.run}"


def written_run(recipe: Recipe) -> str | None:
    """The run folder, unless it is that of `with_run`."""
    return None if recipe.run is None or recipe.run.endswith(fingerprint(recipe_key(recipe))) else recipe.run


def recipe_key(recipe: Recipe) -> dict[str, Any]:
    """The keys of a recipe that its result depends on: without folders, trackers, and how often to log and save.

    `zoo.loop` is part of the loops of the teachers that are trained; the others have none.
    """
    elsewhere: dict[str, Any] = {"run": True, "trackers": True, "publish": True}
    elsewhere["data"] = {"workers", "verify", "cache", "augment_on"}
    elsewhere["teachers"] = {"__all__": {"trust"}}
    key = recipe.model_dump(mode="json", exclude=elsewhere)
    loops = [recipe.loop, *(teacher.loop for teacher in recipe.teachers)]
    for place, loop in zip((key, *key["teachers"]), loops, strict=True):
        place["loop"] = loop_key(loop)
        if not place.get("train", True):
            del place["loop"]
    if (made := recipe.student.backbone) is not None:
        key["student"]["backbone"]["loop"] = loop_key(made.loop)
        for teacher in key["student"]["backbone"]["teachers"]:
            del teacher["loop"]
    else:
        del key["student"]["backbone"]
    for name in ("folder", "resident", "require", "loop"):
        del key["zoo"][name]
    key["store"]["folder"] = key["store"]["folder"] is not None  # the result does not depend on where it is
    return key


def saved_key(file: Path) -> dict[str, Any]:
    """As `recipe_key`, of a recipe that `to_yaml` wrote.

    Raises:
        UserError: it is no recipe of this version.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a finished run is shown faster where libyaml is
    return recipe_key(check_recipe(yaml.load(file.read_text(encoding="utf-8"), loader), str(file)))


def loop_key(loop: Loop, without: set[str] | None = None) -> dict[str, Any]:
    """The keys of a loop that its result depends on, `without` some."""
    key = loop.model_dump(mode="json", exclude={*WATCHING, *(without or ())})
    return key | {"channels_last": loop.channels_last is True}  # where `auto` is true, it changes the rounding only


def fingerprint(value: Any) -> str:
    """Hash of a JSON value: 8 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=4).hexdigest()


def changed_keys(old: Any, new: Any, path: str = "") -> list[str]:
    """The dotted keys in which two nested values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            hit for key in keys for hit in changed_keys(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [hit for i, (one, other) in pairs for hit in changed_keys(one, other, f"{path}.{i}")]
    return [] if old == new else [path]


def to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML with all defaults; `load_recipe` reads it as the same recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))
