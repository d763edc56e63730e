"""Labels from `metadata.csv` or `metadata.jsonl`, as the library `datasets` writes them: a column `file_name`, relative
to the file, and a column with the label."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from meco_timm.common import UserError, did_you_mean
from meco_timm.data.names import LABEL_COLUMNS, label_texts
from meco_timm.data.walk import File

FILES = ("metadata.csv", "metadata.jsonl")


@dataclass
class Labels:
    """Labels by path, None where one is missing. named: the files they are from, and the column."""

    root: str
    column: str
    by_path: dict[str, str | None] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    @property
    def named(self) -> str:
        return f"{', '.join(self.files)}, column {self.column}"

    def of(self, files: list[File]) -> list[str | None]:
        """The label of each file, None where its row has none.

        Raises:
            UserError: some are not listed.
        """
        if missing := [file.path for file in files if file.path not in self.by_path]:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise UserError(
                f"data.source: {self.root}: {self.named} lists {len(self.by_path)} file(s), but not "
                f"{', '.join(map(repr, missing[:5]))}{more}. List them, or take them away."
            )
        return [self.by_path[file.path] for file in files]

    def check(self, files: Iterable[File]) -> None:
        """Raises: UserError: a file is listed that is not among `files`."""
        if absent := sorted(self.by_path.keys() - {file.path for file in files}):
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            raise UserError(
                f"data.source: {self.root}: {self.named} lists {', '.join(map(repr, absent[:5]))}{more}, which are not "
                "there, or are no images. Mend the file."
            )


def read_metadata(root: str, places: Iterable[str], column: str | None) -> tuple[Labels | None, list[str]]:
    """Read the metadata files in `root` and in the folders `places` below it.

    Returns:
        The labels, None if no file has any; and the files without labels, each with its columns.

    Raises:
        UserError: a file cannot be read or has no column `file_name`, or the files use different label columns.
    """
    labels: Labels | None = None
    unused = []
    for place, name in product(dict.fromkeys(["", *places]), FILES):
        path, shown = Path(root, place, name), f"{place}/{name}".removeprefix("/")
        if not path.is_file():
            continue
        rows = _rows(path)
        used = _label_column(path, rows, column)
        if used is None:
            unused.append(f"{shown} ({', '.join(_columns(rows)) or 'no rows'})")
            continue
        labels = labels or Labels(root, used)
        if used != labels.column:
            raise UserError(f"data.label_column: {path} has {used}, another file {labels.column}. Name one.")
        labels.files.append(shown)
        _add(labels, place, path, rows)
    return labels, unused


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """Columns in order; in JSON lines a row need not have all of them."""
    return list(dict.fromkeys(name for row in rows for name in row if name is not None))


def _label_column(path: Path, rows: list[dict[str, Any]], wanted: str | None) -> str | None:
    columns = _columns(rows)
    fitting = [name for name in columns if name == wanted or (wanted is None and name.lower() in LABEL_COLUMNS)]
    if len(fitting) > 1:
        raise UserError(f"data.label_column: {path}: several fit ({', '.join(fitting)}); name one.")
    if fitting and "file_name" not in columns:
        near = [name for name in columns if did_you_mean("file_name", [name])]
        hint = f" Rename {near[0]!r} to file_name." if near else ""
        raise UserError(f"data.source: {path}: there is no column 'file_name'; it has {', '.join(columns)}.{hint}")
    return fitting[0] if fitting else None


def _add(labels: Labels, place: str, path: Path, rows: list[dict[str, Any]]) -> None:
    words = label_texts([row.get(labels.column) for row in rows], f"{path}: {labels.column}")
    for number, (row, label) in enumerate(zip(rows, words, strict=True), 1):
        if None in row:
            raise UserError(f"data.source: {path}: row {number} has more cells than there are columns.")
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(f"data.source: {path}: row {number} has no file name.")
        file = str(PurePosixPath(place, name.replace("\\", "/")))
        if labels.by_path.setdefault(file, label) != label:
            raise UserError(f"data.source: {path}: row {number}: {name} has two labels.")


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                table = csv.DictReader(file, strict=True, skipinitialspace=True)
                table.fieldnames = [name.strip() for name in table.fieldnames or []]
                return list(table)
            rows = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"data.source: {path}: cannot be read: {error}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"data.source: {path}: each line must be a JSON object with the keys file_name and label.")
    return rows
