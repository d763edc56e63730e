"""A synthetic ImageNet: real JPEG files of 300 to 500 px in class folders, in parquet files and in uneven tars.

Every class is a digit (or what the source has) in a tint of its own. The same images stand in the same order in all
three, so a row is a row; `crc.npy` has the CRC-32 of each training image's bytes.
"""

import io
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from PIL import Image

from meco_timm.data.decoding import decode
from meco_timm.data.sources import read_source
from meco_timm.recipe.sections import Data

KINDS = ("folders", "parquet", "tars")


class Made(NamedTuple):
    """One image: its class and its bytes."""

    label: int
    jpeg: bytes


def make(folder: Path, source: str, images: int, classes: int, shards: int, pixels: tuple[int, int]) -> Path:
    """Fill `folder` with train (so many images) and test (a tenth) of each kind; does nothing where it is filled.

    pixels: shortest and longest side, drawn for each image.
    """
    if (folder / "crc.npy").exists():
        return folder
    split = read_source(Data(source=source)).train
    names = [f"n{c:04}" for c in range(classes)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    generator, crcs = np.random.default_rng(0), []
    for part, count, pieces in (("train", images, shards), ("test", max(images // 10, classes), 2)):
        labels = np.sort(np.arange(count) % classes)
        cuts = np.sort(generator.choice(np.arange(1, count), pieces - 1, replace=False)).tolist()
        for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, count], strict=True)):
            made = [_draw(split.images, split.labels, int(labels[i]), i, pixels) for i in range(start, stop)]
            _write(folder, part, f"{number:04}", names, start, made, features)
            crcs += [zlib.crc32(one.jpeg) for one in made] if part == "train" else []
    for kind in KINDS:
        (folder / kind / "classes.txt").write_text("\n".join(names) + "\n")
    np.save(folder / "crc.npy", np.array(crcs, dtype=np.uint32))
    return folder


def _draw(rows: datasets.Dataset, labels: np.ndarray, label: int, number: int, pixels: tuple[int, int]) -> Made:
    """A picture of the source, of kind label mod its classes, enlarged, tinted by label, with noise."""
    generator = np.random.default_rng(number)
    kinds = int(labels.max()) + 1
    picked = int(generator.choice(np.flatnonzero(labels == label % kinds)))
    width, height = generator.integers(pixels[0], pixels[1] + 1, 2).tolist()
    size = width, height
    grey = np.asarray(decode(rows[picked]["image"]).convert("L").resize(size, Image.Resampling.BICUBIC), np.float32)
    tint = np.random.default_rng(label // kinds).uniform(0.2, 1, 3)
    coarse = generator.integers(0, 60, (size[1] // 4, size[0] // 4, 3)).astype(np.uint8)
    noise = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR), np.float32)
    file = io.BytesIO()
    image = (grey[..., None] * 0.75 * tint + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return Made(label, file.getvalue())


def _write(
    folder: Path, part: str, number: str, names: list[str], first: int, made: list[Made], features: datasets.Features
) -> None:
    """One shard of a split, in each of the three forms."""
    for kind in ("parquet", "tars"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": one.jpeg, "path": f"{first + i:08}.jpg"} for i, one in enumerate(made)]
    table = datasets.Dataset.from_dict({"image": rows, "label": [one.label for one in made]}, features=features)
    table.to_parquet(folder / "parquet" / f"{part}-{number}.parquet", batch_size=100)
    with tarfile.open(folder / "tars" / f"{part}-{number}.tar", "w") as tar:
        for row, one in zip(rows, made, strict=True):
            for ending, content in (("jpg", one.jpeg), ("cls", str(one.label).encode())):
                member = tarfile.TarInfo(f"{str(row['path'])[:-4]}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for row, one in zip(rows, made, strict=True):
        place = folder / "folders" / part / names[one.label]
        place.mkdir(parents=True, exist_ok=True)
        (place / str(row["path"])).write_bytes(one.jpeg)
