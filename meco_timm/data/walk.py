"""What lies in a folder: every file below it, seen once, with its size and time. Names are not interpreted here.

Links to folders are followed. A folder that is met twice is read once; so there are no loops.
"""

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.ImageFile import StubImageFile

from meco_timm.common import UserError

DESKTOP = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
SHARDS = (".parquet", ".arrow", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
HIDDEN = "in hidden files and folders or those of a desktop"
SPECIAL = "not regular files"


class File(NamedTuple):
    """path: relative to the folder, with `/`. size: bytes, -1 of a link that leads nowhere. time: of the last change,
    ns."""

    path: str
    size: int
    time: int


@dataclass
class Contents:
    """All that lies below `root`. folders: paths of those on the first two levels that are not hidden. others: files
    that are no images, by ending. skipped: image files that are passed over, by reason. twice: (folder met again,
    where it was read). dangling: links that lead nowhere and are not called like an image."""

    root: str
    images: list[File] = field(default_factory=list)
    shards: list[File] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    twice: list[tuple[str, str]] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)

    def skip(self, reason: str, path: str) -> None:
        self.skipped.setdefault(reason, []).append(path)


def walk(folder: Path) -> Contents:
    """Find every file below `folder`, sorted by path; of a single file this one.

    Raises:
        UserError: a folder cannot be read.
    """
    root = os.path.realpath(folder)
    if os.path.isfile(root):
        found = Contents(os.path.dirname(root))
        with os.scandir(found.root) as entries:
            _add_file(found, next(entry for entry in entries if entry.path == root), os.path.basename(root), False)
        return found
    found = Contents(root)
    places = {_place(str(path)): "" for path in (Path(root), *Path(root).parents)}
    waiting = [""]
    later: list[str] = []  # hidden folders come last: a link to a folder in one of them is then not hidden
    while waiting or later:
        path = waiting.pop() if waiting else later.pop()
        hidden = any(is_hidden(name) for name in path.split("/")) if path else False
        if not path or _is_new(found, path, hidden, places):
            for one in _read(found, path, hidden):
                (later if hidden or is_hidden(one.rpartition("/")[2]) else waiting).append(one)
    names: list[list[Any]] = [found.images, found.shards, found.folders, found.dangling, *found.skipped.values()]
    for part in names:
        part.sort()
    return found


def image_files(folder: Path) -> list[str]:
    """Paths of all images below `folder` that are not hidden, sorted.

    Raises:
        UserError: a folder cannot be read.
    """
    return [str(folder / file.path) for file in walk(folder).images]


@cache
def image_endings() -> frozenset[str]:
    """Endings, in small letters and with the dot, of the files that Pillow opens, and not only recognises."""
    Image.init()
    return frozenset(
        ending
        for ending, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind != "MPEG" and not _is_stub(Image.OPEN[kind][0])
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over by its name."""
    return name.startswith(".") or name.lower() in DESKTOP


def _is_stub(factory: object) -> bool:
    return isinstance(factory, type) and issubclass(factory, StubImageFile)


def _place(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _is_new(found: Contents, path: str, hidden: bool, places: dict[tuple[int, int], str]) -> bool:
    place = _place(os.path.join(found.root, path))
    if place in places:
        if not hidden:
            found.twice.append((path, places[place]))
        return False
    places[place] = path
    if not hidden and path.count("/") < 2:
        found.folders.append(path)
    return True


def _read(found: Contents, folder: str, hidden: bool) -> list[str]:
    """Add the files of one folder; returns its folders, the next one last: folders come before links to folders, so
    that what is met twice is read where it lies."""
    try:
        with os.scandir(os.path.join(found.root, folder)) as entries:
            ordered = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name), reverse=True)
    except OSError as error:
        raise UserError(f"{os.path.join(found.root, folder)}: the folder cannot be read: {error.strerror}.") from None
    folders = []
    for entry in ordered:
        path = f"{folder}/{entry.name}" if folder else entry.name
        if _is_folder(entry):
            folders.append(path)
        else:
            _add_file(found, entry, path, hidden or is_hidden(entry.name))
    return folders


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _add_file(found: Contents, entry: "os.DirEntry[str]", path: str, hidden: bool) -> None:
    name = entry.name.lower()
    ending = os.path.splitext(name)[1]
    if not hidden and name.endswith(SHARDS):
        found.shards.append(_file(entry, path) or File(path, -1, 0))
    elif ending in image_endings():
        if hidden:
            found.skip(HIDDEN, path)
        elif (file := _file(entry, path)) is None:
            found.skip(SPECIAL, path)
        else:
            found.images.append(file)
    elif not hidden and entry.is_symlink() and not os.path.exists(entry.path):
        found.dangling.append(path)
    elif not hidden:
        found.others[ending or "no ending"] += 1


def _file(entry: "os.DirEntry[str]", path: str) -> File | None:
    try:
        status = entry.stat()
    except OSError:  # a link that leads nowhere: an image that cannot be read
        return File(path, -1, 0)
    return File(path, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
