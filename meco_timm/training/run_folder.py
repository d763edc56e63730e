"""The run folder: all files of one run."""

import json
import shutil
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from meco_timm.common import UserError, get_logger, write_json, write_text
from meco_timm.evaluation import Row
from meco_timm.recipe import Recipe, changed_keys, recipe_key, to_yaml
from meco_timm.training.inputs import check_inputs, inputs_of

if TYPE_CHECKING:  # a finished run is shown without torch
    from accelerate import Accelerator

logger = get_logger(__name__)

# Keys that may change while a run is not finished: it then continues with the new values.
MAY_CHANGE = {"loop.steps", "loop.epochs", "loop.validations", "loop.patience"}


class RunFolder:
    """recipe.yaml (defaults written out), plan.txt, data.parquet (the files of local data) and weights.json (digests of
    local weights), combination.json (the teachers' temperatures and weights), metrics.jsonl, checkpoints/ in training,
    then student/, predictions.safetensors, table.json and report.html."""

    def __init__(self, path: Path):
        self.path = path
        self.student = path / "student"
        self.table = path / "table.json"
        self.predictions = path / "predictions.safetensors"
        self.report = path / "report.html"

    def finished_rows(self) -> list[Row] | None:
        """The table of a finished run; None otherwise."""
        if not self.table.exists():
            return None
        return [Row(**row) for row in json.loads(self.table.read_text())["rows"]]

    def finish(self, rows: list[Row], about: dict[str, Any]) -> None:
        """Write table.json, which marks the run as finished, and delete the checkpoints.

        It is written after all other files except the report, which can be made from them.
        """
        write_json(self.table, {"rows": [row._asdict() for row in rows], "about": about})
        self.drop_checkpoints()

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints of a finished run."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def create(self, recipe: Recipe, plan: str) -> None:
        """Make the folder, and write the recipe and the plan.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / "recipe.yaml", to_yaml(recipe))  # first: it identifies the folder
            write_text(self.path / "plan.txt", plan)
        except OSError as error:
            raise UserError(f"run: the folder {self.path} cannot be written: {error.strerror}.") from None


def move_aside(recipe: Recipe) -> None:
    """Rename the run folder to the first free `NAME.old-N`, so that a new run can start and nothing is lost."""
    path = Path(recipe.run or "run")
    if path.exists():
        n = next(n for n in count(1) if not path.with_name(f"{path.name}.old-{n}").exists())
        path.rename(path.with_name(f"{path.name}.old-{n}"))


def open_run_folder(recipe: Recipe, fresh: bool, accelerator: "Accelerator") -> RunFolder:
    """As `find_run_folder`; all processes look at it after it was renamed (`fresh`), and before it is created."""
    if fresh and accelerator.is_main_process:
        move_aside(recipe)
    accelerator.wait_for_everyone()
    folder = find_run_folder(recipe)
    accelerator.wait_for_everyone()
    return folder


def finished_run(recipe: Recipe) -> tuple[RunFolder, list[Row]] | None:
    """The folder and the results of this run, if it is finished; its data and weights must be the same, as far as they
    are still there.

    Raises:
        UserError: the folder contains the run of another recipe; else as `check_inputs`.
    """
    folder = RunFolder(Path(recipe.run or "run"))
    rows = folder.finished_rows()
    if rows is None:
        return None
    find_run_folder(recipe)
    check_inputs(folder.path, inputs_of(recipe))
    logger.info("%s holds this run, finished; nothing is trained again.", folder.path)
    return folder, rows


def find_run_folder(recipe: Recipe) -> RunFolder:
    """The folder `recipe.run`, which may not exist yet.

    Raises:
        UserError: it contains the run of another recipe, or other files.
    """
    folder = RunFolder(Path(recipe.run or "run"))
    saved = folder.path / "recipe.yaml"
    try:
        if saved.exists():
            _same_recipe(recipe, saved, finished=folder.table.exists())
        elif folder.path.exists() and {p.name for p in folder.path.iterdir()} - {"recipe.yaml.tmp"}:
            raise UserError(f"run: {folder.path} is not empty and not a run folder. Choose another with run=FOLDER.")
    except OSError as error:
        raise UserError(f"run: the folder {folder.path} cannot be used: {error.strerror}.") from None
    return folder


def _same_recipe(recipe: Recipe, saved: Path, finished: bool) -> None:
    old = Recipe.model_validate(yaml.safe_load(saved.read_text(encoding="utf-8")))
    changed = changed_keys(recipe_key(old), recipe_key(recipe))
    if changed and (finished or set(changed) - MAY_CHANGE):
        raise UserError(
            f"run: {saved.parent} holds the run of another recipe; it differs in {', '.join(changed)}. "
            "Choose another folder with run=FOLDER, leave `run` out to have one per recipe, or write --fresh to "
            "rename this one."
        )
