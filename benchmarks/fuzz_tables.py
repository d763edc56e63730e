"""Random tables, tars and lists of images, whose labels are read a second time here, from what was written; the two
must agree."""

import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from benchmarks.fuzz_changes import PNG
from meco_timm.common.errors import UserError
from meco_timm.data import load_data
from meco_timm.recipe.sections import Data

WORDS = ["a", "b", "c", "d"]
MISSING: dict[str, list[Any]] = {
    "text": [None, "", " "], "whole": [None, -1], "float": [None, float("nan")], "class": [-1, None],
    "cls": [""], "json": [None], "json numbers": [None, float("nan"), -1.0],
    "csv": ["", " "], "jsonl numbers": [None, float("nan")],
}  # fmt: skip
TARS, LISTS = ("cls", "json", "json numbers"), ("csv", "jsonl numbers")
NUMBERS = ("whole", "float", "json numbers", "jsonl numbers")
LABELS = [0, 1, 2, 3, 0, 1, 2, 3, "missing", 0, 1]


class File(NamedTuple):
    """One file of a split. rows: the class of each image, or `missing`. order: of the names of a `ClassLabel`."""

    split: str
    rows: list[Any]
    order: list[int]


class Plan(NamedTuple):
    """A source to be made. kind: how its labels are written. dots: where a tar's names have dots."""

    kind: str
    files: list[File]
    which: int
    dots: str


def tables() -> st.SearchStrategy[Plan]:
    """Plans of tables and tars."""
    order = st.permutations(range(4))

    def of(split: st.SearchStrategy[str], labels: list[Any], least: int) -> st.SearchStrategy[File]:
        return st.builds(File, split, st.lists(st.sampled_from(labels), min_size=least, max_size=least + 8), order)

    train = st.lists(of(st.just("train"), LABELS, 8), min_size=1, max_size=2)
    held_out = st.sampled_from(["test", "validation"])
    others = st.lists(st.one_of(of(held_out, LABELS, 2), of(held_out, [0, 1, 2, 3], 2)), max_size=2)
    files = st.builds(lambda a, b: [*a, *b], train, others)
    return st.builds(Plan, st.sampled_from(sorted(MISSING)), files, st.integers(0, 9),
                     st.sampled_from(["", "", "folder", "name"]))  # fmt: skip


def _written(plan: Plan, file: File, label: Any) -> Any:
    """The value of a class in the column, or one of the values that mean that it is missing."""
    if label == "missing":
        return MISSING[plan.kind][plan.which % len(MISSING[plan.kind])]
    if plan.kind == "class":
        return file.order.index(label)
    return label if plan.kind == "whole" else float(label) if plan.kind in NUMBERS else WORDS[label]


def make(plan: Plan, root: Path) -> None:
    """Write the source."""
    root.mkdir()
    kinds = {"text": datasets.Value("string"), "whole": datasets.Value("int64"), "float": datasets.Value("float64")}
    for number, file in enumerate(plan.files):
        values = [_written(plan, file, label) for label in file.rows]
        place = root / f"{file.split}-{number}"
        if plan.kind in TARS:
            _write_tar(plan, place.with_suffix(".tar"), values)
            continue
        if plan.kind in LISTS:
            _list_images(plan, root / file.split, number, values)
            continue
        kind = kinds.get(plan.kind) or datasets.ClassLabel(names=[WORDS[i] for i in file.order])
        features = datasets.Features(image=datasets.Image(), label=kind)
        columns = {"image": [{"bytes": PNG, "path": None}] * len(values), "label": values}
        table = pa.table(columns, schema=features.arrow_schema)
        pq.write_table(table, place.with_suffix(".parquet"), row_group_size=4)


def _write_tar(plan: Plan, path: Path, values: list[Any]) -> None:
    with tarfile.open(path, "w") as tar:
        for i, value in enumerate(values):
            key = {"folder": f"v1.0/{i}", "name": f"img.{i}"}.get(plan.dots, f"{i}")
            label = str(value).encode() if plan.kind == "cls" else json.dumps({"label": value}).encode()
            for ending, content in (("png", PNG), (plan.kind.split()[0], label)):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _list_images(plan: Plan, folder: Path, number: int, values: list[Any]) -> None:
    """Add images to a split's folder, and their labels to its list."""
    folder.mkdir(exist_ok=True)
    path = folder / f"metadata.{plan.kind.split()[0]}"
    lines = path.read_text().splitlines() if path.exists() else ["file_name,label"] if plan.kind == "csv" else []
    for i, value in enumerate(values):
        name = f"{number}-{i}.png"
        (folder / name).write_bytes(PNG)
        lines.append(f"{name},{value}" if plan.kind == "csv" else json.dumps({"file_name": name, "label": value}))
    path.write_text("\n".join(lines))


def expected(plan: Plan) -> dict[str, Counter[str]] | None:
    """Images of each class by name, `missing` among them, of the training files and the test files; None if refused."""
    splits = {file.split for file in plan.files}
    test = "test" if "test" in splits else "validation" if "validation" in splits else None
    parts: dict[str, list[Any]] = {"train": [], "test": []}
    for file in plan.files:
        if file.split in ("train", test):
            parts["train" if file.split == "train" else "test"] += file.rows
    train, held = (set(rows) - {"missing"} for rows in parts.values())
    numbers = plan.kind in NUMBERS
    classes = set(range(4)) if plan.kind == "class" else set(range(max(train, default=-1) + 1)) if numbers else train
    if len(classes) < 2 or classes != train or not held <= classes or "missing" in parts["test"]:
        return None
    if plan.kind in TARS and plan.dots == "name":
        return None
    named = {i: str(i) if numbers else word for i, word in enumerate(WORDS)} | {"missing": "missing"}
    return {part: Counter(named[label] for label in rows) for part, rows in parts.items()}


def check_table(plan: Plan, scratch: Path) -> str:
    """`used` or `refused`; asserts that the labels are those that were written."""
    from benchmarks.fuzz import message_of

    root = scratch / "tables"
    shutil.rmtree(root, ignore_errors=True)
    make(plan, root)
    wanted = expected(plan)
    try:
        data = load_data(Data(source=str(root), image_size=8, workers=0, validation=0.0, test_fraction=0.2), seed=0)
    except UserError as error:
        message = message_of(error)
        held_out = "images held out" in message  # a class has too few images to hold some out
        assert wanted is None or (held_out and not wanted["test"]), f"refused: {message}"
        return "refused"
    assert wanted is not None, "used, and should have been refused"
    found: dict[str, Counter[str]] = {}
    for part, images in (("train", data.labelled), ("test", data.test)):
        labels = images.labels if part == "train" else images.labels[images.rows]
        found[part] = Counter("missing" if label < 0 else data.classes[label] for label in labels.tolist())
    if not wanted["test"]:  # a share was held out
        found = {"train": found["train"] + found["test"], "test": Counter()}
    assert found == wanted, f"{found} in place of {wanted}"
    return "used"
