"""The store: teacher outputs for every view of every image, on disk.

A view is one seeded augmentation of every image, and views repeat (`store.views`), so an output is a function of
(teacher weights, row, view). A store folder has store.json, which describes what the outputs were computed from, and a
folder of shards per teacher (output_shards.py). Missing outputs are computed and added; a full store needs no teacher.
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

from meco_timm.common import UserError, get_logger, write_content, write_json
from meco_timm.data import MANIFEST, DataSource, Images, Manifest, changes, numbered
from meco_timm.networks import Outputs, Stream
from meco_timm.recipe import Data, changed_keys, fingerprint
from meco_timm.recipe import Store as StoreSettings
from meco_timm.zoo.output_shards import SHARD_BYTES, Layout, OutputShards

logger = get_logger(__name__)

VERSION = 1  # of the format; a store of another version is refused
AUGMENTATION_LIBRARIES = ("timm", "torchvision", "pillow", "numpy")
Compute = Callable[[Tensor], Outputs]  # places in the batch, on the CPU → the teacher's outputs on these images


class Store:
    """Stored outputs by teacher name. `write_error`: why the last write failed, None if none did."""

    def __init__(self, folder: Path, shards: dict[str, OutputShards], device: torch.device):
        self.folder, self.shards, self.device = folder, shards, device
        self.write_error: str | None = None

    def outputs(self, name: str, view: Tensor, row: Tensor, compute: Compute) -> Outputs:
        """A teacher's outputs for B (view, row) pairs on the CPU, in the store's precision also if just computed."""
        self.add_missing(name, view, row, compute)
        shards = self.shards[name]
        return shards.layout.unpack(shards.read(view, row), self.device)

    def add_missing(self, name: str, view: Tensor, row: Tensor, compute: Compute) -> None:
        """Compute and add those of a teacher's outputs that are not stored."""
        shards = self.shards[name]
        if shards.unwritten_bytes > SHARD_BYTES:
            self.flush()
        places = shards.missing(view, row).nonzero().squeeze(1)
        if len(places):
            shards.add(view[places], row[places], shards.layout.pack(compute(places)))

    def missing(self, rows: Tensor) -> Tensor:
        """n×2 pairs (view, row) of these rows, in any view, for which the output of some teacher is not stored."""
        missing = torch.stack([shards.place[:, rows] < 0 for shards in self.shards.values()]).any(0).nonzero()
        return torch.stack([missing[:, 0], rows[missing[:, 1]]], 1)

    def flush(self) -> None:
        """Write the outputs in memory to disk. If the disk is full, warn once; the outputs can be computed again."""
        for shards in self.shards.values():
            error = shards.flush()
            if error and not self.write_error:
                message = "%s cannot be written: %s; outputs that are not stored are recomputed"
                logger.warning(message, shards.folder, error)
            self.write_error = error or self.write_error


def open_store(
    folder: Path, made_from: dict[str, Any], layouts: dict[str, Layout], data: DataSource, a: Accelerator
) -> Store:
    """Open the store in `folder` for some teachers; all processes must call it.

    One process checks store.json, and one per machine checks for damage, before the others open it. made_from: see
    `describe`. layouts: of each teacher's outputs.

    Raises:
        UserError: the store was made from something else (the message names the keys), or the folder cannot be used.
    """
    with a.main_process_first():
        _check_or_create(folder, made_from)
        _check_images(folder, data.manifest)
    views, rows = (data.train.views or 0) * data.repeats, len(data.train.split)
    weights = {name: teacher["weights"] for name, teacher in made_from["teachers"].items()}
    with a.local_main_process_first():
        shards = {
            name: OutputShards(
                folder / f"{name.replace('/', '_')}-{weights[name]}", layout, views, rows, a.is_local_main_process
            )
            for name, layout in layouts.items()
        }
    return Store(folder, shards, a.device)


def _check_or_create(folder: Path, expected: dict[str, Any]) -> None:
    """Check that store.json agrees with the recipe; create it, or add the teachers that it does not have."""
    file = folder / "store.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stored = json.loads(file.read_text()) if file.exists() else {**expected, "teachers": {}}
    except (OSError, ValueError) as error:
        raise UserError(f"store.folder: {file} cannot be used: {getattr(error, 'strerror', None) or error}.") from None
    _check_same(folder, stored, expected)
    if expected["teachers"].keys() - stored["teachers"].keys():
        write_json(file, {**stored, "teachers": {**stored["teachers"], **expected["teachers"]}})


def _check_images(folder: Path, manifest: Manifest) -> None:
    """Check that the stored outputs are of these images; a new store records them."""
    before = Manifest.read(folder / MANIFEST)
    if before and manifest.entries and (difference := changes(before, manifest)):
        raise UserError(
            f"store.folder: {folder} holds outputs of other images: {difference}. Choose another folder, or put the "
            "images back."
        )
    if manifest.entries and not before:
        try:
            write_content(folder / MANIFEST, manifest.bytes())
        except OSError as error:
            logger.warning("%s cannot be written: %s; changed images will not be noticed", folder, error.strerror)


def layout(store: StoreSettings, temperature: float, stream: Stream, classes: int) -> Layout:
    """How this teacher's outputs are stored. temperature: at which the logits beyond `topk` keep their probability."""
    shapes, dtype = tuple(stream.block_shapes), getattr(torch, store.precision)
    logits = classes if stream.has_logits else 0
    return Layout(logits, shapes, dtype, store.topk, temperature, stream.embedding_size or 0)


def describe(
    store: StoreSettings,
    settings: Data,
    data: DataSource,
    streams: dict[str, Stream],
    weights: dict[str, str],
    temperature: float,
    seed: int,
) -> dict[str, Any]:
    """The contents of store.json: everything besides row and view that an output depends on.

    settings: the recipe's section `data`. weights: digest of each teacher's weights. seed: of the batches.
    """
    transform = settings.model_dump(mode="json", include={"image_size", "crop_pct", "interpolation", "augmentation"})
    alignment = next(iter(streams.values())).alignment
    outputs = store.model_dump(mode="json", include={"topk", "precision"})
    if store.topk:
        outputs["temperature"] = temperature
    return {
        "version": VERSION,
        "images": data.order,
        "transform": transform,
        "seed": seed,
        "pixels": _pixels(data.train, seed),
        "alignment": alignment.model_dump(mode="json", include={"blocks", "method", "length"}),
        "outputs": outputs,
        "teachers": {name: teacher_view(stream, weights[name]) for name, stream in streams.items()},
        "made_with": {name: version(name) for name in AUGMENTATION_LIBRARIES},
    }


def teacher_view(stream: Stream, weights: str) -> dict[str, Any]:
    """Everything that a teacher's outputs for an image depend on, besides the alignment."""
    class_map = None if stream.class_map is None else fingerprint(stream.class_map.tolist())
    view = {"size": stream.size, "resize": stream.resize_mode}
    view |= {key: list(stream.data_config[key]) for key in ("mean", "std")}
    given = {"logits": stream.has_logits, "embedding": stream.has_embedding, "blocks": stream.taps}
    return {"weights": weights, **given, "classes": class_map, "sees": view}


def _pixels(images: Images, seed: int) -> str:
    """Digest of eight images in their first view: another library version may augment or resize differently."""
    rows = np.linspace(0, len(images.split) - 1, num=8).astype(int).tolist()
    digest = hashlib.blake2b(digest_size=8)
    for item in images.at(rows, [numbered(seed, 0)] * len(rows)):
        if isinstance(item, UserError):
            raise item
        digest.update(item[0].numpy().tobytes())
    return digest.hexdigest()


def _check_same(folder: Path, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises: UserError: the store was made from something else; the message names every key that differs."""
    compared = {**stored, "made_with": expected["made_with"]}  # library versions are only reported: pixels decide
    compared["teachers"] = {name: stored["teachers"].get(name, own) for name, own in expected["teachers"].items()}
    changed = changed_keys(compared, expected)
    if not changed:
        return
    versions = ", ".join(f"{name} {stored['made_with'].get(name)}" for name in AUGMENTATION_LIBRARIES)
    hint = (
        f" The images or their augmentation have changed; it was made with {versions}." if changed == ["pixels"] else ""
    )
    raise UserError(
        f"store.folder: {folder} was made from something else; it differs in {', '.join(changed)}.{hint} Name another "
        "folder, or restore the settings that it was made with."
    )
