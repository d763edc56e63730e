"""Columns, labels and numbers of rows of a split that is read in place, found before any image is read."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meco_timm.common import UserError
from meco_timm.data import tars
from meco_timm.data.folders import Folder
from meco_timm.data.remote import fetch, opened, place_of, remembered, unreadable
from meco_timm.data.shards import Files, ParquetShard, Shard, Shards, TarShard

PARALLEL = 16  # files looked at at a time


class Table(NamedTuple):
    """The files of one split.

    features: columns with their types, as `datasets` describes them. images(column, keep): the images of a column;
    each process keeps up to `keep` of them in memory. values(column): the values of another column, one per row.
    """

    features: dict[str, Any]
    images: Callable[[str, int], Shards]
    values: Callable[[str], np.ndarray]


def open_table(kind: str, files: list[str], image: str | None, label: str | None) -> Table:
    """The table of one split.

    kind: `parquet` or `webdataset`, as `datasets` names them. files: paths or URLs of the Hub. image, label: names of
    the columns, or None to find them.

    Raises:
        UserError: the files are of another kind, or cannot be read or fetched.
    """
    if kind == "parquet":
        return _parquet_table(files)
    if kind == "webdataset":
        return _tar_table(files, image, label)
    raise UserError(
        f"data.streaming: parquet files, webdataset tars and class folders on this machine are read in place; this is "
        f"{kind}. Leave data.streaming out."
    )


def _each(function: Callable[[str], Any], files: list[str]) -> list[Any]:
    """function(file) of every file, in `PARALLEL` threads."""

    def call(file: str) -> Any:
        try:
            return function(file)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(error, file) from None

    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(call, files))


def _parquet_table(files: list[str]) -> Table:
    def schema(file: str) -> pa.Schema:
        with opened(file) as source:
            return pq.read_schema(source)

    def column(file: str, name: str) -> dict[str, np.ndarray]:
        with opened(file) as source:
            return {"values": np.array(pq.read_table(source, columns=[name])[name].to_pylist())}

    def groups(file: str) -> dict[str, np.ndarray]:
        with opened(file) as source:
            metadata = pq.read_metadata(source)
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return {"rows": np.array(sizes, dtype=np.int64)}

    def cached(file: str, what: str, find: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return remembered(file, what, find) if place_of(file) else find()

    def images(name: str, keep: int) -> Shards:
        rows = _each(lambda file: cached(file, "groups", lambda: groups(file))["rows"], files)
        largest = max((int(group) for shard in rows for group in shard), default=0)
        found: list[Shard] = [ParquetShard(file, name, r) for file, r in zip(files, rows, strict=True)]
        return Shards(found, keep + 2 * largest)  # a window seldom begins and ends with a row group

    def values(name: str) -> np.ndarray:
        return np.concatenate(
            _each(lambda file: cached(file, f"column {name}", lambda: column(file, name))["values"], files)
        )

    features = datasets.Features.from_arrow_schema(_each(schema, files[:1])[0])
    return Table(dict(features), images, values)


def _tar_table(files: list[str], image: str | None, label: str | None) -> Table:
    try:
        fetch(files)
    except OSError as error:
        raise unreadable(error, files[0]) from None
    found = _each(lambda file: tars.index(file, image, label), files)
    words = np.concatenate([one["label"] for one in found]) if all("label" in one for one in found) else None
    features: dict[str, Any] = {image or "image": datasets.Image()}
    if words is not None:
        whole = all(word.isdecimal() for word in words)
        features[label or "label"] = datasets.Value("int64" if whole else "string")
        words = words.astype(np.int64) if whole else words
    shards: list[Shard] = [TarShard(file, one["offset"], one["size"]) for file, one in zip(files, found, strict=True)]
    return Table(features, lambda name, keep: Shards(shards, keep), lambda name: np.asarray(words))


def file_table(folder: Folder, split: str, in_place: bool) -> Table:
    """The table of one split of a folder of image files. in_place: its images are `Shards`, else rows of `datasets`."""
    _, files, words = folder.splits[split]
    paths = [f"{folder.root}/{file.path}" for file in files]
    features: dict[str, Any] = {"image": datasets.Image()}
    if words is not None:
        whole = all(word.isascii() and word.isdecimal() for word in words) and folder.labels != "class folders"
        features[folder.label_column] = datasets.Value("int64" if whole else "string")
        values = np.array(words, dtype=np.int64 if whole else np.str_)
    return Table(
        features,
        lambda name, keep: Shards([Files(folder.root, paths)], keep) if in_place else _undecoded(paths),
        lambda name: values,
    )


def _undecoded(paths: list[str]) -> datasets.Dataset:
    """Image files as rows of `datasets`, not decoded."""
    columns = [pa.nulls(len(paths), pa.binary()), pa.array(paths, pa.string())]
    stored = pa.StructArray.from_arrays(columns, ["bytes", "path"])
    rows = datasets.Dataset(datasets.table.InMemoryTable(pa.table({"image": stored})))
    return rows.cast_column("image", datasets.Image(decode=False))
