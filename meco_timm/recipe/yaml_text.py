"""YAML with line numbers, in which a value is what it looks like, as in YAML 1.2: `no`, `010`, `1:30` and `2024-01-01`
are texts and not false, 8, 90 and a date. A duplicate key is an error."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from meco_timm.common import UserError

Path_ = tuple[str | int, ...]  # of a key: the keys and list indices that lead to it

TAG = "tag:yaml.org,2002:"
DIGITS = r"([0-9]+|[1-9][0-9]{0,2}(_[0-9]{3})+)"  # 1_000 is a thousand
PLAIN = {  # what a value without quotes must look like to be no text, and how it begins
    "null": (r"|~|null|Null|NULL", ["", *"~nN"]),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?(0|[1-9][0-9]*|[1-9][0-9]{0,2}(_[0-9]{3})+)", [*"-+0123456789"]),
    "float": (
        rf"[-+]?({DIGITS}\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?{DIGITS}[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    "merge": (r"<<", ["<"]),
}


class _Loader(yaml.SafeLoader):
    """Reads values by `PLAIN`, and every key as text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  as PyYAML has it


class _Dumper(yaml.SafeDumper):
    """Puts a text in quotes that YAML 1.1 or `PLAIN` would take for something else."""


for _name, (_form, _first) in PLAIN.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(TAG + _name, re.compile(f"^(?:{_form})$"), _first)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key, _ in node.value:
        if str(key.value) in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is written twice", problem_mark=key.start_mark)
        seen.add(str(key.value))
        if isinstance(key, yaml.ScalarNode) and key.tag != f"{TAG}merge":
            key.tag = f"{TAG}str"
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(f"{TAG}map", _mapping)


def is_ambiguous(text: str) -> bool:
    """Whether YAML 1.1 reads a text without quotes as a number, a truth value or a date."""
    tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False))
    return tag.removeprefix(TAG) in ("bool", "int", "float", "timestamp")


def dump_yaml(value: Any, flow: bool = False) -> str:
    """Write YAML that `parse_yaml` and readers of YAML 1.1 read as the same value. flow: in one line, `[a, b]`."""
    form: dict[str, Any] = {"default_flow_style": True, "width": 10**6} if flow else {}
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **form)


def _key_lines(node: yaml.Node | None, path: Path_ = ()) -> Iterator[tuple[Path_, int]]:
    """(path of a key, its line counted from 1) for every key and list item below `node`."""
    if isinstance(node, yaml.MappingNode):
        items: list[tuple[str | int, Any, Any]] = [(str(key.value), key.start_mark, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        items = [(i, value.start_mark, value) for i, value in enumerate(node.value)]
    else:
        return
    for key, mark, value in items:
        yield (*path, key), mark.line + 1
        yield from _key_lines(value, (*path, key))


def parse_yaml(text: str, name: str) -> tuple[Any, dict[Path_, int]]:
    """(the value, the line of each key and list item by its path, counted from 1). `name` of the file, for messages.

    Raises:
        UserError: it is not valid YAML, or a key is written twice.
    """
    try:
        loader = _Loader(text)
        if (node := loader.get_single_node()) is None:
            return None, {}
        lines = dict(_key_lines(node))  # before the values are made, which merges the keys of `<<`
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        hint = " (indent with spaces, never with tabs)" if r"'\t'" in str(error.problem) else ""
        raise UserError(f"{where}: not valid YAML: {error.problem or error.context}{hint}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {error}") from None
    except RecursionError:
        raise UserError(f"{name}: not valid YAML: it is nested too deeply") from None
