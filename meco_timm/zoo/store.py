"""5 · The store: what the teachers say of each image in each of its views, on disk, read instead of computed.

A view is one seeded augmentation of every image, and views repeat (`store.views`), so an output is a function of
(teacher's weights, row, view). A folder holds store.json, which says what its outputs are of, and a folder of shards
per teacher (shelves.py). Outputs that are not there are computed and kept; once all are, no teacher is needed.
"""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from meco_timm.common import UserError, say, write_json
from meco_timm.data import DataSource, Images, numbered
from meco_timm.networks import Outputs, Stream
from meco_timm.recipe import Recipe, changed_keys, fingerprint
from meco_timm.zoo.output_shards import SHARD_BYTES, Layout, Shelf

VERSION = 1  # of the format; outputs of another are refused
MAKERS = ("timm", "torchvision", "pillow", "numpy")  # what draws and makes a view
Compute = Callable[[Tensor], Outputs]  # places in the batch, on the CPU → the teacher's outputs on these images


class Store:
    """Outputs of teachers by name. `fault`: why the disk took no more of them."""

    def __init__(self, folder: Path, shelves: dict[str, Shelf], device: torch.device):
        self.folder, self.shelves, self.device = folder, shelves, device
        self.fault: str | None = None

    def outputs(self, name: str, view: Tensor, row: Tensor, compute: Compute) -> Outputs:
        """What a teacher says of B images, views and rows on the CPU; as kept, also where it has just been computed."""
        self.fill(name, view, row, compute)
        shelf = self.shelves[name]
        return shelf.layout.unpack(shelf.read(view, row), self.device)

    def fill(self, name: str, view: Tensor, row: Tensor, compute: Compute) -> None:
        """Compute and keep what is not there."""
        shelf = self.shelves[name]
        if shelf.unwritten_bytes > SHARD_BYTES:
            self.flush()
        places = shelf.absent(view, row).nonzero().squeeze(1)
        if len(places):
            shelf.add(view[places], row[places], shelf.layout.pack(compute(places)))

    def missing(self, rows: Tensor) -> Tensor:
        """n×2 of (view, row): what some teacher's outputs lack for these rows in all views."""
        lacking = torch.stack([shelf.place[:, rows] < 0 for shelf in self.shelves.values()]).any(0).nonzero()
        return torch.stack([lacking[:, 0], rows[lacking[:, 1]]], 1)

    def flush(self) -> None:
        """Write what is in memory only; a full disk is told, once, and costs no more than computing it again."""
        for shelf in self.shelves.values():
            fault = shelf.flush()
            if fault and not self.fault:
                say(f"warning: {shelf.folder} cannot be written: {fault}; what is not kept is computed again")
            self.fault = fault or self.fault


def open_store(
    recipe: Recipe, data: DataSource, streams: dict[str, Stream], weights: dict[str, str], seed: int, a: Accelerator
) -> Store:
    """The store in `store.folder` for these teachers, whose weights have the digests `weights`; all processes call it.

    One process looks at store.json, and one per machine for damage, before the others. `seed`: of the batches.

    Raises:
        UserError: the folder holds outputs of something else, which is named, or cannot be used.
    """
    folder, wanted = Path(recipe.store.folder or ""), describe(recipe, data, streams, weights, seed)
    with a.main_process_first():
        _agree(folder, wanted)
    views, rows = (recipe.store.views or 0) * data.repeats, len(data.train.split)
    with a.local_main_process_first():
        shelves = {
            name: Shelf(
                folder / f"{name.replace('/', '_')}-{weights[name]}",
                layout(recipe, stream, len(data.classes)),
                views,
                rows,
                check=a.is_local_main_process,
            )
            for name, stream in streams.items()
        }
    return Store(folder, shelves, a.device)


def _agree(folder: Path, wanted: dict[str, Any]) -> None:
    """See that the folder's outputs are of what is wanted; write so where there are none, or none of some teacher."""
    file = folder / "store.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept = json.loads(file.read_text()) if file.exists() else {**wanted, "teachers": {}}
    except (OSError, ValueError) as error:
        raise UserError(f"store.folder: {file} cannot be used: {getattr(error, 'strerror', None) or error}.") from None
    _check_same(folder, kept, wanted)
    if wanted["teachers"].keys() - kept["teachers"].keys():
        write_json(file, {**kept, "teachers": {**kept["teachers"], **wanted["teachers"]}})


def layout(recipe: Recipe, stream: Stream, classes: int) -> Layout:
    """How this teacher's outputs are kept."""
    store, blocks = recipe.store, len(stream.taps)
    return Layout(
        classes if stream.has_logits else 0,
        blocks,
        recipe.alignment.length,
        getattr(torch, store.precision),
        store.topk,
        recipe.losses.temperature,
    )


def describe(
    recipe: Recipe, data: DataSource, streams: dict[str, Stream], weights: dict[str, str], seed: int
) -> dict[str, Any]:
    """All that an output depends on besides teacher, row and view; it must be the same for a store to serve."""
    seen = recipe.data.model_dump(mode="json", include={"image_size", "crop_pct", "interpolation", "augmentation"})
    kept = recipe.store.model_dump(mode="json", include={"topk", "precision"})
    if recipe.store.topk:
        kept["temperature"] = recipe.losses.temperature
    return {
        "version": VERSION,
        "images": data.order,
        "transform": seen,
        "seed": seed,
        "pixels": _pixels(data.train, seed),
        "alignment": recipe.alignment.model_dump(mode="json", exclude={"projection"}),
        "outputs": kept,
        "teachers": {name: _teacher(stream, weights[name]) for name, stream in streams.items()},
        "made_with": {name: version(name) for name in MAKERS},
    }


def _teacher(stream: Stream, weights: str) -> dict[str, Any]:
    mapped = None if stream.class_map is None else fingerprint(stream.class_map.tolist())
    sees = {"size": stream.size, "resize": stream.resize_mode}
    sees |= {key: list(stream.data_config[key]) for key in ("mean", "std")}
    return {"weights": weights, "logits": stream.has_logits, "blocks": stream.taps, "classes": mapped, "sees": sees}


def _pixels(images: Images, seed: int) -> str:
    """A digest of eight images in their first view: another version of a library may draw or resize otherwise."""
    rows = np.linspace(0, len(images.split) - 1, num=8).astype(int).tolist()
    digest = hashlib.blake2b(digest_size=8)
    for item in images.at(rows, [numbered(seed, 0)] * len(rows)):
        if isinstance(item, UserError):
            raise item
        digest.update(item[0].numpy().tobytes())
    return digest.hexdigest()


def _check_same(folder: Path, kept: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises: UserError: names every key in which the kept outputs are of something else."""
    both = {**kept, "made_with": wanted["made_with"]}  # told, not compared: the pixels are
    both["teachers"] = {name: kept["teachers"].get(name, told) for name, told in wanted["teachers"].items()}
    changed = changed_keys(both, wanted)
    if not changed:
        return
    made = ", ".join(f"{name} {kept['made_with'].get(name)}" for name in MAKERS)
    hint = f" The images or their views have other pixels now; then it was {made}." if changed == ["pixels"] else ""
    raise UserError(
        f"store.folder: {folder} holds outputs of something else; it differs in {', '.join(changed)}.{hint} Choose "
        "another folder, or go back to what they were made with."
    )
