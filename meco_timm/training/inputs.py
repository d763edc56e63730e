"""What a run is made from besides its recipe: the files of the data set, and local weights."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meco_timm.common import UserError, write_content
from meco_timm.data import Manifest, changes, read_manifest
from meco_timm.networks import weights_file_digest
from meco_timm.recipe import Recipe

if TYPE_CHECKING:  # a finished run is shown without torch
    from accelerate import Accelerator

    from meco_timm.data import DataSource

MANIFEST, WEIGHTS = "data.parquet", "weights.json"


class Inputs(NamedTuple):
    """manifest: empty for data of the Hub. weights: digest of each local weights file, by its key in the recipe."""

    manifest: Manifest
    weights: dict[str, str]


def inputs_of(recipe: Recipe, data: "DataSource | None" = None) -> Inputs:
    """The inputs as they are now; `data`: the data set, if it is open."""
    networks = {"student": recipe.student, **{f"teachers.{i}": teacher for i, teacher in enumerate(recipe.teachers)}}
    digests = {key: weights_file_digest(network) for key, network in networks.items()}
    manifest = data.manifest if data else read_manifest(recipe.data)
    return Inputs(manifest, {key: digest for key, digest in digests.items() if digest})


def write_inputs(folder: Path, inputs: Inputs) -> None:
    """Write them into a run folder; data of the Hub leave no file."""
    if inputs.manifest.entries:
        write_content(folder / MANIFEST, inputs.manifest.bytes())
    if inputs.weights:
        write_content(folder / WEIGHTS, inputs.weights)


def record_inputs(folder: Path, inputs: Inputs, accelerator: "Accelerator") -> None:
    """A run that was interrupted goes on with the same data and weights only; those of a new one are written down.

    Raises:
        UserError: as `check_inputs`.
    """
    check_inputs(folder, inputs)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_inputs(folder, inputs)


def check_inputs(folder: Path, inputs: Inputs) -> None:
    """Refuse to continue a run, or to take its results, with other data or weights. Runs from before this check, and
    data that are no longer there, cannot be compared.

    Raises:
        UserError: says what has changed.
    """
    before = Manifest.read(folder / MANIFEST)
    if before and inputs.manifest.entries and (difference := changes(before, inputs.manifest)):
        raise UserError(
            f"data.source: {folder} holds a run with other data: {difference}. Put the data back, choose another "
            "folder with run=FOLDER, or write --fresh to start a new run; the old one is then renamed."
        )
    try:
        weights = json.loads((folder / WEIGHTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if changed := [key for key, digest in weights.items() if inputs.weights.get(key, digest) != digest]:
        raise UserError(
            f"{changed[0]}: {folder} holds a run with other weights of {', '.join(changed)}: the local file has "
            "changed. Put it back, choose another folder with run=FOLDER, or write --fresh to start a new run."
        )
