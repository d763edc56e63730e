"""The results of a finished run, which the report, the model card and publishing read."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from meco_timm.common import UserError, draw, located, public
from meco_timm.evaluation import Predictions, Row, compare_features, load_predictions, read_rows
from meco_timm.training import RunFolder

COMPARED = ("student", "student alone", "true ensemble")  # in the table of classes


class Results(NamedTuple):
    """A finished run: the recipe's keys, the table, facts (`describe_run`), lines of metrics.jsonl,
    predictions, rows of exported files.

    `predictions` is None if their file was deleted.
    """

    folder: RunFolder
    recipe: dict[str, Any]
    rows: list[Any]  # `Row`, or `BackboneRow`
    about: dict[str, Any]
    metrics: list[dict[str, Any]]
    predictions: Predictions | None
    exports: list[Row] = []  # noqa: RUF012  never changed

    def row(self, name: str) -> Any:
        """The table's row of that name; `student` and `student alone` are always there."""
        return next(row for row in self.rows if row.name == name)

    @property
    def ensemble(self) -> Row | None:
        """The true ensemble's row; None if no teacher gives logits."""
        return self.row("true ensemble") if self.teachers else None

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers that have a row."""
        return [row.name for row in self.rows if row.name not in ("true ensemble", "student alone", "student")]

    @property
    def weights(self) -> dict[str, float]:
        """Weight in the true ensemble, by name of every teacher."""
        return self.about["weights"]

    @property
    def is_backbone(self) -> bool:
        """Whether the student has no head; the rows are then `BackboneRow`."""
        return self.recipe.get("task") == "backbone"

    def page_fields(self) -> dict[str, Any]:
        """What the report of any student shows besides its results."""
        path = self.folder.path
        plan = path / "plan.txt"
        return {
            "run": path.resolve().name,
            "recipe": self.recipe,
            "facts": self.facts(),
            "plan": plan.read_text(encoding="utf-8") if plan.exists() else "",
            "recipe_yaml": (path / "recipe.yaml").read_text(encoding="utf-8"),
        }

    def facts(self) -> list[tuple[str, Any]]:
        """(name, value) of the settings and facts at the end of a report."""
        recipe, about, images = self.recipe, self.about, self.about["images"]
        names = [teacher["model"] + (" (trained here)" if teacher["train"] else "") for teacher in recipe["teachers"]]
        return [
            ("data", recipe["data"]["source"]),
            ("teachers", ", ".join(names)),
            ("student", recipe["student"]["model"]),
            ("seed", recipe["seed"]),
            ("images", f"{images['train']:,} to train on, {images['labelled']:,} of them with labels; "
                       f"{images['validation']:,} validation, {images['test']:,} test"),
            ("steps", f"{about['steps']:,} of {about['batch_size']} images"),
            ("device", f"{about.get('hardware', about['device'])}, precision {about['precision']}"),
            ("versions", ", ".join(f"{name} {number}" for name, number in about["versions"].items())),
        ]  # fmt: skip


def read_results(path: str | Path) -> Results:
    """Read the run in the folder `path`.

    Raises:
        UserError: there is no run, it has not finished, or its files are damaged.
    """
    folder = RunFolder(Path(path))
    if not (folder.path / "recipe.yaml").is_file():
        raise UserError(
            f"{located(path)} is not a run folder: it has no recipe.yaml. Name one, for example runs/quickstart-…."
        )
    if not folder.table.exists():
        raise UserError(
            f"{path}: the run has not finished (it has no table.json). Continue it with "
            f"accelerate launch -m meco_timm {folder.path / 'recipe.yaml'}"
        )
    try:
        recipe = read_keys(folder)
        table = json.loads(folder.table.read_text(encoding="utf-8"))
        rows, exports = (read_rows(table.get(part, [])) for part in ("rows", "exports"))
        about = table["about"]
        metrics = read_metrics(folder.path / "metrics.jsonl")
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: its files are damaged and cannot be read: {error}") from None
    other = "student before" if recipe.get("task") == "backbone" else "student alone"
    if not {"student", other} <= {row.name for row in rows}:
        raise UserError(f"{folder.table} is damaged: it has no rows `student` and `{other}`.")
    return Results(folder, recipe, rows, about, metrics, load_predictions(folder.predictions), exports)


def read_keys(folder: RunFolder) -> dict[str, Any]:
    """The keys of the run's recipe, with all defaults."""
    return yaml.safe_load((folder.path / "recipe.yaml").read_text(encoding="utf-8"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl; empty if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def drawn_teachers(results: Results) -> np.ndarray:
    """Index of the teacher drawn at each step; empty if not one of several was drawn."""
    weights = list(results.weights.values())
    if results.recipe["zoo"]["sampling"] != "random" or len(weights) == 1:
        return np.array([], dtype=int)
    steps = max((line["step"] for line in results.metrics), default=0)
    shares = weights if len(set(weights)) > 1 else None
    seed = results.recipe["seed"]
    return np.array([draw(seed, step, len(weights), weights=shares) for step in range(steps)], dtype=int)


def metrics_by_teacher(results: Results) -> dict[str, list[dict[str, Any]]]:
    """The lines of metrics of the steps for which each teacher was drawn; empty if `drawn_teachers` is."""
    drawn = drawn_teachers(results)
    names = list(results.weights) if len(drawn) else []
    return {name: [line for line in results.metrics if drawn[line["step"] - 1] == i] for i, name in enumerate(names)}


def difference(right: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Difference of two accuracies on the same N images: (points, half width of its 95 % interval).

    Paired, by the normal approximation. `right`, `other`: N booleans, whether each prediction is right.
    """
    gap = right.astype(float) - other
    return 100 * gap.mean(), 196 * gap.std() / np.sqrt(len(gap))


def interval(right: np.ndarray, other: np.ndarray) -> str:
    """`95 % interval +0.5 to +2.1` of the difference, and whether it is significant."""
    middle, half = difference(right, other)
    text = f"95 % interval {middle - half:+.1f} to {middle + half:+.1f}".replace("-", "−")
    return f"{text}, not significant" if abs(middle) <= half else text


def class_table(results: Results, limit: int) -> list[list[str]]:
    """Head and lines: class, its test images, and the share of them that each network has right, in per cent.

    At most `limit` classes: those in which the student is worst, from the worst on; else all, in their order.
    """
    columns = {row.name: row.per_class for row in results.rows if row.name in COMPARED}
    student, p = columns["student"], results.predictions
    classes = list(student)
    if len(classes) > limit:
        measured = [name for name in classes if student[name] is not None]
        classes = sorted(measured, key=lambda name: student[name] or 0.0)[:limit]
    counts = dict(zip(p.classes, np.bincount(p.label, minlength=len(p.classes)), strict=True)) if p else {}
    names = [name for name in COMPARED if name in columns]
    cells = [[columns[name][one] for name in names] for one in classes]
    lines = [
        [one, str(counts.get(one, "–")), *("–" if cell is None else f"{cell:.1f}" for cell in line)]
        for one, line in zip(classes, cells, strict=True)
    ]
    return [["class", "test images", *(f"{name} %" for name in names)], *lines]


def title(results: Results) -> str:
    """`test_vit from 3 teachers`."""
    return f"{public(results.recipe['student']['model'])} from {_count_teachers(len(results.weights))}"


def summary(results: Results) -> str:
    """The results in one sentence: the student's accuracy and cost, against the student alone and the ensemble."""
    if results.is_backbone:
        return compare_features(results.rows)
    student, ensemble = results.row("student"), results.ensemble
    text = (
        f"The student, {public(results.recipe['student']['model'])}, has a top-1 accuracy of {student.top1:.2f} % on "
        f"the {results.about['images']['test']:,} test images with one forward pass of "
        f"{millions(student.multiply_adds)} million multiply-adds: "
        + _gap(results, results.row("student alone"), "the same network trained alone on the labels")
    )
    if ensemble is None:
        return text + "."
    times = ensemble.multiply_adds / max(student.multiply_adds, 1)
    gap = _gap(results, ensemble, f"the true ensemble of {_count_teachers(len(results.teachers))}")
    return f"{text}, and {gap}, which costs {times:.1f} times as much."


def _gap(results: Results, other: Row, name: str) -> str:
    """`2.34 points more than the …`, with its interval if there are predictions."""
    gap = round(results.row("student").top1 - other.top1, 2)
    text = f"{abs(gap):.2f} points {'more' if gap > 0 else 'less'} than {name}" if gap else f"as much as {name}"
    p = results.predictions
    return text if p is None or not gap else f"{text} ({interval(p.right('student'), p.right(other.name))})"


def _count_teachers(count: int) -> str:
    return f"{count} teacher{'s' if count > 1 else ''}"


def millions(count: float) -> str:
    """A count in millions: 0.96, 4.1, 1,820."""
    value = count / 1e6
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
