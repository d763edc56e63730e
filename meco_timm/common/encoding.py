"""Print on terminals whose encoding lacks characters, such as cp1252 or ASCII, without losing any."""

import codecs
import sys

HANDLER = "meco_timm.plain"
PLAIN = {
    "×": "x", "−": "-", "–": "-", "—": "-", "→": "->", "…": "...", "±": "+-", "²": "^2", "·": "*", "≥": ">=", "≤": "<=",
    "“": '"', "”": '"', "‘": "'", "’": "'", "━": "-", "╸": "-", "╺": "-", "│": "|", "─": "-",
}  # fmt: skip


def replace_missing(error: UnicodeError) -> tuple[str, int]:
    """Error handler of a codec: a similar character for signs of ours, an escape (`\\xfc`) for all others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    escaped = (PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in missing)
    return "".join(escaped), error.end


def print_anything() -> None:
    """Make standard output and standard error print every character, as it is or replaced."""
    codecs.register_error(HANDLER, replace_missing)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors=HANDLER)
