"""Changes of a folder of images, as people and programs make them: names, links, damage, things that lie about."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = {"train": "train", "Training": "train", "seg_train": "train", "test": "test", "TEST": "test",
          "valid": "validation", "dev": "validation", "val2017": "validation"}  # fmt: skip
PLAIN = (
    "a", "b", "Cat", "train_interior", "railway", "__other__", "ü", "[2024]", "a b", "*", "x.png", "-r", "名前", "🙂",
    "'quote\"", "%20", "c" * 200, "1", "01", "class.1", "~", "$HOME", "con", "e\u0301", "\x1b[31m", "new\nline", 
    "tab\t",
)  # fmt: skip
NAMES = (*PLAIN, *SPLITS, "cat", "cat ", "__MACOSX", ".hidden", "u\u0308", "Thumbs.db", "metadata.csv", "images")
ENDINGS = (".png", ".PNG", ".jpg", ".JPeG", ".bmp", ".webp", ".gif", ".tif", ".txt", ".heic", "", ".png.txt", ".npy")


def _content() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(file, "PNG")
    return file.getvalue()


PNG = _content()


def _pick(root: Path, number: int, files: bool) -> Path:
    """A file or folder below the root."""
    found = sorted(Path(at, name) for at, inner, names in os.walk(root) for name in (names if files else inner))
    if not found:
        raise FileNotFoundError
    return found[number % len(found)]


def _rename_folder(root: Path, where: int, other: int, name: str) -> None:
    place = _pick(root, where, files=False)
    place.rename(place.with_name(name))


def _rename_file(root: Path, where: int, other: int, name: str) -> None:
    file = _pick(root, where, files=True)
    file.rename(file.with_name(name[:100] + ENDINGS[other % len(ENDINGS)]))


def _nest(root: Path, where: int, other: int, name: str) -> None:
    file = _pick(root, where, files=True)
    (file.parent / name).mkdir(exist_ok=True)
    file.rename(file.parent / name / file.name)


def _stray(root: Path, where: int, other: int, name: str) -> None:
    (root / (name[:100] + ENDINGS[other % len(ENDINGS)])).write_bytes(PNG)


def _link_folder(root: Path, where: int, other: int, name: str) -> None:
    (_pick(root, where, files=False) / name).symlink_to(_pick(root, other, files=False), target_is_directory=True)


def _link_up(root: Path, where: int, other: int, name: str) -> None:
    (_pick(root, where, files=False) / name).symlink_to(root if other % 2 else root.parent, target_is_directory=True)


def _replace_by_link(root: Path, where: int, other: int, name: str) -> None:
    """A class folder that lies elsewhere."""
    place, elsewhere = _pick(root, where, files=False), root.with_name("elsewhere")
    elsewhere.mkdir(exist_ok=True)
    target = elsewhere / f"{where}-{other}"
    place.rename(target)
    place.symlink_to(target, target_is_directory=True)


def _link_file(root: Path, where: int, other: int, name: str) -> None:
    target = _pick(root, other, files=True) if other % 3 else root / "nowhere.png"
    (_pick(root, where, files=False) / f"linked{other}.png").symlink_to(target)


def _link_to_itself(root: Path, where: int, other: int, name: str) -> None:
    link = _pick(root, where, files=False) / f"loop{ENDINGS[other % len(ENDINGS)]}"
    link.symlink_to(link)


def _damage(root: Path, where: int, other: int, name: str) -> None:
    file = _pick(root, where, files=True)
    content = bytearray(file.read_bytes())
    if content:
        content[other % len(content)] ^= 0xFF
    file.write_bytes(content[: len(content) - other % 3 * 7])


def _empty_file(root: Path, where: int, other: int, name: str) -> None:
    _pick(root, where, files=True).write_bytes(b"")


def _empty_folder(root: Path, where: int, other: int, name: str) -> None:
    (_pick(root, where, files=False) if other % 2 else root).joinpath(name).mkdir(exist_ok=True)


def _delete(root: Path, where: int, other: int, name: str) -> None:
    shutil.rmtree(_pick(root, where, files=False))


def write_metadata(root: Path, head: str = "file_name,label", without: int = -1, lines_as: str = "{},{}") -> None:
    """A metadata.csv with all PNG files but one, in three classes."""
    files = enumerate(sorted(root.rglob("*.png")))
    lines = [lines_as.format(path.relative_to(root), "xyz"[i % 3]) for i, path in files if i != without]
    (root / "metadata.csv").write_text("\n".join([head, *lines]), encoding="utf-8")


def _metadata(root: Path, where: int, other: int, name: str) -> None:
    heads = ("file_name,label", "file_name, label", "\ufefffile_name,label", "file_name,text", "name,label",
             "file_name;label", "label,file_name", "")  # fmt: skip
    lines = ("{},{}", "./{}, {}", '"{}","{}"', "{},{},more", "{},{} ", "{}")
    write_metadata(root, heads[where % len(heads)], other - 50, lines[other % len(lines)])


def _pipe(root: Path, where: int, other: int, name: str) -> None:
    os.mkfifo(_pick(root, where, files=False) / "pipe.png")


CHANGES: dict[str, Callable[[Path, int, int, str], None]] = {
    "rename folder": _rename_folder, "rename file": _rename_file, "nest": _nest, "stray": _stray,
    "link folder": _link_folder, "link up": _link_up, "replace by link": _replace_by_link, "link file": _link_file,
    "link to itself": _link_to_itself, "damage": _damage, "empty file": _empty_file, "empty folder": _empty_folder,
    "delete": _delete, "metadata": _metadata, "pipe": _pipe,
}  # fmt: skip
