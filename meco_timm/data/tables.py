"""Columns of a split and places of its images, found before any image is read."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from meco_timm.data import tars
from meco_timm.data.folders import Folder
from meco_timm.data.hub_files import cached_table, fetch, hub_file, open_file, unreadable
from meco_timm.data.stored import DatasetShard, FilesShard, ParquetShard, Shard, StoredImages, TarShard
from meco_timm.recipe import Data

PARALLEL = 16  # files looked at at a time


class Table(NamedTuple):
    """One split.

    features: columns with their types, as `datasets` describes them. images(column): the images of a column.
    values(column): the values of another column, one per row.
    """

    features: dict[str, Any]
    images: Callable[[str], StoredImages]
    values: Callable[[str], pa.ChunkedArray]


def open_table(kind: str, files: list[str], settings: Data, declared: dict[str, Any]) -> Table:
    """The table of one split. kind: `parquet` or `webdataset`. files: paths or URLs of the Hub. declared: types of
    columns that a data set's page gives, for parquet files that do not say that they hold images or classes.

    Raises:
        UserError: a file cannot be read or fetched.
    """
    return _parquet_table(files, settings, declared) if kind == "parquet" else _tar_table(files, settings)


def _each(function: Callable[[str], Any], files: list[str]) -> list[Any]:
    """function(file) of every file, in `PARALLEL` threads."""

    def call(file: str) -> Any:
        try:
            return function(file)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(error, file) from None

    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(call, files))


def _cached(file: str, what: str, find: Callable[[], pa.Table]) -> pa.Table:
    return cached_table(file, what, find) if hub_file(file) else find()


def _footer(file: str) -> pa.Table:
    """rows, bytes: int64, of each row group; the file's schema as metadata."""
    with open_file(file) as source, pq.ParquetFile(source) as parquet:
        groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
        columns = {"rows": [group.num_rows for group in groups], "bytes": [group.total_byte_size for group in groups]}
        table = pa.table({name: pa.array(values, pa.int64()) for name, values in columns.items()})
        return table.replace_schema_metadata({"schema": parquet.schema_arrow.serialize().to_pybytes()})


def _column(file: str, name: str) -> pa.Table:
    with open_file(file) as source:
        return pq.read_table(source, columns=[name])


def _parquet_table(files: list[str], settings: Data, declared: dict[str, Any]) -> Table:
    footers = _each(lambda file: _cached(file, "footer", lambda: _footer(file)), files)
    schema = pa.ipc.read_schema(pa.py_buffer(footers[0].schema.metadata[b"schema"]))

    def images(name: str) -> StoredImages:
        shards = [
            ParquetShard(file, name, *(footer[column].to_numpy() for column in ("rows", "bytes")))
            for file, footer in zip(files, footers, strict=True)
        ]
        return StoredImages(shards, settings.buffer)

    def values(name: str) -> pa.ChunkedArray:
        parts = _each(lambda file: _cached(file, f"column {name}", lambda: _column(file, name)), files)
        return pa.chunked_array([chunk for part in parts for chunk in part[name].chunks], parts[0][name].type)

    features = dict(datasets.Features.from_arrow_schema(schema))
    plain = [name for name, kind in features.items() if not isinstance(kind, datasets.Image | datasets.ClassLabel)]
    return Table(features | {name: declared[name] for name in plain if name in declared}, images, values)


def _tar_table(files: list[str], settings: Data) -> Table:
    image, label = settings.image_column, settings.label_column
    try:
        fetch(files)
    except OSError as error:
        raise unreadable(error, files[0]) from None
    found = _each(lambda file: tars.index(file, image, label), files)
    features: dict[str, Any] = {image or "image": datasets.Image()}
    words = pa.chunked_array([one["label"].combine_chunks() for one in found], pa.string())
    if words.null_count == 0 and len(words):
        words = _as_numbers(words)
        features[label or "label"] = datasets.Value(str(words.type))
    shards: list[Shard] = [
        TarShard(file, one["offset"].to_numpy(), one["size"].to_numpy()) for file, one in zip(files, found, strict=True)
    ]
    return Table(features, lambda name: StoredImages(shards, settings.buffer), lambda name: words)


def _as_numbers(words: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64 where all words are whole numbers."""
    whole = all(word.isascii() and word.isdecimal() for word in words.to_pylist())
    return words.cast(pa.int64()) if whole else words


def folder_table(folder: Folder, split: str, settings: Data) -> Table:
    """The table of one split of a folder of image files."""
    _, files, words = folder.splits[split]
    shard = FilesShard(folder.root, [f"{folder.root}/{file.path}" for file in files])
    features: dict[str, Any] = {"image": datasets.Image()}
    values = pa.chunked_array([words or []], pa.string())
    if words is not None:
        values = values if folder.labels == "class folders" else _as_numbers(values)
        features[folder.label_column] = datasets.Value(str(values.type))
    return Table(features, lambda name: StoredImages([shard], settings.buffer), lambda name: values)


def dataset_table(rows: datasets.Dataset, settings: Data) -> Table:
    """The table of a split of the library `datasets`."""

    def images(name: str) -> StoredImages:
        column = rows.select_columns([name])
        column = column if name == "image" else column.rename_column(name, "image")
        shard = DatasetShard(settings.source, column.cast_column("image", datasets.Image(decode=False)))
        return StoredImages([shard], settings.buffer)

    def values(name: str) -> pa.ChunkedArray:
        return rows.select_columns([name]).with_format("arrow")[:][name]

    return Table(dict(rows.features), images, values)
