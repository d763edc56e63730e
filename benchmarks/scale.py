"""A rehearsal of ImageNet: every data path on 1,000 classes of real JPEG files, made here (synthetic.py).

All images of an epoch are read through the loader by 1, 2 and 4 processes with 0, 1 and 3 workers each, not decoded;
how often each row comes is counted, and its bytes are checked against their CRC. Memory is that of the process and its
two workers after each of five epochs. Accuracy is that of one short training: with `buffer` as large as the data set,
which must be the same by all paths, and, where data stream, with a smaller one, which mixes sorted shards less well.

    OMP_NUM_THREADS=1 python -m benchmarks.scale FOLDER --images 20000
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from benchmarks import synthetic
from benchmarks.form import Row, arguments, report
from meco_timm.common.randomness import reseed
from meco_timm.data.images import Images
from meco_timm.data.loading import DataSource, load_data
from meco_timm.data.views import BatchStream, Passes, Steps
from meco_timm.distillation.distiller import Supervised
from meco_timm.networks import LOGITS_ONLY
from meco_timm.networks.streams import student_stream
from meco_timm.recipe.recipe import Network
from meco_timm.recipe.sections import Data, Loop
from meco_timm.training import Job, Training

ROOT = Path(__file__).parents[1]
PATHS = {  # kind of file, streaming
    "class folders": ("folders", False), "parquet": ("parquet", False), "parquet, streaming": ("parquet", True),
    "tars, streaming": ("tars", True), "class folders, streaming": ("folders", True),
}  # fmt: skip
PROCESSES = [(world, workers) for world in (1, 2, 4) for workers in (0, 1, 3)]


def opened(folder: Path, path: str, **settings: Any) -> DataSource:
    """The made data set by one of the paths."""
    kind, streaming = PATHS[path]
    common = {"source": str(folder / kind), "streaming": streaming, "image_size": 64, "crop_pct": 1.0}
    return load_data(Data.model_validate(common | settings), 0)


class Undecoded(Dataset):
    """(row, CRC-32 of its bytes) of each image of a batch."""

    def __init__(self, images: Images):
        self.images = images

    def __getitems__(self, keys: list[Any]) -> list[tuple[int, int]]:
        rows = [int(self.images.rows[i]) for _, i in keys]
        stored = self.images.split[rows]["image"]
        contents = [one["bytes"] or Path(one["path"]).read_bytes() for one in stored]
        return [(row, zlib.crc32(content)) for row, content in zip(rows, contents, strict=True)]


class Share(NamedTuple):
    """What one process of `world` reads: batches of so many images, by so many workers, up to step `stop`."""

    rank: int
    world: int
    workers: int
    batch: int
    stop: int


def read(data: DataSource, share: Share) -> np.ndarray:
    """n×2 of (row, CRC) in the order of the batches."""
    images = data.train
    parts = share.batch, 3, 0, share.stop, share.rank, share.world
    order = BatchStream(Passes(len(images), ends=images.ends, buffer=data.buffer), Steps(*parts))
    loader = DataLoader(Undecoded(images), batch_sampler=order, collate_fn=list, num_workers=share.workers)
    return np.array([pair for batch in loader for pair in batch], dtype=np.int64)


def count(data: DataSource, crcs: np.ndarray, world: int, workers: int, batch: int, epochs: int = 1) -> tuple[int, int]:
    """(rows that did not come exactly once in each epoch, images whose bytes are others), of all processes together."""
    size = len(data.train)
    stop = -(-size * epochs // (batch * world))
    shares = [Share(rank, world, workers, batch, stop) for rank in range(world)]
    if world == 1:
        parts = [read(data, shares[0])]
    else:
        with multiprocessing.get_context("fork").Pool(world) as outer:  # each starts loaders, so it is no daemon
            parts = outer.starmap(_read_aside, [(data, share) for share in shares])
    seen = np.stack([part.reshape(stop, batch, 2) for part in parts], 1).reshape(-1, 2)[: size * epochs]
    wrong = 0
    for epoch in seen[:, 0].reshape(epochs, size):
        wrong += int((np.bincount(epoch, minlength=len(crcs))[data.train.rows] != 1).sum())
    return wrong, int((crcs[seen[:, 0]] != seen[:, 1]).sum())


def _read_aside(data: DataSource, share: Share) -> np.ndarray:
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    return read(data, share)


def memory(data: DataSource, batch: int, epochs: int = 5) -> list[float]:
    """MiB of this process and two workers at the end of each epoch."""
    steps = len(data.train) // batch
    passes = Passes(len(data.train), ends=data.train.ends, buffer=data.buffer)
    order = BatchStream(passes, Steps(batch, 3, 0, steps * epochs))
    loader = DataLoader(Undecoded(data.train), batch_sampler=order, collate_fn=list, num_workers=2)
    found = []
    for step, _ in enumerate(loader, 1):
        if step % steps == 0:
            me = psutil.Process()
            found.append(sum(one.memory_full_info().uss for one in (me, *me.children())) / 2**20)
    return found


def accuracy(data: DataSource, steps: int, batch: int) -> dict[str, Any]:
    """top1 and nll on the validation split after `steps` steps of test_resnet on the labels."""
    stream = student_stream(Network(model="test_resnet"), LOGITS_ONLY, len(data.classes), 64, seed=0)
    settings = Loop(steps=steps, batch_size=batch, lr=5e-3, validations=1)
    reseed(0)
    with tempfile.TemporaryDirectory() as scratch:
        job = Job("training", Path(scratch), settings, data, data.labelled, steps, seed=0)
        Training(Supervised(stream), job, Accelerator()).run()
        lines = [json.loads(line) for line in (Path(scratch) / "metrics.jsonl").read_text().splitlines()]
    return {key.partition("/")[2]: value for key, value in lines[-1].items() if key.startswith("validation/")}


def read_errors(path: str, data: DataSource, crcs: np.ndarray) -> tuple[int, float]:
    """(wrong counts and bytes, images per second) over all numbers of processes and workers."""
    wrong, start = 0, time.monotonic()
    for world, workers in PROCESSES:
        missed, other = count(data, crcs, world, workers, batch=32)
        wrong += missed + other
        print(f"{path}: {world} × {workers} workers: {missed} wrong counts, {other} wrong bytes", flush=True)
    return wrong, len(PROCESSES) * len(data.train) / (time.monotonic() - start)


def accuracies(path: str, args: argparse.Namespace) -> Row:
    """Accuracy with all images in the buffer and, where data stream, with a smaller buffer."""
    full = accuracy(opened(args.folder, path, workers=0, buffer=args.images), args.steps, 64)
    row: Row = {"top-1 %": full["top1"], "NLL": full["nll"], "top-1 %, buffer": None, "NLL, buffer": None}
    if PATHS[path][1]:
        windows = accuracy(opened(args.folder, path, workers=0, buffer=args.buffer), args.steps, 64)
        row |= {"top-1 %, buffer": windows["top1"], "NLL, buffer": windows["nll"]}
    return row


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("folder", type=Path, help="where the images are made; used again when it is filled")
    parser.add_argument("--source", default=str(ROOT / "recipes/data/digits"), help="images to make them from")
    parser.add_argument("--images", type=int, default=2000, help="for training (default %(default)s)")
    parser.add_argument("--classes", type=int, default=1000, help="(default %(default)s)")
    parser.add_argument("--shards", type=int, default=12, help="uneven ones (default %(default)s)")
    parser.add_argument("--buffer", type=int, default=2048, help="data.buffer (default %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="of the training (default %(default)s)")
    args = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"

    began = time.monotonic()
    synthetic.make(args.folder, args.source, args.images, args.classes, args.shards, (300, 500))
    print(f"made in {time.monotonic() - began:.0f} s", flush=True)
    crcs, rows, scores = np.load(args.folder / "crc.npy"), [], set()
    wrong, growth = 0, 0.0
    for path in PATHS:
        start = time.monotonic()
        data = opened(args.folder, path, validation=0.0, buffer=args.buffer)
        row: Row = {"path": path, "open s": time.monotonic() - start}
        errors, row["read images/s"] = read_errors(path, data, crcs)
        used = memory(data, batch=32)
        row["MiB after each epoch"] = " ".join(f"{mib:.0f}" for mib in used)
        row |= accuracies(path, args)
        wrong, growth = wrong + errors, max(growth, used[-1] / used[0])
        scores.add((row["top-1 %"], row["NLL"]))
        rows.append(row)
        print(row, flush=True)
    figures = {"wrong": wrong, "results": len(scores), "memory_growth": growth}
    report("scale", rows, figures, args.json)


if __name__ == "__main__":
    main()
