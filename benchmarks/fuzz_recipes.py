"""Random recipes: made from the schema, bent in values, keys and text, with overrides of the command line."""

import os
import random
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

SCHEMA = Recipe.model_json_schema()
NETWORKS = ("test_vit", "test_resnet", "test_efficientnet.r160_in1k", "resnet18", "nosuch", "", "local-dir:nowhere",
            "hf-hub:a/b", "hf-hub:", "vit_tiny_patch16_224", "test_vit@x", "ü")  # fmt: skip
SOURCES = ("data", "./data", "data/", "nowhere", "recipe.yaml", "owner/name", "~", "~/x", "/", ".", "", "a\0b",
           "data/a", "zalando-datasets/fashion_mnist")  # fmt: skip
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


class Plan(NamedTuple):
    """A recipe to be written. bends, texts: values to set and text to insert, each with the number of a place."""

    seed: int
    bends: list[tuple[int, Any]]
    unknown: list[str]
    texts: list[tuple[int, str]]
    overrides: list[str]
    raw: bytes | None


def recipes() -> st.SearchStrategy[Plan]:
    """Plans of recipes; few changes each, so that many can be read."""
    place = st.integers(0, 10_000)
    key = st.sampled_from(sorted(".".join(map(str, path)) for path in _paths(_valid(SCHEMA, random.Random(0)))))
    words = st.sampled_from([*map(_text, JUNK), *NETWORKS, "[1", "{a: b", "5e-4", "'", "\t"])
    override = st.one_of(st.builds("{}={}".format, key, words), st.sampled_from(OVERRIDES))
    return st.builds(
        Plan,
        place,
        _rarely(st.lists(st.tuples(place, st.sampled_from(JUNK)), max_size=2)),
        st.one_of(
            st.just([]), st.lists(st.sampled_from(["epoch", "ü", "1", "Loop", "on", "data.source", ""]), max_size=1)
        ),
        _rarely(st.lists(st.tuples(place, st.sampled_from(TEXTS)), max_size=2)),
        _rarely(st.lists(override, max_size=2)),
        st.one_of(st.none(), st.none(), st.none(), st.none(), st.none(), st.none(), st.none(), st.binary(max_size=40)),
    )


def _rarely(lists: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[list[Any]]:
    return st.one_of(st.just([]), st.just([]), st.just([]), lists)


def _valid(schema: dict[str, Any], chance: random.Random, key: str = "") -> Any:
    """A value that the schema allows, often the default's neighbour."""
    if "$ref" in schema:
        return _valid(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], chance, key)
    if "anyOf" in schema:
        return _valid(chance.choice(schema["anyOf"]), chance, key)
    if key in ("source", "unlabelled"):
        return "data"
    if key == "model":
        return chance.choice(NETWORKS[:3])
    for word in ("enum", "const"):
        if word in schema:
            return chance.choice(schema[word]) if word == "enum" else schema[word]
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


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a nested value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in inner for found in ((*path, key), *_paths(one, (*path, key)))]


def _set(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def _text(value: Any) -> str:
    return yaml.safe_dump(value).removesuffix("\n...\n").strip()


def text_of(plan: Plan) -> bytes:
    """The file's content."""
    if plan.raw is not None:
        return plan.raw
    chance = random.Random(plan.seed)
    recipe = _valid(SCHEMA, chance) | {"student": chance.choice(NETWORKS[:4])}
    recipe["data"] = {"image_size": 32, **recipe["data"], "source": "data" if plan.seed % 4 else chance.choice(SOURCES)}
    recipe["loop"] = {**recipe.get("loop", {}), "batch_size": 2}
    if plan.seed % 5:  # most recipes train their teachers here, so that they can be planned
        recipe["teachers"] = [{"train": chance.choice(NETWORKS[:2])}]
    for number, value in plan.bends:
        paths = _paths(recipe)
        _set(recipe, paths[number % len(paths)], deepcopy(value))
    for number, key in enumerate(plan.unknown):
        sections = [recipe, *(v for v in recipe.values() if isinstance(v, dict))]
        sections[(plan.seed + number) % len(sections)][key] = 1
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    for number, more in plan.texts:
        at = number % (len(text) + 1)
        text = text[:at] + more + text[at:]
    return text.encode("utf-8", "surrogatepass")


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
        path.write_bytes(text_of(plan))
        os.chdir(self.folder)
        try:
            return self._end(load_recipe("recipe.yaml", plan.overrides))
        except UserError as error:
            message_of(error)
            return "refused"
        finally:
            os.chdir(here)
            path.unlink()
            assert _tree(self.folder) == self.before, sorted(_tree(self.folder) - self.before)

    def _end(self, recipe: Recipe) -> str:
        assert yaml.safe_load(to_yaml(recipe))["data"]["source"] == recipe.data.source
        if recipe.data.source in ("/", ".", "~") or recipe.data.unlabelled in ("/", ".", "~"):
            return "used"  # a walk over the whole machine
        self.read += 1
        data = known_data(recipe.data) or load_data(recipe.data, recipe.seed, recipe.store.views)
        if self.read % self.plan_every:
            return "used"
        from meco_timm.planning import make_plan

        assert make_plan(recipe, data, 1).strip()
        return "planned"


def _tree(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}
