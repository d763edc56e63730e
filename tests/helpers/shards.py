"""One data set as class folders, parquet files and tars in uneven shards, and a count of what loaders read of it."""

import io
import multiprocessing
import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from conftest import draw_image
from torch.utils.data import DataLoader, Dataset

from meco_timm.data.images import Images
from meco_timm.data.loading import DataSource, load_data
from meco_timm.data.views import BatchStream, Passes, Steps
from meco_timm.recipe.sections import Data

KINDS = ("folders", "parquet", "tars")


def make(folder: Path, images: int, classes: int, shards: int) -> Path:
    """Write train (so many images) and test (a tenth) of each kind; `crc.npy` has the CRC-32 of the training images."""
    names = [f"n{c:04}" for c in range(classes)]
    generator, crcs = np.random.default_rng(0), []
    for part, count, pieces in (("train", images, shards), ("test", max(images // 10, classes), 2)):
        labels = np.sort(np.arange(count) % classes).tolist()
        cuts = np.sort(generator.choice(np.arange(1, count), pieces - 1, replace=False)).tolist()
        for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, count], strict=True)):
            rows = {f"{i:08}.jpg": (labels[i], _jpeg(labels[i], i)) for i in range(start, stop)}
            _write(folder, f"{part}-{number:04}", names, rows)
            crcs += [zlib.crc32(jpeg) for _, jpeg in rows.values()] if part == "train" else []
    for kind in KINDS:
        (folder / kind / "classes.txt").write_text("\n".join(names) + "\n")
    np.save(folder / "crc.npy", np.array(crcs, dtype=np.uint32))
    return folder


def _jpeg(label: int, seed: int) -> bytes:
    file = io.BytesIO()
    draw_image(label, seed).save(file, "JPEG", quality=85)
    return file.getvalue()


def _write(folder: Path, shard: str, names: list[str], rows: dict[str, tuple[int, bytes]]) -> None:
    """One shard in each of the three forms. rows: file name → label, bytes."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    stored = [{"bytes": jpeg, "path": name} for name, (_, jpeg) in rows.items()]
    labels = [label for label, _ in rows.values()]
    for kind in ("parquet", "tars"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict({"image": stored, "label": labels}, features=features)
    table.to_parquet(folder / "parquet" / f"{shard}.parquet", batch_size=100)
    with tarfile.open(folder / "tars" / f"{shard}.tar", "w") as tar:
        for name, (label, jpeg) in rows.items():
            for file, content in ((name, jpeg), (f"{name[:-4]}.cls", str(label).encode())):
                member = tarfile.TarInfo(file)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for name, (label, jpeg) in rows.items():
        place = folder / "folders" / shard.partition("-")[0] / names[label]
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(jpeg)


def opened(folder: Path, kind: str, **settings: Any) -> DataSource:
    """The data set in one of KINDS."""
    common = {"source": str(folder / kind), "image_size": 64, "crop_pct": 1.0}
    return load_data(Data.model_validate(common | settings), 0)


class Undecoded(Dataset):
    """(row, CRC-32 of its bytes) of each image of a batch."""

    def __init__(self, images: Images):
        self.images = images

    def __getitems__(self, keys: list[Any]) -> list[tuple[int, int]]:
        rows = [int(self.images.rows[i]) for _, i in keys]
        stored = self.images.split.read(rows)
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
    """(rows that did not come exactly once in each epoch, images with wrong bytes), over all processes."""
    size = len(data.train)
    stop = -(-size * epochs // (batch * world))
    shares = [Share(rank, world, workers, batch, stop) for rank in range(world)]
    if world == 1:
        parts = [read(data, shares[0])]
    else:
        with multiprocessing.get_context("fork").Pool(world) as outer:
            parts = outer.starmap(_read_with_workers, [(data, share) for share in shares])
    seen = np.stack([part.reshape(stop, batch, 2) for part in parts], 1).reshape(-1, 2)[: size * epochs]
    wrong = 0
    for epoch in seen[:, 0].reshape(epochs, size):
        wrong += int((np.bincount(epoch, minlength=len(crcs))[data.train.rows] != 1).sum())
    return wrong, int((crcs[seen[:, 0]] != seen[:, 1]).sum())


def _read_with_workers(data: DataSource, share: Share) -> np.ndarray:
    """Read in a process of a pool, which must not be a daemon to start loaders."""
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    return read(data, share)
