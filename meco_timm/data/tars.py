"""webdataset tars: the position of each image in the file, found by one pass over the headers and cached.

Members of one sample have the same name up to the first dot: `n01/0001.jpg`, `n01/0001.cls`, `n01/0001.json`.
Format: https://github.com/webdataset/webdataset.
"""

import json
import tarfile
from typing import Any, NamedTuple

import pyarrow as pa

from meco_timm.common import UserError
from meco_timm.data.hub_files import cached_table, local

IMAGES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"}
HEADER = tarfile.BLOCKSIZE


class Member(NamedTuple):
    """Offset and size of a member's content, in bytes."""

    offset: int
    size: int


Sample = dict[str, Member]  # by extension


def index(location: str, image: str | None, label: str | None) -> pa.Table:
    """`offset` and `size` of the N images, int64, in bytes; `label`, N strings, null if no sample has one.

    image: extension of the images; by default the only one that is an image. label: `cls`, another extension, or a key
    of the json member; by default `cls`, else the key `label` of the json, else the folder in the member's name.

    Raises:
        UserError: the file is not a tar or is damaged, a sample has several images, or only some samples have a label.
    """
    return cached_table(location, f"tar {image} {label}", lambda: _scan(local(location), image, label))


def read(path: str, members: list[Member]) -> list[dict[str, Any]]:
    """Content (`bytes`) and name (`path`) of each member, as `datasets` gives undecoded images.

    Raises:
        OSError: the file cannot be read.
    """
    found = []
    with open(path, "rb") as file:
        for offset, size in members:
            file.seek(offset - HEADER)
            header, data = file.read(HEADER), file.read(size)
            name = header[:100].split(b"\0")[0].decode("utf-8", "replace")
            found.append({"bytes": data, "path": f"{path}: {name}"})
    return found


def _scan(path: str, image: str | None, label: str | None) -> pa.Table:
    try:
        with tarfile.open(path, "r:") as tar:
            samples = _samples(tar)
            taken = {key: taken for key, sample in samples.items() if (taken := _image(sample, image, key, path))}
            words = [_label(tar, key, samples[key], label) for key in taken]
    except (tarfile.TarError, OSError, ValueError) as error:
        hint = " Compressed tars cannot be read in place: unpack them." if path.endswith(("gz", "xz", "bz2")) else ""
        raise UserError(f"data.source: {path}: the tar cannot be read: {error}.{hint}") from None
    if None in words and any(word is not None for word in words):
        unlabelled = list(taken)[words.index(None)]
        raise UserError(f"data.source: {path}: {unlabelled} has no label, while other samples have one.")
    numbers = {name: pa.array([getattr(m, name) for m in taken.values()], pa.int64()) for name in Member._fields}
    return pa.table({**numbers, "label": pa.array(words, pa.string())})


def _samples(tar: tarfile.TarFile) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for member in tar:
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if member.isreg() and stem and extension:
            samples.setdefault(f"{folder}/{stem}" if folder else stem, {})[extension.lower()] = Member(
                member.offset_data, member.size
            )
    return samples


def _image(sample: Sample, wanted: str | None, key: str, path: str) -> Member | None:
    fitting = [name for name in sample if (name == wanted if wanted else name.rpartition(".")[2] in IMAGES)]
    if len(fitting) > 1:
        raise UserError(
            f"data.image_column: {key} in {path} has several images ({', '.join(fitting)}); name one extension."
        )
    return sample[fitting[0]] if fitting else None


def _label(tar: tarfile.TarFile, key: str, sample: Sample, wanted: str | None) -> str | None:
    """The label in words; None where the sample has none."""

    def content(name: str) -> str:
        file, member = tar.fileobj, sample[name]
        assert file is not None
        file.seek(member.offset)
        return file.read(member.size).decode().strip()

    if wanted in sample and wanted != "json":
        return content(str(wanted))
    if wanted is None and "cls" in sample:
        return content("cls")
    fields = json.loads(content("json")) if "json" in sample else {}
    name = "label" if wanted in (None, "json") else wanted
    if name in fields:
        return str(fields[name])
    folder = key.rpartition("/")[0].rpartition("/")[2]
    return folder or None if wanted is None else None
