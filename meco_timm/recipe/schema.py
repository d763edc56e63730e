"""The recipe for editors (JSON schema) and for readers (docs/recipe.md), both generated from the models.

python -m meco_timm.recipe.schema > recipes/recipe.schema.json
python -m meco_timm.recipe.schema --docs > docs/recipe.md
"""

import inspect
import json
import sys
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from meco_timm.recipe.recipe import Recipe
from meco_timm.recipe.sections import Section

INTRODUCTION = """# Every key of a recipe

<!-- Generated from meco_timm/recipe: python -m meco_timm.recipe.schema --docs > docs/recipe.md -->

A recipe is a YAML file. `data.source`, `teachers` and `student` must be written; every other key has a default. A key
can also be set on the command line, after the recipe: `loop.lr=5e-4`. An unknown key or a value of another type is
refused with file and line. Values are read as in YAML 1.2: numbers are decimal, and `010`, `1:30` and `2024-01-01` are
texts. Complete examples are in [recipes/](../recipes), and editors that read the first line of
those files complete and check keys from `recipes/recipe.schema.json`.

`loop`, `zoo.loop` and the `loop` of a teacher have the same keys. A key that is not written in `zoo.loop` has its value
from `loop`, and a key that is not written in a teacher's `loop` has its value from `zoo.loop`.
"""
ELSEWHERE = {"zoo.loop": "loop", "teachers.loop": "loop", "student.backbone.loop": "loop"}
ELSEWHERE |= {"student.backbone.teachers": "teachers"}  # sections described under another key
TYPES = {"string": "text", "number": "number", "integer": "integer", "boolean": "true, false", "object": "mapping"}
BOUNDS = {"exclusiveMinimum": "> ", "minimum": "≥ ", "exclusiveMaximum": "< ", "maximum": "≤ "}


def schema() -> str:
    """The schema as text. A network may be written as its name, a teacher as `train: name`."""
    tree = Recipe.model_json_schema()
    definitions = tree["$defs"]
    definitions["Teacher"]["properties"]["train"]["type"] = ["boolean", "string"]
    definitions["Teacher"]["required"] = []
    for holder, key in ((tree["properties"]["teachers"], "items"), (tree["properties"], "student"),
                        (definitions["Backbone"]["properties"]["teachers"], "items")):  # fmt: skip
        holder[key] = {"anyOf": [{"type": "string"}, holder[key]]}
    return json.dumps(tree, indent=1) + "\n"


def reference() -> str:
    """docs/recipe.md: for each section a table of keys with type, default and meaning."""
    return "\n".join([INTRODUCTION, *(_table(key, section) for key, section in _sections())])


def _sections(key: str = "", section: type[Section] = Recipe) -> Iterator[tuple[str, type[Section]]]:
    """(dotted key, model) of a section and of those in it, each model once."""
    yield key, section
    for name, field in section.model_fields.items():
        place, inner = f"{key}.{name}".lstrip("."), _section_of(field)
        if inner is not None and place not in ELSEWHERE:
            yield from _sections(place, inner)


def _section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, also where it may be null."""
    for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
        if inspect.isclass(kind) and issubclass(kind, Section):
            return kind
    return None


def _table(key: str, section: type[Section]) -> str:
    head = f"## {key or 'Top level'}\n\n{_one_line(section.__doc__ or '')}\n\n| key | type | default | meaning |\n"
    properties = section.model_json_schema()["properties"]
    rows = [_row(f"{key}.{name}".lstrip("."), field, properties[name]) for name, field in section.model_fields.items()]
    return head + "|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _row(key: str, field: FieldInfo, tree: dict[str, Any]) -> str:
    if _section_of(field) is not None:
        place = ELSEWHERE.get(key, key)
        link = f"See [{place}](#{place.replace('.', '')})."
        kind, meaning = "section", f"{field.description or ''} {link}"
        default = "required" if field.is_required() else ""
    else:
        kind, meaning = _type(tree), field.description or ""
        default = "required" if field.is_required() else f"`{_written(field.get_default(call_default_factory=True))}`"
    cells = (_one_line(cell).replace("|", "\\|") for cell in (kind, default, meaning))
    return f"| `{key}` | " + " | ".join(cells) + " |"


def _type(tree: dict[str, Any]) -> str:
    """A property of the JSON schema in words."""
    if "anyOf" in tree:
        return " or ".join(_type(part) for part in tree["anyOf"])
    if "enum" in tree:
        return ", ".join(f"`{_written(word)}`" for word in tree["enum"])
    if "$ref" in tree:
        return "network"
    if tree["type"] == "array":
        items = _type(tree["items"])
        return f"list of ({items})" if "anyOf" in tree["items"] else f"list of {items}"
    bounds = [sign + str(tree[name]) for name, sign in BOUNDS.items() if name in tree]
    return " ".join([TYPES.get(tree["type"], tree["type"]), ", ".join(bounds)]).strip()


def _written(value: Any) -> str:
    """As it stands in YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    print(reference() if sys.argv[1:] == ["--docs"] else schema(), end="")
