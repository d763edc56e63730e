"""Paths in recipes and messages: `~` for the home folder, or relative to the working directory; names of objects."""

from pathlib import Path, PurePath

LONGEST = 255  # bytes of a file's name
LOCAL = "local-dir:"  # timm's prefix of a checkpoint's folder
FOLDERS = (LOCAL, "transformers:")  # prefixes of what may be a folder
OBJECT = "object:"  # ours of an object that a Python caller gives in place of a name


def expand(path: str) -> str:
    """Replace a leading `~` or `~user` by the home folder, also after `local-dir:` and the like.

    Raises:
        ValueError: there is no such user, or no file can have this name.
    """
    if "\0" in path or any(len(part.encode("utf-8", "replace")) > LONGEST for part in path.split("/")):
        raise ValueError(f"no file can have this name: it has a NUL character, or a part of over {LONGEST} bytes")
    prefix = _prefix(path)
    try:
        return prefix + str(Path(path.removeprefix(prefix)).expanduser()) if path[len(prefix) :][:1] == "~" else path
    except RuntimeError:
        raise ValueError("~ stands for a home folder, and there is no user of that name") from None


def _prefix(path: str) -> str:
    return next((prefix for prefix in FOLDERS if path.startswith(prefix)), "")


def located(path: str | Path) -> str:
    """A path for an error message; a relative one with the folder that it is relative to."""
    return str(path) if Path(str(path).removeprefix(LOCAL)).is_absolute() else f"{path} (relative to {Path.cwd()})"


def public(path: str) -> str:
    """A path for publishing: of an absolute one, which contains names of users and disks, only the last part."""
    if is_object(path):
        return short_name(path)
    prefix = _prefix(path)
    place = PurePath(path.removeprefix(prefix))
    return prefix + place.name if place.is_absolute() or ".." in place.parts else path


def object_name(name: str, digest: str) -> str:
    """`object:NAME@DIGEST`."""
    return f"{OBJECT}{name}@{digest}"


def is_object(text: str) -> bool:
    """Whether `text` stands for an object of a Python program."""
    return text.startswith(OBJECT)


def short_name(text: str) -> str:
    """NAME of `object:NAME@DIGEST`; any other text as it is."""
    return text.removeprefix(OBJECT).rpartition("@")[0] if is_object(text) else text
