"""The plan's lines about the data: where labels and splits come from, images per class, files passed over."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from meco_timm.common import Table, join_names, printable
from meco_timm.data import NO_LABEL, DataSource, Folder, split_name
from meco_timm.recipe import Data, Recipe

CLASSES = 10  # listed by name
FILES = 3  # named of those passed over
MISSING = {"nan", "none", "null", "na", "n/a", "<na>", "?", "-1"}  # texts that programs write for what is missing


def data_line(recipe: Recipe, data: DataSource) -> str:
    """The data in a line: classes, images of each split, size."""
    classes = f"{len(data.classes)} classes, " if data.classes else ""
    labelled = f" ({len(data.labelled)} with labels)" if data.classes else ""
    return (
        f"data    {recipe.data.source}: {classes}{len(data.train)} training images{labelled}, {len(data.validation)} "
        f"validation, {len(data.test)} test, at {recipe.data.image_size} px"
    )


def data_section(recipe: Recipe, data: DataSource) -> Iterator[str | Table]:
    """What was found, and which images are used for what; each block ends with an empty line."""
    yield f"{data_line(recipe, data)}\n"
    if not data.identity:  # a data set of the Hub that was not opened
        return
    lines: list[str] = []
    if data.classes:
        yield _class_table(data)
        lines += _labels(data)
    for folder in data.folders:
        where = f" in {printable(Path(folder.root).name)}" if len(data.folders) > 1 else ""
        lines += [*_origin(folder, recipe.data), *_passed_over(folder, where)]
    lines += [*_untested(data), *_twice_balanced(recipe)]
    yield from [*lines, ""] if lines else []


def _labels(data: DataSource) -> Iterator[str]:
    """The column of the labels, of tables, tars and `datasets`; and how many images have none."""
    if not any(folder.splits for folder in data.folders[:1]):
        yield f"labels: column {printable(data.label_column)}"
    own = data.labelled.labels
    if missing := int((own[data.train.rows[data.train.rows < len(own)]] == NO_LABEL).sum()):
        yield f"{missing} training image(s) have no label: only the student learns from them"
    if odd := [name for name in data.classes if name.strip().casefold() in MISSING]:
        yield f"warning: {join_names(odd)} is read as a class; a missing label is null or an empty text"


def _twice_balanced(recipe: Recipe) -> Iterator[str]:
    """Two remedies for rare classes at once."""
    loops = [recipe.loop, *(teacher.loop for teacher in recipe.teachers if teacher.train)]
    if recipe.data.sampling == "balanced" and any(loop.class_weights == "balanced" for loop in loops):
        yield ("warning: data.sampling and loop.class_weights are both balanced, so rare classes count twice; use one")


def _untested(data: DataSource) -> Iterator[str]:
    """Classes of which no accuracy can be measured."""
    counts = data.class_counts()["test"]
    names = [printable(name) for name, count in zip(data.classes, counts, strict=True) if not count]
    if names:
        what = f"{len(names)} class(es) have no test image, so their accuracy is not measured"
        yield f"warning: {what}: {join_names(names)}"


def _class_table(data: DataSource) -> Table:
    """Images per class and split: the first classes, the smallest and the largest."""
    counts = data.class_counts()
    if (counts["labelled"] == counts["train"]).all():
        del counts["labelled"]
    names, splits = [printable(name) for name in data.classes], list(counts)

    def row(name: str, i: int) -> list[str]:
        return [name, *(str(counts[split][i]) for split in splits)]

    rows = [row(name, i) for i, name in enumerate(names[:CLASSES])]
    if len(names) > CLASSES:
        rows.append([f"… and {len(names) - CLASSES} more", *[""] * len(splits)])
        for word, i in (("smallest", int(counts["train"].argmin())), ("largest", int(counts["train"].argmax()))):
            rows.append(row(f"{word}: {names[i]}", i))
    return Table(["class", *splits], rows, frozenset(splits))


def _origin(folder: Folder, settings: Data) -> Iterator[str]:
    """Where labels and splits come from."""
    if not folder.splits:
        return
    if all(part.words is None for part in folder.splits.values()):
        count = sum(len(part.files) for part in folder.splits.values())
        yield f"unlabelled images: {count} in {printable(folder.root)}"
        return
    yield f"labels: from {printable(folder.labels)}"
    if folder.unused:
        yield f"no labels in {join_names(folder.unused)}"
    if folder.labels == "class folders":
        yield from _deeper(folder)
    named = [f"{split} from {printable(part.folder)}/" for split, part in folder.splits.items() if part.folder]
    if named:
        yield f"splits: {', '.join(named)}"
    if "test" not in folder.splits and "validation" not in folder.splits:
        yield f"no test folder: {settings.test_fraction:g} of the images are held out as the test split"


def _deeper(folder: Folder) -> Iterator[str]:
    """Folders in class folders, whose names decide nothing."""
    level = 1 + any(part.folder for part in folder.splits.values())  # of folders in class folders
    inner = Counter(parts[level] for part in folder.splits.values() for file in part.files
                    if len(parts := file.path.split("/")) > level + 1)  # fmt: skip
    if inner:
        counts = [f"{name} ({count} images)" for name, count in inner.most_common()]
        yield f"folders in class folders, whose images count to the class: {join_names(counts, FILES)}"
    if splits := sorted(name for name in inner if split_name(name)):
        yield (
            f"warning: folders in class folders are no splits: {join_names(splits, FILES)}. Splits must be on the top "
            "level, as test/CLASS/"
        )


def _passed_over(folder: Folder, where: str) -> Iterator[str]:
    """Image files that are not used, by reason; other files by ending."""
    for reason, paths in folder.skipped.items():
        yield f"passed over{where}: {len(paths)} image(s) {reason}: {join_names(paths, FILES)}"
    if folder.others:
        counts = sorted(folder.others.items(), key=lambda one: (-one[1], one[0]))
        kinds = [f"{count} {ending}" for ending, count in counts]
        yield f"not images{where}: {join_names(kinds, CLASSES)}"
