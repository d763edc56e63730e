"""webdataset tars: the position of each image in the file, found by one pass over the headers and cached.

Members of one sample have the same name up to the first dot: `n01/0001.jpg`, `n01/0001.cls`, `n01/0001.json`.
Format: https://github.com/webdataset/webdataset.
"""

import json
import tarfile
from typing import Any, NamedTuple

import pyarrow as pa

from meco_timm.common import UserError, join_names
from meco_timm.data.hub_files import cached_table, local
from meco_timm.data.names import label_texts, split_name
from meco_timm.data.walk import image_endings

HEADER = tarfile.BLOCKSIZE
END = 1 << 20  # bytes after the last member that are looked at; they are zeros
FOLDER = "the folder of the member"


class Member(NamedTuple):
    """Offset and size of a member's content, in bytes."""

    offset: int
    size: int


Sample = dict[str, Member]  # by extension


def index(location: str, image: str | None, label: str | None) -> pa.Table:
    """`offset` and `size` of the N images, int64, in bytes; `label`, N strings, null where a sample has none. The
    metadata say under `labels` where those stand.

    image: extension of the images; by default the only one that is an image. label: `cls`, another extension, or a key
    of the json member; by default `cls`, else the key `label` of the json, else the folder in the member's name.

    Raises:
        UserError: the file is not a tar or is damaged, or a sample has several images.
    """
    return cached_table(location, f"tar with labels {image} {label}", lambda: _scan(local(location), image, label))


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
            origin, found = _labels(tar, {key: samples[key] for key in taken}, label)
    except (tarfile.TarError, OSError, ValueError) as error:
        hint = " Compressed tars cannot be read in place: unpack them." if _is_compressed(path) else ""
        raise UserError(f"data.source: {path}: the tar cannot be read: {error}.{hint}") from None
    words = found if origin == FOLDER else label_texts(found, f"{path}: {origin}")
    _check_splits(list(taken), path)
    _check_dots({key: samples[key] for key in taken}, image, origin, path)
    numbers = {name: pa.array([getattr(m, name) for m in taken.values()], pa.int64()) for name in Member._fields}
    return pa.table({**numbers, "label": pa.array(words, pa.string())}).replace_schema_metadata({"labels": origin})


def _is_compressed(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7")  # gzip, bzip2, xz


def _check_splits(names: list[str], path: str) -> None:
    """Refuse a tar of several splits, whose test images would be trained on."""
    for folders in zip(*(name.split("/")[:-1] for name in names), strict=False):
        splits = {split_name(folder) for folder in folders}
        if len(splits) > 1 and None not in splits:
            raise UserError(
                f"data.source: {path}: the folders {join_names(sorted(set(folders)))} in the tar are splits. "
                "Unpack it, or make a tar of each."
            )


def _check_dots(samples: dict[str, Sample], image: str | None, origin: str, path: str) -> None:
    """Refuse dots in names that make extensions of parts of names: the images have several, or no label is found."""
    images = sorted({name for sample in samples.values() for name in sample if _is_image(name)})
    dotted = [name for name in images if "." in name]
    if image is None and dotted and (len(images) > 1 or not origin):
        key = next(key for key, sample in samples.items() if dotted[0] in sample)
        raise UserError(
            f"data.source: {path}: {key}.{dotted[0]} has several dots. What follows the first dot of a member's name "
            "is its extension: take the other dots out of the names, or name the extension with data.image_column."
        )


def _samples(tar: tarfile.TarFile) -> dict[str, Sample]:
    """Members by sample.

    Raises:
        ValueError: a member stands in it twice, or the file is cut off or damaged, at which tarfile stops in silence.
    """
    samples: dict[str, Sample] = {}
    for member in tar:
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        stem, _, extension = name.partition(".")
        if member.isreg() and stem and extension:
            sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
            if extension.lower() in sample:
                raise ValueError(f"{member.name} stands in it twice")
            sample[extension.lower()] = Member(member.offset_data, member.size)
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(END)
    if len(rest) < HEADER or rest.strip(b"\0"):
        raise ValueError("it is cut off or damaged, or another tar follows in the same file")
    return samples


def _is_image(extension: str) -> bool:
    return f".{extension.rpartition('.')[2]}" in image_endings()


def _image(sample: Sample, wanted: str | None, key: str, path: str) -> Member | None:
    fitting = [name for name in sample if (name == wanted if wanted else _is_image(name))]
    if len(fitting) > 1:
        dots = " What follows the first dot of a member's name is its extension: take other dots out of the names."
        raise UserError(
            f"data.image_column: {key} in {path} has several images ({join_names(fitting)}); name one extension."
            f"{dots if all('.' in name for name in fitting) else ''}"
        )
    return sample[fitting[0]] if fitting else None


def _labels(tar: tarfile.TarFile, samples: dict[str, Sample], wanted: str | None) -> tuple[str, list[Any]]:
    """(where the labels stand, or nothing; the label of each sample as it is written, None where it is missing)."""

    def content(member: Member) -> str:
        file = tar.fileobj
        assert file is not None
        file.seek(member.offset)
        return file.read(member.size).decode().strip()

    extension = wanted or "cls"
    if extension != "json" and any(extension in sample for sample in samples.values()):
        return extension, [content(sample[extension]) if extension in sample else None for sample in samples.values()]
    key = "label" if wanted in (None, "json") else wanted
    fields = [json.loads(content(sample["json"])) if "json" in sample else {} for sample in samples.values()]
    fields = [one if isinstance(one, dict) else {} for one in fields]
    if any(key in one for one in fields):
        return wanted or "json", [one.get(key) for one in fields]
    folders = [name.rpartition("/")[0].rpartition("/")[2] or None for name in samples]
    if wanted is None and any(folders):
        return FOLDER, folders
    return "", [None] * len(samples)
