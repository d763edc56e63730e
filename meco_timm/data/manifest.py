"""Which files a data set consists of, and what has changed since: names, labels, sizes, times and checksums.

A file has changed if its label or size has, or its checksum; where a checksum is not known, its time. Checksums
(CRC-32) are known of files that were verified (verification.py), so that a copy of a folder counts as the same data.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from meco_timm.common import join_names
from meco_timm.data.folders import Folder, read_any_folder
from meco_timm.recipe import Data, fingerprint

MANIFEST = "data.parquet"  # its file in the folders of runs, stores and trained networks
UNKNOWN = -1  # checksum of a file that was not read
UNLABELLED = "unlabelled: "  # before the names of `data.unlabelled`
BLOCK = 1 << 20
COLUMNS = {"file": pa.string(), "label": pa.string(), "size": pa.int64(), "time": pa.int64(), "crc": pa.int64()}


class Entry(NamedTuple):
    """One file. size: bytes. time: of the last change, ns. crc: CRC-32, or `UNKNOWN`."""

    label: str
    size: int
    time: int
    crc: int = UNKNOWN

    def same(self, other: "Entry") -> bool:
        """Whether label and content are the same, by the checksums where both are known, else by the times."""
        if self[:2] != other[:2]:
            return False
        return self.time == other.time if UNKNOWN in (self.crc, other.crc) else self.crc == other.crc


@dataclass
class Manifest:
    """Entries by name, relative to the folder; paths: where a file lies, by name. No entries: data of the Hub."""

    entries: dict[str, Entry] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)  # by the beginning of a name

    def path(self, name: str) -> str:
        start = UNLABELLED if name.startswith(UNLABELLED) else ""
        return f"{self.roots[start]}/{name.removeprefix(start)}"

    def digest(self) -> str:
        """Changes when any file does."""
        return fingerprint([[name, e.label, e.size, e.crc if e.crc != UNKNOWN else e.time]
                            for name, e in self.entries.items()])  # fmt: skip

    def of_source(self) -> "Manifest":
        """Without the files of `data.unlabelled`, which no training on labels sees."""
        return Manifest({name: e for name, e in self.entries.items() if not name.startswith(UNLABELLED)}, self.roots)

    def with_checksums(self, crcs: dict[str, int]) -> "Manifest":
        entries = {name: e._replace(crc=crcs.get(name, e.crc)) for name, e in self.entries.items()}
        return Manifest(entries, self.roots)

    def bytes(self) -> bytes:
        """The content of a parquet file with the columns file, label, size, time and crc."""
        rows = zip(*((name, *entry) for name, entry in self.entries.items()), strict=True)
        columns = [pa.array(column, kind) for column, kind in zip(rows, COLUMNS.values(), strict=True)]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(dict(zip(COLUMNS, columns, strict=True))), sink, compression="zstd")
        return sink.getvalue().to_pybytes()

    @classmethod
    def read(cls, file: Path) -> "Manifest | None":
        """None where there is no such file, or a damaged one."""
        try:
            columns = [column.to_pylist() for column in pq.ParquetFile(file).read(list(COLUMNS)).columns]
        except (OSError, pa.ArrowException, KeyError):
            return None
        return cls({name: Entry(*entry) for name, *entry in zip(*columns, strict=True)})


def manifest_of(folders: list[Folder]) -> Manifest:
    """Of a source, and of unlabelled images if there are any."""
    found = Manifest()
    for start, folder in zip(("", UNLABELLED), folders, strict=False):
        found.roots[start] = folder.root
        for _, files, words in folder.splits.values():
            labels = words or [None] * len(files)
            found.entries |= {
                start + f.path: Entry(w or "", f.size, f.time) for f, w in zip(files, labels, strict=True)
            }
        found.entries |= {start + f.path: Entry("", f.size, f.time) for f in folder.shards}
    return found


def read_manifest(settings: Data, labels_needed: bool = True) -> Manifest:
    """The files that local data consist of, as they are now; empty for data of the Hub, or that are not there."""
    places = {"source": settings.source, "unlabelled": settings.unlabelled}
    local = {key: Path(place) for key, place in places.items() if place and Path(place).exists()}
    if "source" not in local:
        return Manifest()
    return manifest_of([read_any_folder(p, settings.label_column, key, labels_needed) for key, p in local.items()])


def changes(old: Manifest, new: Manifest) -> str:
    """What has changed, in words; nothing where nothing has.

    Files that have another time but no other size are read to compare them, if the old checksum is known.
    """
    before, now = old.entries, new.entries
    gone, added = [n for n in before if n not in now], [n for n in now if n not in before]
    other = [name for name, entry in now.items() if name in before and not _same(before[name], entry, new, name)]
    labels = {e.label for e in before.values() if e.label}, {e.label for e in now.values() if e.label}
    noun = "image" if labels[0] else "file"
    parts = []
    for names, kinds, verb in ((added, labels[1] - labels[0], "new"), (gone, labels[0] - labels[1], "gone")):
        if names:
            classes = f" and the class(es) {join_names(sorted(map(repr, kinds)))}" if kinds else ""
            plural = "are" if len(names) > 1 or kinds else "is"
            parts.append(f"{_count(names, noun)}{classes} {plural} {verb} ({join_names(names, 3)})")
    touched = [name for name in other if before[name][:2] == now[name][:2] and before[name].crc == UNKNOWN]
    for names, what in (
        ([name for name in other if name not in touched], "another content or label"),
        (touched, "another time, and no checksum to tell whether the content is the same"),
    ):
        if names:
            parts.append(f"{_count(names, noun)} {'have' if len(names) > 1 else 'has'} {what} ({join_names(names, 3)})")
    return "; ".join(parts)


def _count(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''}"


def _same(old: Entry, new: Entry, manifest: Manifest, name: str) -> bool:
    if not old.same(new) and old[:2] == new[:2] and old.crc != UNKNOWN == new.crc:
        new = new._replace(crc=checksum(manifest.path(name)))
    return old.same(new)


def checksum(path: str) -> int:
    """CRC-32 of a file; `UNKNOWN` if it cannot be read."""
    crc = 0
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                crc = zlib.crc32(block, crc)
    except OSError:
        return UNKNOWN
    return crc
