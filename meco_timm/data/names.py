"""Names of files and folders: which mean a split, which look alike, and how they are printed."""

import re
import unicodedata

from meco_timm.common import UserError

WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
FILLERS = {"set", "split", "data", "dataset", "images", "image", "imgs", "img", "seg", "folder"}
NAMED = 5  # names in a message


def split_name(name: str) -> str | None:
    """`train`, `validation` or `test` if a folder's name means one, and nothing else."""
    words = [re.sub(r"\d+$", "", word) for word in re.split(r"[\W_]+", name.casefold())]
    words = [re.sub(r"(?<=.)(set|data|images)$", "", word) if word not in WORDS else word for word in words]
    named = [word for word in words if word and word not in FILLERS]
    return WORDS.get(named[0]) if len(named) == 1 else None


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
