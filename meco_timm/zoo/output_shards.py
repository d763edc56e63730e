"""One teacher's outputs on disk: memory-mapped shards, indexed by (view, row).

A shard is a safetensors file with N outputs and their keys (view, row). Its name ends in the digest of its bytes, and
one atomic rename makes it valid. A damaged shard is reported and deleted, and its outputs are computed again. Several
processes and runs may write into one folder, each its own shards; an output that two of them computed is stored twice.
"""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from math import log, prod
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from meco_timm.common import UserError, digest_of, flush, get_logger, upload
from meco_timm.networks import Outputs

logger = get_logger(__name__)

SHARD_BYTES = 64 * 2**20
STALE_SECONDS = 3600.0  # a temporary file older than this was left by a process that was killed

Packed = dict[str, Tensor]  # N rows each


class Layout(NamedTuple):
    """How an output is packed into a row: `classes` logits (0: none) or the `topk` largest, the aligned blocks, whose
    shapes for one image are `blocks`, and `embedding` numbers (0: none)."""

    classes: int
    blocks: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    topk: int | None
    temperature: float
    embedding: int = 0

    @property
    def stored_topk(self) -> int | None:
        """Number of logits stored besides one value for all others; None if all logits are stored."""
        return self.topk if self.topk and self.topk < self.classes - 1 else None

    @property
    def bytes_per_view(self) -> int:
        """Bytes on disk of one image in one view, its 8-byte key included."""
        logits = self.classes if self.stored_topk is None else self.stored_topk + 1
        return (
            (logits + sum(map(prod, self.blocks)) + self.embedding) * self.dtype.itemsize
            + 4 * (self.stored_topk or 0)
            + 8
        )

    def pack(self, outputs: Outputs) -> Packed:
        """On the CPU: `values` N×n and, for top-k storage, the `classes` N×k of the stored logits.

        Raises:
            UserError: a value is not finite in the store's precision.
        """
        logits = [] if outputs.logits is None else [outputs.logits.float()]
        classes = {}
        if logits and self.stored_topk is not None:
            largest, places = logits[0].topk(self.stored_topk, 1)
            rest = logits[0].scatter(1, places, -torch.inf) / self.temperature
            share = rest.logsumexp(1, keepdim=True) - log(self.classes - self.stored_topk)
            logits, classes = [largest, self.temperature * share], {"classes": places.int().cpu()}
        parts = [*logits, *(block.float().flatten(1) for block in outputs.blocks)]
        parts += [] if outputs.embedding is None else [outputs.embedding.float()]
        values = torch.cat(parts, 1).to(self.dtype).cpu()
        if not values.isfinite().all():
            name = str(self.dtype).removeprefix("torch.")
            raise UserError(f"store.precision: a teacher's output is not finite in {name}. Write float32.")
        return {"values": values, **classes}

    def unpack(self, packed: Packed, device: torch.device) -> Outputs:
        """The outputs in float32 on `device`."""
        on_device = {name: upload(tensor, device) for name, tensor in packed.items()}
        values = on_device["values"].float()
        sizes = [*map(prod, self.blocks), self.embedding]
        logits, *parts, last = values.split([values.shape[1] - sum(sizes), *sizes], 1)
        blocks = [part.unflatten(1, shape) for part, shape in zip(parts, self.blocks, strict=True)]
        embedding = last if self.embedding else None
        if not self.classes:
            return Outputs(blocks, embedding, None)
        if self.stored_topk is not None:
            rest = logits[:, -1:].repeat(1, self.classes)
            logits = rest.scatter(1, on_device["classes"].long(), logits[:, :-1])
        return Outputs(blocks, embedding, logits)


class OutputShards:
    """One teacher's stored outputs for `rows` images in `views` views. `check`: verify all digests while opening."""

    def __init__(self, folder: Path, layout: Layout, views: int, rows: int, check: bool):
        self.folder, self.layout = folder, layout
        self.place = torch.full((views, rows), -1, dtype=torch.int32)  # position of (view, row) in all shards together
        self.starts: list[int] = []
        self.shards: list[Packed] = []
        self._end = 0  # number of outputs in all shards
        self._unwritten: list[Tensor] = []  # keys of the last shards, which are in memory only
        paths = sorted(folder.glob("shard-*.safetensors"))
        for path in self._verified(paths) if check else paths:
            self._append(_open_shard(path))

    def _verified(self, paths: list[Path]) -> list[Path]:
        """The undamaged shards; deletes damaged shards and stale temporary files."""
        for path in self.folder.glob("*.tmp"):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(digest_of, paths))
        valid = [path for path, digest in zip(paths, digests, strict=True) if path.stem == f"shard-{digest}"]
        for path in sorted(set(paths) - set(valid)):
            logger.warning("%s is damaged and was removed; its outputs will be computed again", path)
            path.unlink(missing_ok=True)
        return valid

    def _append(self, shard: Packed) -> None:
        keys = shard.pop("keys").long()
        self.shards.append(shard)
        self.starts.append(self._end)
        places = torch.arange(self._end, self._end + len(keys), dtype=torch.int32)
        self._end += len(keys)
        used = (keys[:, 0] < self.place.shape[0]) & (keys[:, 1] < self.place.shape[1])  # a recipe may have fewer views
        self.place[keys[used, 0], keys[used, 1]] = places[used]

    def missing(self, view: Tensor, row: Tensor) -> Tensor:
        """B booleans: which of these outputs are not stored."""
        return self.place[view, row] < 0

    def read(self, view: Tensor, row: Tensor) -> Packed:
        """The packed outputs of B (view, row) pairs, all of which must be stored."""
        places, order = self.place[view, row].long().sort()
        starts = torch.tensor(self.starts)
        which = torch.bucketize(places, starts, right=True) - 1
        numbers, counts = which.unique_consecutive(return_counts=True)
        inside = (places - starts[which]).split(counts.tolist())
        shards = [self.shards[number] for number in numbers.tolist()]
        back = order.argsort()
        return {
            name: torch.cat([shard[name].index_select(0, i) for shard, i in zip(shards, inside, strict=True)])[back]
            for name in shards[0]
        }

    def add(self, view: Tensor, row: Tensor, packed: Packed) -> None:
        """Add B outputs; they stay in memory until `flush`."""
        keys = torch.stack([view, row], 1).int()
        self._append({**packed, "keys": keys})
        self._unwritten.append(keys)

    @property
    def unwritten_bytes(self) -> int:
        return sum(map(len, self._unwritten)) * self.layout.bytes_per_view

    def flush(self) -> str | None:
        """Write the outputs in memory. If that fails, drop them and return the reason: they can be recomputed."""
        if not self._unwritten:
            return None
        first = len(self.shards) - len(self._unwritten)
        parts, keys = self.shards[first:], torch.cat(self._unwritten)
        merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self._end, self._unwritten = self.starts[first], []
        self.shards, self.starts = self.shards[:first], self.starts[:first]
        self.place[self.place >= self._end] = -1
        try:
            self._append(_open_shard(self._write({**merged, "keys": keys})))
        except OSError as error:
            return error.strerror or str(error)
        return None

    def _write(self, shard: Packed) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f"{uuid.uuid4().hex}.tmp"
        try:
            beside.write_bytes(save(shard))
            flush(beside)
            path = beside.rename(self.folder / f"shard-{digest_of(beside)}.safetensors")
            flush(self.folder)
            return path
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def _open_shard(path: Path) -> Packed:
    """A shard's memory-mapped tensors."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
