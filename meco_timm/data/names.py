"""Names of folders and labels: which mean a split, which look alike, and which are missing or numbers."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from meco_timm.common import UserError

WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
FILLERS = {"set", "split", "data", "dataset", "images", "image", "imgs", "img", "seg", "folder"}
LABEL_COLUMNS = ("label", "labels", "class", "cls", "target")
NAMED = 5  # names in a message


def split_name(name: str) -> str | None:
    """`train`, `validation` or `test` if a folder's name means one, and nothing else."""
    words = [re.sub(r"\d+$", "", word) for word in re.split(r"[\W_]+", name.casefold())]
    words = [re.sub(r"(?<=.)(set|data|images)$", "", word) if word not in WORDS else word for word in words]
    named = [word for word in words if word and word not in FILLERS]
    return WORDS.get(named[0]) if len(named) == 1 else None


def splits_in(path: str) -> set[str]:
    """The splits that are words of a path, in any case."""
    return {WORDS[word] for word in re.split(r"[\W_]+", path.casefold()) if word in WORDS}


def label_texts(labels: Sequence[Any], where: str) -> list[str | None]:
    """Labels of JSON or CSV as texts: None of null, NaN and texts without a visible character; `2` of 2.0.

    Raises:
        UserError: one is a list or a mapping, or they are numbers that are not whole.
    """
    if (listed := next((label for label in labels if isinstance(label, (list, dict))), None)) is not None:
        raise UserError(f"data.label_column: {where} holds {str(listed)[:60]}: several labels. An image has one class.")
    words = [None if label is None or not str(label).strip() else str(label) for label in labels]
    known = {word for word in words if word is not None}
    if not any("." in word or word.lower() == "nan" for word in known):
        return words
    if not all(re.fullmatch(r"\s*(-?[0-9]+(\.[0-9]*)?|nan)\s*", word, re.IGNORECASE) for word in known):
        return words
    numbers = {word: float(word) for word in known}
    if broken := sorted(word for word, number in numbers.items() if number % 1 > 0):
        raise UserError(
            f"data.label_column: {where} holds numbers such as {broken[0]}, which are no classes. Name another column."
        )
    return [None if word is None or numbers[word] != numbers[word] else f"{numbers[word]:.0f}" for word in words]


def check_alike(names: list[str], where: str) -> None:
    """Raises: UserError: two classes look the same."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_look(name), name)
        if other != name:
            raise UserError(
                f"data.source: {where}: the classes {other!r} and {name!r} differ only in case, spaces or the form of "
                "their Unicode. If they are one class, put them together; if not, rename one."
            )


def _look(name: str) -> str:
    """A name without what cannot be seen: case, the form of its Unicode, characters of no width, spaces."""
    form = unicodedata.normalize("NFKC", name)
    return " ".join("".join(c for c in form if unicodedata.category(c) != "Cf").casefold().split())
