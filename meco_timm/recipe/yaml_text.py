"""YAML with line numbers. Unlike plain YAML 1.1, `5e-4` is a number, and a duplicate key is an error."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from meco_timm.common import UserError

Path_ = tuple[str | int, ...]  # of a key: the keys and list indices that lead to it


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `5e-4` is a number and a duplicate key is an error."""


_Loader.add_implicit_resolver(  # before PyYAML's own, which requires a dot in every float
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key, _ in node.value:
        if str(key.value) in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is written twice", problem_mark=key.start_mark)
        seen.add(str(key.value))
        if key.tag == "tag:yaml.org,2002:bool":
            key.tag = "tag:yaml.org,2002:str"  # in YAML 1.1 the key `on` means true
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


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
        return yaml.load(text, _Loader), dict(_key_lines(yaml.compose(text, _Loader)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        hint = " (indent with spaces, never with tabs)" if r"'\t'" in str(error.problem) else ""
        raise UserError(f"{where}: not valid YAML: {error.problem or error.context}{hint}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {error}") from None
    except RecursionError:
        raise UserError(f"{name}: not valid YAML: it is nested too deeply") from None
