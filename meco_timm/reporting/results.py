"""The results of a finished run, which the report, the model card and publishing read."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import yaml
from accelerate import Accelerator

from meco_timm.common import UserError, is_object, located, public
from meco_timm.data import DataSource
from meco_timm.evaluation import Combination, Predictions, Row, load_predictions
from meco_timm.networks import Stream, is_foreign
from meco_timm.recipe import Network, Recipe, Teacher, named_teachers
from meco_timm.selection import kept_combination
from meco_timm.training import RunFolder
from meco_timm.zoo import draw

LIBRARIES = ("torch", "timm", "accelerate", "datasets", "safetensors")


class Results(NamedTuple):
    """A finished run: recipe, table, facts (`about_run`), lines of metrics.jsonl, predictions.

    `predictions` is None and `about` is empty for runs of older versions, which did not save them.
    """

    folder: RunFolder
    recipe: Recipe
    rows: list[Row]
    about: dict[str, Any]
    metrics: list[dict[str, Any]]
    predictions: Predictions | None

    @property
    def combination(self) -> Combination:
        """How the run combined its teachers."""
        return kept_combination(self.folder.path, named_teachers(self.recipe.teachers), self.recipe.zoo)

    def row(self, name: str) -> Row:
        """The table's row of that name; `student` and `student alone` are always there."""
        return {row.name: row for row in self.rows}[name]

    @property
    def ensemble(self) -> Row | None:
        """The true ensemble's row; None if no teacher gives logits."""
        return self.row("true ensemble") if self.teachers else None

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers that have a row."""
        return [row.name for row in self.rows if row.name not in ("true ensemble", "student alone", "student")]


def about_run(
    recipe: Recipe, data: DataSource, teachers: dict[str, Stream], steps: int, accelerator: Accelerator
) -> dict[str, Any]:
    """Facts recorded during the run: number of images, origin and licence of weights, device, versions."""
    networks = zip(named_teachers(recipe.teachers).items(), teachers.values(), strict=True)
    splits = {"train": data.train, "labelled": data.labelled, "validation": data.validation, "test": data.test}
    return {
        "images": {name: len(images) for name, images in splits.items()},
        "local_data": Path(recipe.data.source).is_dir() or is_object(recipe.data.source),
        "origins": {name: origin(teacher, stream.model.pretrained_cfg) for (name, teacher), stream in networks},
        "student_origin": origin(recipe.student, {}),
        "steps": steps,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "precision": accelerator.mixed_precision,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def origin(network: Network, config: dict[str, Any]) -> dict[str, str | None]:
    """Origin of a network's initial weights: `start` as text, repository on the `hub`, `licence`; None if unknown.

    `config`: timm's pretrained config of a network whose weights the run does not change.
    """
    trained = not isinstance(network, Teacher) or network.train
    if trained and not network.names_weights:
        return {"start": "random weights", "hub": None, "licence": None}
    licence = None if trained else config.get("license")
    if network.weights or network.model.startswith("local-dir:"):
        return {"start": "a local file", "hub": None, "licence": licence}
    if is_object(network.model):
        return {"start": "a network of the Python program", "hub": None, "licence": licence}
    if is_foreign(network.model):
        return {"start": public(network.model), "hub": None, "licence": licence}
    if ":" in network.model:
        hub = network.model.partition(":")[2].partition("@")[0]
        return {"start": hub, "hub": hub, "licence": licence}
    tag = timm.get_pretrained_cfg(network.model)
    home = tag.hf_hub_id if tag else None
    return {"start": home or network.model, "hub": home, "licence": tag.license if tag else None}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl; empty if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_results(path: str | Path) -> Results:
    """The results of the run in the folder `path`.

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
        recipe = Recipe.model_validate(yaml.safe_load((folder.path / "recipe.yaml").read_text(encoding="utf-8")))
        table = json.loads(folder.table.read_text(encoding="utf-8"))
        rows = [Row(**row) for row in table["rows"]]
        metrics = read_metrics(folder.path / "metrics.jsonl")
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: its files are damaged and cannot be read: {error}") from None
    if not {"student", "student alone"} <= {row.name for row in rows}:
        raise UserError(f"{folder.table} is damaged: it has no rows `student` and `student alone`.")
    return Results(folder, recipe, rows, table.get("about", {}), metrics, load_predictions(folder.predictions))


def drawn_teachers(results: Results) -> np.ndarray:
    """Index of the teacher drawn at each step; empty if not one of several was drawn for all processes."""
    recipe, count = results.recipe, len(results.recipe.teachers)
    steps = max((line["step"] for line in results.metrics), default=0)
    if recipe.zoo.sampling != "random" or count == 1:
        return np.array([], dtype=int)
    weights = results.combination.weights_of(named_teachers(recipe.teachers))
    return np.array([draw(recipe.seed, step, count, weights=weights) for step in range(steps)], dtype=int)


def metrics_by_teacher(results: Results) -> dict[str, list[dict[str, Any]]]:
    """The lines of metrics of the steps for which each teacher was drawn; empty if `drawn_teachers` is."""
    drawn = drawn_teachers(results)
    names = named_teachers(results.recipe.teachers) if len(drawn) else {}
    return {
        name: [line for line in results.metrics if drawn[line["step"] - 1] == i] for i, name in enumerate(names)
    }  # fmt: skip


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


def title(results: Results) -> str:
    """`test_vit from 3 teachers`."""
    count = len(results.recipe.teachers)
    return f"{public(results.recipe.student.model)} from {count} teacher{'s' if count > 1 else ''}"


def verdict(results: Results) -> str:
    """The results in one sentence."""
    student, alone, ensemble = results.row("student"), results.row("student alone"), results.ensemble
    images = f"{results.about['images']['test']:,} " if results.about else ""
    text = (
        f"The student, {public(results.recipe.student.model)}, has a top-1 accuracy of {student.top1:.2f} % on the "
        f"{images}test images with one forward pass of {millions(student.multiply_adds)} million multiply-adds: "
        + _gap(results, student, alone, "the same network trained alone on the labels")
    )
    if ensemble is None:
        return text + "."
    times = ensemble.multiply_adds / max(student.multiply_adds, 1)
    count = len(results.teachers)
    named = f"the true ensemble of {count} teacher{'s' if count > 1 else ''}"
    return f"{text}, and {_gap(results, student, ensemble, named)}, which costs {times:.1f} times as much."


def millions(count: float) -> str:
    """A count in millions: 0.96, 4.1, 1,820."""
    value = count / 1e6
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _gap(results: Results, student: Row, other: Row, named: str) -> str:
    """`2.34 points more than the …`, with its interval if there are predictions."""
    gap = round(student.top1 - other.top1, 2)
    text = f"{abs(gap):.2f} points {'more' if gap > 0 else 'less'} than {named}" if gap else f"as much as {named}"
    if results.predictions is None or not gap:
        return text
    return f"{text} ({interval(*(results.predictions.right(name) for name in ('student', other.name)))})"
