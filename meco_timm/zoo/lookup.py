"""Find a network in the zoo that was trained by this key on these images."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from meco_timm.data import Manifest, changes
from meco_timm.recipe import fingerprint

MANIFEST = "data.parquet"  # the files that a network was trained on
OF_DATA = ("data", "files")  # keys of made_by.json that depend on the images


class Found(NamedTuple):
    """folder: of the network, or where it is to be trained. note: what the user should know of the choice."""

    folder: Path
    note: str = ""


def find_trained(zoo: Path, name: str, key: dict[str, Any], manifest: Manifest) -> Found:
    """The folder of the network with this key.

    Networks from before manifests have no key `files`; a copy of the images with other times has another digest. Both
    are found by the rest of the key.
    """
    place = zoo / f"{name}-{fingerprint(key)}"
    if (place / "config.json").exists() or not manifest.entries:
        return Found(place)
    note = ""
    for other in sorted(zoo.glob(f"{_escaped(name)}-*")):
        made = _made_by(other)
        if made is None or _without(made, OF_DATA) != _without(json.loads(json.dumps(key)), OF_DATA):
            continue
        before = Manifest.read(other / MANIFEST)
        if made["data"] == key["data"] and before is None:
            return Found(other, f"{other} does not record its images; whether they have changed is not known")
        difference = changes(before, manifest) if before else ""
        if made["data"] == key["data"] and not difference:
            return Found(other)
        note = f"{other} was trained on other images: {difference}; it is trained again" if difference else note
    return Found(place, note)


def _made_by(folder: Path) -> dict[str, Any] | None:
    try:
        made = json.loads((folder / "made_by.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return made if isinstance(made, dict) and "data" in made else None


def _without(key: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name not in names}


def _escaped(name: str) -> str:
    """A name for `glob`, where brackets mean themselves."""
    return "".join(f"[{c}]" if c in "[]*?" else c for c in name)
