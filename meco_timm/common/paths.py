"""Paths as people write them: `~` for the home folder, relative to where the command runs."""

from pathlib import Path, PurePath

LOCAL = "local-dir:"  # timm's word before the folder of a checkpoint


def expand(path: str) -> str:
    """`~` and `~user` as folders, also behind `local-dir:`.

    Raises:
        ValueError: there is no such user; otherwise a folder called `~user` would be made.
    """
    prefix = LOCAL if path.startswith(LOCAL) else ""
    try:
        return prefix + str(Path(path.removeprefix(LOCAL)).expanduser()) if path[len(prefix) :][:1] == "~" else path
    except RuntimeError:
        raise ValueError("~ stands for a home folder, and there is no user of that name") from None


def located(path: str | Path) -> str:
    """A path for a message that it is not there: a relative one with the folder that it was looked for in."""
    return str(path) if Path(str(path).removeprefix(LOCAL)).is_absolute() else f"{path} (relative to {Path.cwd()})"


def public(path: str) -> str:
    """A local path as others may read it: of an absolute one, which names users and disks, the last component only."""
    prefix = LOCAL if path.startswith(LOCAL) else ""
    place = PurePath(path.removeprefix(LOCAL))
    return prefix + place.name if place.is_absolute() or ".." in place.parts else path
