"""Random recipes: made valid from the schema, then bent in none, one or two places.

A change is a value at the edge of a key's type, a value of another type, an unknown key, another network or source, one
of YAML's own traps, an override of the command line, or bytes that are no text.
"""

import os
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hypothesis import strategies as st
from PIL import Image

from meco_timm.common.errors import UserError
from meco_timm.data import known_data, load_data
from meco_timm.recipe import Recipe, load_recipe
from meco_timm.recipe.reading import to_yaml

SCHEMA: dict[str, Any] = Recipe.model_json_schema()
NETWORKS = ("test_vit", "test_resnet", "test_efficientnet", "test_convnext", "test_byobnet")
OTHERS = ("test_efficientnet.r160_in1k", "resnet18", "nosuch", "", "local-dir:nowhere", "hf-hub:a/b", "hf-hub:",
          "vit_tiny_patch16_224", "test_vit@x", "ü", "vit_small_patch14_dinov2.lvd142m")  # fmt: skip
SOURCES = ("data", "./data", "data/", "nowhere", "recipe.yaml", "owner/name", "~", "~/x", "/", ".", "", "a\0b",
           "data/a", "zalando-datasets/fashion_mnist")  # fmt: skip
VALID: dict[str, tuple[Any, ...]] = {  # values of keys of which the schema does not say what makes sense
    "source": ("data",), "unlabelled": (None, "data"), "model": NETWORKS, "weights": (None,), "classes": (None,),
    "optimizer": ("adamw", "sgd", "lamb", "muon"), "auto_augment": (None, "3a", "rand-m9-mstd0.5"),
    "subset": (None,), "image_column": (None, "image"), "label_column": (None, "label"), "train_split": ("train",),
    "test_split": (None,), "repo": ("owner/name",), "license": (None, "apache-2.0"), "revision": (None, "main"),
    "card": (None,), "folder": (None, "zoo"), "run": (None, "run"), "trackers": ([], ["tensorboard"]),
    "length": (256, 1024), "image_size": (32, 48), "size": (None, 32, 64), "images": (None, 12), "labelled": (None, 9),
    "batch_size": (2, 3), "args": ({}, {"drop_path_rate": 0.1}), "validation": (0.0, 0.2), "ratio": ([0.8, 1.2],),
    "scale": ([0.5, 1.0],),
}  # fmt: skip
JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", " ", "yes", "null", "1e-4",
    "ü\u2028", "x" * 300, [], [None], [[1, 2]], {}, {"a": 1}, {"model": "test_vit"}, ["test_vit"], "2001-01-01",
    "../..",
)  # fmt: skip
TEXTS = (
    "\t", "\0", "\ufeff", "---\n", "...\n", "&a ", "*a", "<<: *a\n", "? [a, b]\n: c\n", "!!python/object:os.system x\n",
    "!!binary aGk=\n", "{[1]: 2}\n", "%YAML 9.9\n", "#", ":", "- ", "'", '"', "|\n", ">-\n", "[" * 50, "on: off\n",
    "0x1F", "012", "1:30:00", "1_000", ".inf", "~", "2024-01-01\n", "=\n", "@", "`", "\x1b", "é", "key: " + "[" * 2000,
    "seed: 1\nseed: 2\n", "1: 2\n", "null: 1\n", "true: 1\n", "a: &x [*x]\n",
)  # fmt: skip
OVERRIDES = ("", "=", "x", "=1", "a.b.c=1", "teachers.99.size=1", "data=1", "teachers.-1.size=1", "loop.lr", "--x=1",
             "loop..lr=1", ".=1", "teachers=test_vit", "student.args.a.b=1", "0=1")  # fmt: skip
OF_TYPE: dict[str, list[Any]] = {
    "integer": [1, 2, 3, 12, 10**6, "2"], "number": [0.3, 1, 1e-9, 1e9, "0.5"], "boolean": [True, False],
    "string": ["word", "train", "."], "array": [[], [1], [0.5, 0.5]],
}  # fmt: skip
KINDS = ("edge",) * 6 + ("override",) * 3 + ("other type",) * 2 + ("unknown key", "text", "network", "source", "bytes")


class Plan(NamedTuple):
    """A recipe to be written. changes: (kind, two numbers that choose where and what)."""

    seed: int
    changes: list[tuple[str, int, int]]


def recipes() -> st.SearchStrategy[Plan]:
    """Plans of recipes."""
    number = st.integers(0, 10_000)
    return st.builds(Plan, number, st.lists(st.tuples(st.sampled_from(KINDS), number, number), max_size=2))


def written(plan: Plan) -> tuple[bytes, list[str]]:
    """The file's content, and the overrides of the command line."""
    recipe, overrides = _valid_recipe(random.Random(plan.seed)), []
    for kind, where, what in plan.changes:
        if kind in IN_RECIPE:
            IN_RECIPE[kind](recipe, where, what)
        elif kind == "override":
            overrides.append(_override(where, what))
    content = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    for kind, where, what in plan.changes:
        if kind == "text":
            at = where % (len(content) + 1)
            content = content[:at] + _pick(TEXTS, what).encode() + content[at:]
        elif kind == "bytes":
            content = random.Random(where).randbytes(what % 40)
    return content, overrides


def _valid_recipe(chance: random.Random) -> dict[str, Any]:
    recipe: dict[str, Any] = _valid(SCHEMA, chance)
    recipe["data"] = {"image_size": 32, **recipe["data"]}
    recipe["loop"] = {"batch_size": 2, **recipe.get("loop", {})}
    recipe["teachers"] = [{"train": chance.choice(NETWORKS)} for _ in range(chance.randrange(3))] + recipe["teachers"]
    recipe["teachers"][-1].update({"train": True} if chance.random() < 0.8 else {"model": OTHERS[0]})
    return recipe


def _valid(schema: dict[str, Any], chance: random.Random, key: str = "") -> Any:
    """A value that the schema allows; of optional keys a few are written."""
    if key in VALID:
        return deepcopy(chance.choice(VALID[key]))
    schema = chance.choice(list(_forms(schema)))
    if "enum" in schema:
        return chance.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        needed = schema.get("required", [])
        return {name: _valid(one, chance, name) for name, one in schema.get("properties", {}).items()
                if name in needed or chance.random() < 0.05}  # fmt: skip
    if kind == "array":
        size = max(schema.get("minItems", 0), 1)
        return [_valid(schema.get("items", {}), chance, key) for _ in range(size)]
    if kind in ("number", "integer"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
        high = schema.get("maximum", schema.get("exclusiveMaximum", 50) - 0.5)
        value = chance.uniform(low, max(low, high))
        return int(value) if kind == "integer" else round(value, 3)
    return {"string": "word", "boolean": chance.random() < 0.5}.get(kind or "")


def _forms(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The alternatives of a schema, without references."""
    for one in schema.get("anyOf", [schema]):
        yield SCHEMA["$defs"][one["$ref"].rpartition("/")[2]] if "$ref" in one else one


def _leaves(schema: dict[str, Any], place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Every key that holds a value, and its schema."""
    for form in _forms(schema):
        if "properties" in form:
            for name, one in form["properties"].items():
                yield from _leaves(one, (*place, name))
            return
        if form.get("type") == "array" and "$ref" in form.get("items", {}):
            yield from _leaves(form["items"], (*place, 0))
            return
    yield place, schema


LEAVES = list(_leaves(SCHEMA))


def _edges(schema: dict[str, Any]) -> list[Any]:
    """Values at the edge of what a key may be, on both sides."""
    found: list[Any] = [schema["default"]] if "default" in schema else []
    for form in _forms(schema):
        bounds = [form[word] for word in form if word.endswith(("inimum", "aximum"))]
        found += [bound + step for bound in bounds for step in (0, 1, -1, 0.01, -0.01)]
        found += form.get("enum", [])
        found += OF_TYPE.get(form.get("type", ""), [None])
    return found


def _pick(values: Any, number: int) -> Any:
    return values[number % len(values)]


def _set(value: Any, place: tuple[Any, ...], new: Any) -> None:
    """Write a value, and the sections on the way to it."""
    try:
        for key in place[:-1]:
            value = value.setdefault(key, {}) if isinstance(value, dict) else value[key]
        value[place[-1]] = deepcopy(new)
    except (TypeError, IndexError):  # an earlier change stands in the way
        return


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a nested value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in inner for found in ((*place, key), *_places(one, (*place, key)))]


def _set_edge(recipe: Any, where: int, what: int) -> None:
    place, schema = _pick(LEAVES, where)
    _set(recipe, place, _pick(_edges(schema), what))


def _set_unknown(recipe: Any, where: int, what: int) -> None:
    """A key that lacks a letter, or one from elsewhere."""
    place = _pick(LEAVES, where)[0]
    name = place[-1][:-1] if what % 2 else _pick(("epoch", "ü", "1", "Loop", "on", "data.source", ""), what)
    _set(recipe, (*place[:-1], name), 1)


def _set_network(recipe: Any, where: int, what: int) -> None:
    place = _pick((("student",), ("teachers", -1), ("teachers", -1, "train"), ("teachers", -1, "model")), where)
    _set(recipe, place, _pick(OTHERS, what))


IN_RECIPE: dict[str, Callable[[Any, int, int], None]] = {
    "edge": _set_edge,
    "other type": lambda recipe, where, what: _set(recipe, _pick(_places(recipe), where), _pick(JUNK, what)),
    "unknown key": _set_unknown,
    "network": _set_network,
    "source": lambda recipe, where, what: _set(recipe, ("data", _pick(("source", "unlabelled"), where)),
                                               _pick(SOURCES, what)),
}  # fmt: skip


def _override(where: int, what: int) -> str:
    place, schema = _pick(LEAVES, where)
    if what % 4 == 0:
        return str(_pick(OVERRIDES, where))
    value = _pick(_edges(schema) if what % 4 < 3 else JUNK, what)
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
    return f"{'.'.join(map(str, place))}={text}"


class Reader:
    """Reads recipes in a folder with a small data set `data`; plans one of `plan_every` with its networks."""

    def __init__(self, folder: Path, plan_every: int):
        self.folder, self.plan_every, self.read = folder, plan_every, 0
        for i in range(24):
            place = folder / "data" / "abc"[i % 3]
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (i * 10, 0, 0)).save(place / f"{i}.png")
        self.before = _tree(folder)

    def __call__(self, plan: Plan) -> str:
        """How it ended: `refused`, `used` (read, with its data) or `planned`; asserts that nothing was written."""
        from benchmarks.fuzz import message_of

        here, path = Path.cwd(), self.folder / "recipe.yaml"
        content, overrides = written(plan)
        path.write_bytes(content)
        os.chdir(self.folder)
        try:
            return self._end(load_recipe("recipe.yaml", overrides))
        except UserError as error:
            message_of(error)
            return "refused"
        finally:
            os.chdir(here)
            path.unlink()
            assert _tree(self.folder) == self.before, sorted(_tree(self.folder) - self.before)

    def _end(self, recipe: Recipe) -> str:
        assert yaml.safe_load(to_yaml(recipe))["data"]["source"] == recipe.data.source
        if {recipe.data.source, recipe.data.unlabelled} & {"/", ".", os.path.expanduser("~")}:
            return "used"  # a walk over the whole machine
        self.read += 1
        known_data(recipe.data) or load_data(recipe.data, recipe.seed, recipe.store.views)
        if self.read % self.plan_every:
            return "used"
        from meco_timm.pipeline import plan

        assert plan(recipe).strip()
        return "planned"


def _tree(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}
