"""Random folders of images: made from a list of changes, read, and compared with a count of their own."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from hypothesis import strategies as st

from benchmarks.fuzz_changes import CHANGES, NAMES, PLAIN, PNG, SPLITS, write_metadata
from meco_timm.common.errors import UserError
from meco_timm.data import load_data, verify
from meco_timm.data.loading import DataSource
from meco_timm.recipe.sections import Data

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif"}


class Plan(NamedTuple):
    """A folder to be made. layout: how class folders lie. classes, splits: their names. per_class: images of each.
    changes: (what, two numbers that say where, a name)."""

    layout: str
    classes: list[str]
    splits: tuple[str, ...]
    per_class: int
    changes: list[tuple[str, int, int, str]]


def folders() -> st.SearchStrategy[Plan]:
    """Plans of folders."""
    change = st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 99), st.integers(0, 99), st.sampled_from(NAMES))
    return st.builds(
        Plan,
        st.sampled_from(["classes"] * 4 + ["splits"] * 4 + ["listed", "listed", "flat"]),
        st.one_of(*(st.lists(st.sampled_from(n), min_size=2, max_size=5, unique=True) for n in (PLAIN, PLAIN, NAMES))),
        st.sampled_from(
            [("Training", "TEST"), ("train", "valid"), ("seg_train", "dev", "test"), ("train", "Training")]
        ),
        st.sampled_from((3, 4, 2, 5, 1)),
        st.lists(change, max_size=3),
    )


def make(plan: Plan, root: Path) -> None:
    """Write the folder."""
    places = {"classes": [root], "splits": [root / split for split in plan.splits]}.get(plan.layout, [])
    root.mkdir()
    for place in places:
        for name in plan.classes:
            (place / name).mkdir(parents=True)
            for i in range(plan.per_class):
                (place / name / f"{i}.png").write_bytes(PNG)
    if plan.layout in ("listed", "flat"):
        for i in range(plan.per_class * 3):
            (root / f"{i}.png").write_bytes(PNG)
    if plan.layout == "listed":
        write_metadata(root)
    for what, where, other, name in plan.changes:
        try:
            CHANGES[what](root, where, other, name)
        except (OSError, shutil.Error):  # a change that cannot be made here, such as a rename onto a full folder
            continue


def check_folder(plan: Plan, scratch: Path) -> str:
    """`used` or `refused`; asserts that what is used is what lies there, and that nothing was written there."""
    from benchmarks.fuzz import message_of

    for name in ("data", "elsewhere", "state"):
        shutil.rmtree(scratch / name, ignore_errors=True)
    root = scratch / "data"
    make(plan, root)
    before = _listing(scratch)
    settings = Data(source=str(root), image_size=8, workers=0, validation=0.1, test_fraction=0.3)
    try:
        data = load_data(settings, seed=0)
    except UserError as error:
        message_of(error)
        return "refused"
    finally:
        assert _listing(scratch) == before, "something was written"
    _compare(data, _used(data), root)
    return _check_content(data, settings, scratch / "state")


def _used(data: DataSource) -> dict[str, tuple[str, str]]:
    """Split and class of every image, by path."""
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        stored["path"]: (split, data.classes[data.labelled.labels[row] if split != "test" else images.labels[row]])
        for split, images in parts.items()
        for row, stored in zip(images.rows, images.split.read(images.rows), strict=True)
    }


def _compare(data: DataSource, used: dict[str, tuple[str, str]], root: Path) -> None:
    """Every image file is used once or passed over with its name, in the class of its first folder."""
    folder = data.folders[0]
    skipped = [path for paths in folder.skipped.values() for path in paths]
    assert len(used) == sum(map(len, (data.train, data.validation, data.test))), "an image is used twice"
    counted = _images_below(root.resolve())
    assert len(used) + len(skipped) == counted, f"{len(used)} used and {len(skipped)} passed over of {counted}"
    if folder.labels != "class folders":
        _compare_listed(used, root)
        return
    tops = [path for path in root.iterdir() if path.is_dir() and not _hidden(path.name)]
    split = all(path.name in SPLITS for path in tops)
    for path, (part, label) in used.items():
        inner = Path(path).relative_to(root.resolve()).parts
        assert label == inner[1 if split else 0], f"{path} is in class {label!r}"
        if split and part == "test":
            assert SPLITS[inner[0]] == "test" or not any(SPLITS[top.name] == "test" for top in tops), path


def _compare_listed(used: dict[str, tuple[str, str]], root: Path) -> None:
    """Every image has the class that stands in its line of metadata.csv."""
    text = (root / "metadata.csv").read_text(encoding="utf-8-sig").replace('"', "")
    head, *lines = ([cell.strip(" ") for cell in line.split(",")] for line in text.splitlines() if line)
    name, label = head.index("file_name"), head.index("label")
    listed = {str(Path(cells[name])): cells[label] for cells in lines}
    found = {str(Path(path).relative_to(root.resolve())): word.strip(" ") for path, (_, word) in used.items()}
    assert found == listed, "a class is not the one in metadata.csv"


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _images_below(root: Path) -> int:
    """Files and links to files with an image's ending; each real folder once, and none above the root."""
    seen = {os.path.realpath(path) for path in root.parents}
    count = 0
    for at, inner, names in os.walk(root, followlinks=True):
        if os.path.realpath(at) in seen:
            inner[:] = []
            continue
        seen.add(os.path.realpath(at))
        inner.sort(key=lambda name: (Path(at, name).is_symlink(), name))
        count += sum(Path(name).suffix.lower() in IMAGES for name in names)
    return count


def _check_content(data: DataSource, settings: Data, state: Path) -> str:
    """Decode all images; `refused` if some are broken."""
    from benchmarks.fuzz import message_of

    root = Path(settings.source)
    before = _listing(root)
    try:
        verify(data, settings, state, Accelerator())
    except UserError as error:
        message_of(error)
        return "refused"
    finally:
        assert _listing(root) == before, "something was written"
    return "used"


def _listing(root: Path) -> list[tuple[str, int, int]]:
    """Everything below a folder, with sizes and times."""
    return sorted(
        (str(path), (stat := path.lstat()).st_size, stat.st_mtime_ns)
        for at, inner, names in os.walk(root)
        for path in (Path(at, name) for name in (*inner, *names))
    )
