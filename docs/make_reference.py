"""Print docs/reference.md: the signature and docstring of everything that `meco_timm` exports.

python docs/make_reference.py > docs/reference.md
"""

import ast
import inspect
import textwrap
from typing import Any

import meco_timm

INTRODUCTION = """# Signatures and docstrings

<!-- Generated from the docstrings: python docs/make_reference.py > docs/reference.md -->

Everything here is imported from `meco_timm`. Examples are in [api.md](api.md).
"""
WIDTH = 116


def signature(name: str, thing: Any) -> str:
    """As it is written in the source, an argument a line where it is long. thing: a function or a class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    if isinstance(tree, ast.ClassDef):
        made = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
        arguments = ast.unparse(made[0].args).removeprefix("self, ") if made else ""
        return wrapped(name, arguments, "")
    assert isinstance(tree, ast.FunctionDef)
    return wrapped(name, ast.unparse(tree.args), f" -> {ast.unparse(tree.returns)}" if tree.returns else "")


def wrapped(name: str, arguments: str, returns: str) -> str:
    line = f"{name}({arguments}){returns}"
    if len(line) <= WIDTH:
        return line
    parts = ast.parse(f"def f({arguments}): ...").body[0].args  # type: ignore[attr-defined]
    lines = []
    plain = [*parts.posonlyargs, *parts.args]
    defaults = [None] * (len(plain) - len(parts.defaults)) + parts.defaults
    for argument, default in zip(plain, defaults, strict=True):
        lines.append(written(argument, default))
    lines += ["*"] if parts.kwonlyargs else []
    lines += [written(argument, default) for argument, default in zip(parts.kwonlyargs, parts.kw_defaults, strict=True)]
    return "\n".join([f"{name}(", *(f"    {one}," for one in lines), f"){returns}"])


def written(argument: ast.arg, default: Any) -> str:
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default is not None else "")


def main() -> None:
    print(INTRODUCTION)
    for name in sorted(meco_timm.__all__, key=str.lower):
        thing = getattr(meco_timm, name)
        if callable(thing):
            print(f"## `{name}`\n\n```text\n{signature(name, thing)}\n\n{inspect.getdoc(thing)}\n```\n")


if __name__ == "__main__":
    main()
