"""The run that a student comes from: found beside it, with the images that the student was trained on."""

import zlib
from pathlib import Path
from typing import NamedTuple

import timm
import yaml

from meco_timm.common import UserError, expand, located
from meco_timm.data import Images, Manifest, changes, content_of, load_data
from meco_timm.recipe import Data

LOCAL = "local-dir:"
READ = 64  # images at a time


class OwnRun(NamedTuple):
    """The folder of a run, and its recipe's `data` and `seed`."""

    folder: Path
    settings: Data
    seed: int


def find_network(model: str, command: str) -> tuple[str, Path | None]:
    """Find the name under which timm loads a network, and its run folder, if it has one.

    model: a timm name, `hf-hub:` or `local-dir:`, the folder of a finished run, or a folder with a timm checkpoint.
    command: for messages.

    Raises:
        UserError: the run has not finished.
    """
    path = Path(expand(model.removeprefix(LOCAL)))
    if not model.startswith(LOCAL) and (timm.is_model(model.partition(".")[0]) or not path.is_dir()):
        return model, None
    if (path / "recipe.yaml").is_file() and not (path / "config.json").is_file():
        if not (path / "student/config.json").is_file():
            raise UserError(f"{command}: the run in {located(path)} has not finished, so it has no student yet.")
        return f"{LOCAL}{path / 'student'}", path
    above = path.resolve().parent
    return f"{LOCAL}{path}", above if (above / "recipe.yaml").is_file() and path.resolve().name == "student" else None


def read_own_run(folder: Path) -> OwnRun:
    """Read what a run was trained on.

    Raises:
        UserError: its recipe cannot be read.
    """
    try:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        return OwnRun(folder, Data.model_validate(recipe["data"]), recipe["seed"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{folder / 'recipe.yaml'} is damaged and cannot be read: {error}") from None


def same_source(one: str, other: str) -> bool:
    """Whether two sources are the same folder, or have the same name."""
    return one == other or (Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other))


def count_trained_on(images: Images, run: OwnRun) -> int:
    """Count the images that have the content of one that the run trained its student on.

    Checksums of files come from the run's manifest, others are computed.

    Raises:
        UserError: the run's data cannot be read, or have changed since the run.
    """
    data = load_data(run.settings, run.seed)
    manifest = Manifest.read(run.folder / "data.parquet") or data.manifest
    if manifest.entries and (changed := changes(manifest, data.manifest)):
        raise UserError(f"the run's data have changed since: {changed}")
    crcs = {data.manifest.path(name): (entry.size, entry.crc) for name, entry in manifest.entries.items()}
    known = set(_contents(data.train, {path: content for path, content in crcs.items() if content[1] >= 0}))
    return sum(content in known for content in _contents(images, {}))


def _contents(images: Images, known: dict[str, tuple[int, int]]) -> list[tuple[int, int]]:
    """(bytes, CRC-32) of each image. known: those of files, by path."""
    contents = []
    for start in range(0, len(images), READ):
        for stored in images.split.read(images.rows[start : start + READ]):
            found = known.get(stored.get("path") or "") if stored["bytes"] is None else None
            if found is None:
                content = content_of(stored)
                found = len(content), zlib.crc32(content)
            contents.append(found)
    return contents
