"""The one error that people see: what was wrong, where, what to write instead."""


class UserError(Exception):
    """Something that the user can mend: a recipe, a data set, a folder. Printed without a traceback."""

    exit_code = 2


def did_you_mean(word: object, known: list[str] | tuple[str, ...]) -> str:
    """`' Did you mean "adamw"?'` for the nearest of the known words, or nothing."""
    import difflib

    folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(word).lower(), folded, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(folded[name]) for name in near)}?" if near else ""
