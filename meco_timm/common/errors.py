"""The exception for errors that the user can fix."""


class UserError(Exception):
    """An error in a recipe, a data set or a folder: what is wrong, where, what to write instead.

    The commands print it without a traceback and end with `exit_code`.
    """

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Return the first informative line of a library's error: torch begins with a heading that ends in a colon."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:2]) if lines[0].endswith(":") else lines[0]


def require_extra(extra: str, *modules: str) -> None:
    """Raise a UserError that says what to install, unless all `modules` of this extra of the package are there."""
    from importlib.util import find_spec

    if missing := [module for module in modules if find_spec(module) is None]:
        names = " ".join(missing)
        raise UserError(f"not installed: {names} (extra `{extra}`). Write: pip install {names}")


def did_you_mean(word: object, choices: list[str] | tuple[str, ...]) -> str:
    """`' Did you mean "adamw"?'` for the most similar choices; empty if none is."""
    import difflib

    folded = {name.lower(): name for name in choices}
    near = difflib.get_close_matches(str(word).lower(), folded, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(folded[name]) for name in near)}?" if near else ""
