"""Columns of a split and places of its images, found before any image is read."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from meco_timm.common import UserError, join_names
from meco_timm.data import tars
from meco_timm.data.folders import Folder
from meco_timm.data.hub_files import cached_table, fetch, hub_file, open_file, unreadable
from meco_timm.data.stored import DatasetShard, FilesShard, ParquetShard, Shard, StoredImages, TarShard
from meco_timm.recipe import Data

PARALLEL = 16  # files looked at at a time


class Column(NamedTuple):
    """A column of one file. kind: its type as `datasets` describes it. as_text: whether numbers are written as text."""

    kind: Any
    values: pa.ChunkedArray
    location: str
    as_text: bool = False


class Table(NamedTuple):
    """One split.

    features: columns with their types, as `datasets` describes them, of the first file. images(column): the images of a
    column. columns(column): another column, of each file. label: the column of labels, if no other can be one.
    """

    features: dict[str, Any]
    images: Callable[[str], StoredImages]
    columns: Callable[[str], list[Column]]
    label: str = ""


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
    kinds = [_kinds(footer, declared) for footer in footers]

    def check_column(name: str) -> None:
        for file, kind in zip(files, kinds, strict=True):
            if name not in kind:
                raise UserError(f"data.source: {file}: there is no column {name!r}; it has {', '.join(kind)}.")

    def images(name: str) -> StoredImages:
        check_column(name)
        shards = [
            ParquetShard(file, name, *(footer[column].to_numpy() for column in ("rows", "bytes")))
            for file, footer in zip(files, footers, strict=True)
        ]
        return StoredImages(shards, settings.buffer, settings.background)

    def columns(name: str) -> list[Column]:
        check_column(name)
        parts = _each(lambda file: _cached(file, f"column {name}", lambda: _column(file, name)), files)
        return [Column(k[name], part[name], file) for k, part, file in zip(kinds, parts, files, strict=True)]

    return Table(kinds[0], images, columns)


def _kinds(footer: pa.Table, declared: dict[str, Any]) -> dict[str, Any]:
    """The columns of a file with their types; those of the data set's page where the file has only plain ones."""
    schema = pa.ipc.read_schema(pa.py_buffer(footer.schema.metadata[b"schema"]))
    try:
        kinds = dict(datasets.Features.from_arrow_schema(schema))
    except ValueError:  # of a column of a type that the library does not know, such as a map
        kinds = {column.name: column.type for column in schema}
    plain = [name for name, kind in kinds.items() if not isinstance(kind, datasets.Image | datasets.ClassLabel)]
    return kinds | {name: declared[name] for name in plain if name in declared}


def _tar_table(files: list[str], settings: Data) -> Table:
    image, label = settings.image_column, settings.label_column
    try:
        fetch(files)
    except OSError as error:
        raise unreadable(error, files[0]) from None
    found = _each(lambda file: tars.index(file, image, label), files)
    if not any(map(len, found)):
        raise UserError(f"data.source: {join_names(files, 1)}: no member of the tar is an image.")
    shards: list[Shard] = [
        TarShard(file, one["offset"].to_numpy(), one["size"].to_numpy()) for file, one in zip(files, found, strict=True)
    ]
    origins = sorted({origin for one in found if (origin := one.schema.metadata[b"labels"].decode())})
    if len(origins) > 1:
        raise UserError(
            f"data.label_column: the labels stand in {' in some tars, and in '.join(origins)} in others. Name one."
        )
    name, text = label or "".join(origins), datasets.Value("string")
    columns = [Column(text, one["label"], file, as_text=True) for file, one in zip(files, found, strict=True)]
    features = {image or "image": datasets.Image(), **({name: text} if origins else {})}
    return Table(
        features, lambda _: StoredImages(shards, settings.buffer, settings.background), lambda _: columns, name
    )


def folder_table(folder: Folder, split: str, settings: Data) -> Table:
    """The table of one split of a folder of image files."""
    _, files, words = folder.splits[split]
    shard = FilesShard(folder.root, [f"{folder.root}/{file.path}" for file in files])
    features: dict[str, Any] = {"image": datasets.Image()}
    if words is not None:
        features[folder.label_column] = datasets.Value("string")
    values = pa.chunked_array([words or []], pa.string())
    column = Column(datasets.Value("string"), values, folder.root, as_text=folder.labels != "class folders")
    return Table(
        features,
        lambda _: StoredImages([shard], settings.buffer, settings.background),
        lambda _: [column],
        folder.label_column if words is not None else "",
    )


def dataset_table(rows: datasets.Dataset, settings: Data) -> Table:
    """The table of a split of the library `datasets`."""

    def images(name: str) -> StoredImages:
        column = rows.select_columns([name])
        column = column if name == "image" else column.rename_column(name, "image")
        shard = DatasetShard(settings.source, column.cast_column("image", datasets.Image(decode=False)))
        return StoredImages([shard], settings.buffer, settings.background)

    def columns(name: str) -> list[Column]:
        values = rows.select_columns([name]).with_format("arrow")[:][name]
        return [Column(rows.features[name], values, settings.source)]

    return Table(dict(rows.features), images, columns)
