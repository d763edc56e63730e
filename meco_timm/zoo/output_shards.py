"""5 · One teacher's outputs on disk: shards, whole or not there, memory-mapped, found by (view, row).

A shard is a safetensors file with N outputs and their keys. Its name ends in the digest of its bytes: one rename makes
it valid, and a damaged one is known, named and taken away, so that what was in it is computed again. Several processes
and several runs may write into one folder, each its own shards; what two of them have both computed is there twice.
"""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from meco_timm.common import UserError, digest_of, flush, say
from meco_timm.networks import Outputs

SHARD_BYTES = 64 * 2**20
DEAD_AFTER = 3600.0  # seconds: an unfinished file of this age is a killed writer's

Packed = dict[str, Tensor]  # N rows each


class Layout(NamedTuple):
    """How one output becomes a row of numbers: logits B×classes (0: none), or their `topk` largest, then the blocks."""

    classes: int
    blocks: int
    length: int
    dtype: torch.dtype
    topk: int | None
    temperature: float

    @property
    def kept(self) -> int | None:
        """How many logits are kept besides a value for the rest; None where all are."""
        return self.topk if self.topk and self.topk < self.classes - 1 else None

    @property
    def bytes_per_view(self) -> int:
        """On disk, of one image in one view; a key has 8."""
        logits = self.classes if self.kept is None else self.kept + 1
        return (logits + self.blocks * self.length) * self.dtype.itemsize + 4 * (self.kept or 0) + 8

    def pack(self, outputs: Outputs) -> Packed:
        """On the CPU: values N×n and, of the largest, classes N×topk.

        Raises:
            UserError: a value is not finite in this precision.
        """
        logits = [] if outputs.logits is None else [outputs.logits.float()]
        classes = {}
        if logits and self.kept is not None:
            largest, places = logits[0].topk(self.kept, 1)
            rest = logits[0].scatter(1, places, -torch.inf) / self.temperature
            share = rest.logsumexp(1, keepdim=True) - torch.tensor(float(self.classes - self.kept)).log()
            logits, classes = [largest, self.temperature * share], {"classes": places.int().cpu()}
        values = torch.cat([*logits, *(block.float() for block in outputs.blocks)], 1).to(self.dtype).cpu()
        if not values.isfinite().all():
            name = str(self.dtype).removeprefix("torch.")
            raise UserError(f"store.precision: a teacher's output is not a finite {name}. Write float32.")
        return {"values": values, **classes}

    def unpack(self, packed: Packed, device: torch.device) -> Outputs:
        """float32 on `device`."""
        if device.type == "cuda":
            packed = {name: tensor.pin_memory() for name, tensor in packed.items()}
        parts = {name: tensor.to(device, non_blocking=True) for name, tensor in packed.items()}
        values = parts["values"].float()
        logits = values[:, : values.shape[1] - self.blocks * self.length]
        blocks = list(values[:, logits.shape[1] :].split(self.length, 1)) if self.blocks else []
        if not self.classes:
            return Outputs(blocks, None)
        if self.kept is not None:
            whole = logits[:, -1:].repeat(1, self.classes)
            logits = whole.scatter(1, parts["classes"].long(), logits[:, :-1])
        return Outputs(blocks, logits)


class Shelf:
    """One teacher's outputs, N rows of the data set in V views. `check`: look for damage while opening."""

    def __init__(self, folder: Path, layout: Layout, views: int, rows: int, check: bool):
        self.folder, self.layout = folder, layout
        self.place = torch.full((views, rows), -1, dtype=torch.int32)  # of a view of a row, in the row of all shards
        self.starts: list[int] = []
        self.shards: list[Packed] = []
        self._end = 0  # outputs in all shards
        self._unwritten: list[Tensor] = []  # keys of the shards at the end, which are in memory only
        paths = sorted(folder.glob("shard-*.safetensors"))
        for path in self._whole(paths) if check else paths:
            self._append(_opened(path))

    def _whole(self, paths: list[Path]) -> list[Path]:
        """Those that are as they were written; takes the others away, and what killed writers have left."""
        for path in self.folder.glob("*.tmp"):
            if time.time() - path.stat().st_mtime > DEAD_AFTER:
                path.unlink(missing_ok=True)
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(digest_of, paths))
        whole = [path for path, digest in zip(paths, digests, strict=True) if path.stem == f"shard-{digest}"]
        for path in sorted(set(paths) - set(whole)):
            say(f"warning: {path} is damaged and removed; what was in it will be computed again")
            path.unlink(missing_ok=True)
        return whole

    def _append(self, shard: Packed) -> None:
        keys = shard.pop("keys").long()
        self.shards.append(shard)
        self.starts.append(self._end)
        places = torch.arange(self._end, self._end + len(keys), dtype=torch.int32)
        self._end += len(keys)
        here = (keys[:, 0] < self.place.shape[0]) & (keys[:, 1] < self.place.shape[1])  # a shorter run has fewer views
        self.place[keys[here, 0], keys[here, 1]] = places[here]

    def absent(self, view: Tensor, row: Tensor) -> Tensor:
        """Which of these outputs are not there, B."""
        return self.place[view, row] < 0

    def read(self, view: Tensor, row: Tensor) -> Packed:
        """The outputs of B views of rows, all of which must be there."""
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
        """Keep B outputs, in memory until `flush`."""
        keys = torch.stack([view, row], 1).int()
        self._append({**packed, "keys": keys})
        self._unwritten.append(keys)

    @property
    def unwritten_bytes(self) -> int:
        return sum(map(len, self._unwritten)) * self.layout.bytes_per_view

    def flush(self) -> str | None:
        """Write what is in memory only. Where the disk refuses it, forget it and say why: it can be computed again."""
        if not self._unwritten:
            return None
        first = len(self.shards) - len(self._unwritten)
        parts, keys = self.shards[first:], torch.cat(self._unwritten)
        merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self._end, self._unwritten = self.starts[first], []
        self.shards, self.starts = self.shards[:first], self.starts[:first]
        self.place[self.place >= self._end] = -1
        try:
            self._append(_opened(self._write({**merged, "keys": keys})))
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


def _opened(path: Path) -> Packed:
    """A shard's tensors, in memory only where they are read."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
