"""Names of classes: files of them, ImageNet's, and how many of them a message prints."""

from functools import cache
from pathlib import Path
from typing import Any

from meco_timm.common.errors import UserError
from meco_timm.common.paths import located


@cache
def imagenet(subset: str) -> Any:
    """timm's `ImageNetInfo` of a subset, such as `imagenet-1k`; reading its names takes a third of a second."""
    from timm.data import ImageNetInfo

    return ImageNetInfo(subset)


def as_synsets(classes: list[str]) -> list[str]:
    """ImageNet-1k's class descriptions as synsets, because two classes are called 'crane' and two 'maillot'."""
    info = imagenet("imagenet-1k")
    if len(classes) == info.num_classes():
        same = sum(a == b for a, b in zip(classes, info.label_descriptions(), strict=True))
        if same > 0.9 * len(classes):
            return list(info.label_names())
    return classes


def read_class_names(file: Path, key: str) -> list[str]:
    """Read the names in a text file, one a line, without surrounding spaces. key: the recipe's key, for messages.

    Raises:
        UserError: there is no such file, it is not UTF-8, a line is blank, or two classes have one name.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {file} is not text in UTF-8 (byte {error.start + 1}). Save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{key}: the class names in {located(file)} cannot be read: {error.strerror}.") from None
    names = [line.strip() for line in text.rstrip().split("\n")]
    if "" in names:
        raise UserError(f"{key}: line {names.index('') + 1} of {file} is blank. Write one class name a line.")
    first = {name: i for i, name in reversed(list(enumerate(names)))}
    twice = next((i for i, name in enumerate(as_synsets(names)) if first.get(name, i) < i), None)
    if twice is not None:
        where = f"lines {first[names[twice]] + 1} and {twice + 1} of {file}"
        raise UserError(f"{key}: {where} are both {names[twice]!r}. Each class needs a name of its own.")
    return names


def printable(name: str) -> str:
    """A name with escapes in place of characters that cannot be printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def join_names(names: list[str], limit: int = 5) -> str:
    """The first names, printable, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(printable, names[:limit])) + more
