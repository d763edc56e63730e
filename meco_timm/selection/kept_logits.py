"""Run every teacher once over labelled images, and keep what it gives in the zoo's folder `.logits`.

All teachers see each decoded batch, some batches one after the other, so that those that wait on the CPU are moved to
the GPU once for all of these. Logits are float16 files that are read as memory maps, so that many teachers and
images need little memory; of the blocks of some images only their kernels are kept, which is all that CKA needs.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from meco_timm.common import ProgressBar, UserError, write_json
from meco_timm.data import DataSource, Images
from meco_timm.evaluation import on_device
from meco_timm.networks import Outputs, Stream, weights_digest
from meco_timm.recipe import Data, fingerprint
from meco_timm.zoo import Zoo, teacher_view

BATCH = 64
GROUP = 16  # batches that a teacher sees in a row
BLOCK_IMAGES = 256  # evenly spread over all
LARGEST = 6e4  # of float16
Forward = Callable[[list[Tensor]], Iterator[Outputs]]  # batches of images → outputs of each


class Measured(NamedTuple):
    """A teacher on N images: logits, a float16 memory map N×K; kernels of its S blocks on n of the images, S×n×n;
    images per second; digest of its weights."""

    logits: np.ndarray
    kernels: np.ndarray
    images_per_s: float
    digest: str


def measure_teachers(
    streams: Mapping[str, Stream],
    data: DataSource,
    settings: Data,
    images: Images,
    folder: str | Path,
    device: torch.device,
    zoo: Zoo | None = None,
) -> dict[str, Measured]:
    """What these teachers, all of which have logits, give on the images; read where it is kept, else computed.

    settings: the recipe's section `data`. folder: of the zoo. zoo: their own, which computes it, since it may have
    changed them for inference, or keep them off the device.

    Raises:
        UserError: an image cannot be read, or the zoo's folder cannot be written.
    """
    digests = zoo.fingerprints if zoo else {name: weights_digest(stream.model) for name, stream in streams.items()}
    home = Path(folder) / ".logits"
    folders = {name: home / _key(stream, digests[name], data, settings, images) for name, stream in streams.items()}
    missing: dict[Path, Forward] = {
        folder: partial(map, partial(zoo.live, name)) if zoo else partial(_forward, streams[name])
        for name, folder in folders.items()
        if not folder.exists()
    }
    if missing:
        try:
            _compute(missing, data, images, device)
        except OSError as error:
            raise UserError(f"zoo.folder: {home} cannot be written: {error.strerror}.") from None
    return {name: _read(folder, digests[name]) for name, folder in folders.items()}


def _key(stream: Stream, weights: str, data: DataSource, settings: Data, images: Images) -> str:
    """Of everything that the outputs depend on; teachers with equal weights share what is kept."""
    transform = settings.model_dump(mode="json", include={"image_size", "crop_pct", "interpolation"})
    alignment = stream.alignment.model_dump(mode="json", include={"blocks", "method", "length"})
    rows = [data.order, data.manifest.digest() if data.manifest.entries else "", images.rows.tolist()]
    return fingerprint([transform, alignment, rows, teacher_view(stream, weights)])


@torch.no_grad()
def _compute(missing: dict[Path, Forward], data: DataSource, images: Images, device: torch.device) -> None:
    """One pass over the images, into a folder for each teacher; a folder without a name's ending is complete."""
    work = {folder: folder.with_name(folder.name + ".part") for folder in missing}
    for part in work.values():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    shape = len(images), len(data.classes)
    maps: dict[Path, Any] = {
        folder: np.lib.format.open_memmap(part / "logits.npy", "w+", np.float16, shape) for folder, part in work.items()
    }
    chosen = torch.linspace(0, len(images) - 1, min(BLOCK_IMAGES, len(images))).long()
    blocks: dict[Path, list[list[Tensor]]] = {folder: [] for folder in missing}
    seconds, done = dict.fromkeys(missing, 0.0), 0
    batches = data.in_order(images, BATCH)
    with ProgressBar("images evaluated", len(images), 0) as bar:
        while group := [batch.image.to(device) for batch in islice(batches, GROUP)]:
            ends = (done + np.cumsum([len(image) for image in group])).tolist()
            for folder, forward in missing.items():
                began = time.perf_counter()
                for end, image, outputs in zip(ends, group, map(_on_cpu, forward(group)), strict=True):
                    first = end - len(image)
                    maps[folder][first:end] = outputs.logits
                    places = chosen[(chosen >= first) & (chosen < end)] - first
                    blocks[folder].append([block[places] for block in outputs.blocks])
                seconds[folder] += time.perf_counter() - began
            done = ends[-1]
            bar.step(done, [f"{len(missing)} network(s)"])
    for folder, part in work.items():
        np.save(part / "blocks.npy", _kernels(blocks[folder]))
        write_json(part / "speed.json", {"images_per_s": len(images) / seconds[folder]})
        maps[folder].flush()
        part.rename(folder)


def _forward(stream: Stream, images: list[Tensor]) -> Iterator[Outputs]:
    with on_device([stream.eval()], images[0].device):
        yield from map(stream, images)


def _on_cpu(outputs: Outputs) -> Outputs:
    """In float32; the logits as float16 can hold them."""
    blocks, _, logits = outputs
    assert logits is not None
    return Outputs(
        [block.flatten(1).float().cpu() for block in blocks], None, logits.float().clamp(-LARGEST, LARGEST).cpu()
    )


def _kernels(parts: list[list[Tensor]]) -> np.ndarray:
    """S×n×n, of features n×d of each of S blocks."""
    features = [torch.cat(block) for block in zip(*parts, strict=True)]
    return np.stack([(x @ x.T).numpy() for x in features]) if features else np.zeros((0, 0, 0), np.float32)


def _read(folder: Path, digest: str) -> Measured:
    try:
        logits = np.load(folder / "logits.npy", mmap_mode="r")
        speed = json.loads((folder / "speed.json").read_text(encoding="utf-8"))
        return Measured(logits, np.load(folder / "blocks.npy"), speed["images_per_s"], digest)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"zoo.folder: {folder} is damaged ({error}). Delete it; it is computed again.") from None
