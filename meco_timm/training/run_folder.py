"""The run folder: all files of one run, and what the run was made from. Nothing here imports torch."""

import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from meco_timm.common import UserError, get_logger, write_content, write_json, write_text
from meco_timm.data import MANIFEST, Manifest, changes
from meco_timm.evaluation import AnyRow, Row, read_rows
from meco_timm.networks import weights_file_digest
from meco_timm.recipe import Network, changed_keys, saved_key

if TYPE_CHECKING:  # a finished run is shown without torch
    from accelerate import Accelerator

logger = get_logger(__name__)

WEIGHTS = "weights.json"
# Keys that may change while a run is not finished: it then continues with the new values.
MAY_CHANGE = {"loop.steps", "loop.epochs", "loop.min_steps", "loop.validations", "loop.patience"}


class Inputs(NamedTuple):
    """What a run is made from besides its recipe.

    manifest: the files of the data set; empty for data of the Hub. weights: digest of each local weights file, by the
    key of its network in the recipe.
    """

    manifest: Manifest
    weights: dict[str, str]

    @classmethod
    def of(cls, manifest: Manifest, networks: Mapping[str, Network]) -> "Inputs":
        """With the weights files of these networks, by key, as they are now."""
        digests = {key: weights_file_digest(network) for key, network in networks.items()}
        return cls(manifest, {key: digest for key, digest in digests.items() if digest})


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

    def finished_rows(self) -> list[Any] | None:
        """The table of a finished run; None otherwise."""
        if not self.table.exists():
            return None
        return read_rows(json.loads(self.table.read_text())["rows"])

    def about(self) -> dict[str, Any]:
        """The facts that `finish` wrote."""
        return json.loads(self.table.read_text())["about"]

    def finish(self, rows: Sequence[AnyRow], about: dict[str, Any]) -> None:
        """Write table.json, which marks the run as finished, and delete the checkpoints.

        It is written after all other files except the report, which can be made from them.
        """
        write_json(self.table, {"rows": [row._asdict() for row in rows], "about": about})
        self.drop_checkpoints()

    def exports(self) -> list[Row]:
        """The rows of the student's exported files, if there are any."""
        return [Row(**row) for row in json.loads(self.table.read_text()).get("exports", [])]

    def add_exports(self, rows: list[Row]) -> None:
        """Add the rows of the student's exported files to table.json, in place of earlier ones of the same names."""
        kept = {row.name: row for row in [*self.exports(), *rows]}
        write_json(self.table, json.loads(self.table.read_text()) | {"exports": [r._asdict() for r in kept.values()]})

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints of a finished run."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def create(self, recipe: str, plan: str) -> None:
        """Make the folder, and write the recipe, as YAML with all defaults, and the plan.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / "recipe.yaml", recipe)  # first: it identifies the folder
            write_text(self.path / "plan.txt", plan)
        except OSError as error:
            raise UserError(f"run: the folder {self.path} cannot be written: {error.strerror}.") from None

    def move_aside(self) -> None:
        """Rename the folder to the first free `NAME.old-N`, so that a new run can start and nothing is lost."""
        names = (self.path.with_name(f"{self.path.name}.old-{n}") for n in count(1))
        if self.path.exists():
            self.path.rename(next(name for name in names if not name.exists()))

    def check_recipe(self, key: dict[str, Any]) -> None:
        """Refuse the folder of another recipe; it may not exist yet. key: the `recipe_key`.

        Raises:
            UserError: the folder contains the run of another recipe, or other files.
        """
        saved = self.path / "recipe.yaml"
        try:
            if not saved.exists():
                if self.path.exists() and {p.name for p in self.path.iterdir()} - {"recipe.yaml.tmp"}:
                    raise UserError(
                        f"run: {self.path} is not empty and not a run folder. Choose another with run=FOLDER."
                    )
                return
            changed = changed_keys(saved_key(saved), key)
        except OSError as error:
            raise UserError(f"run: the folder {self.path} cannot be used: {error.strerror}.") from None
        if changed and (self.table.exists() or set(changed) - MAY_CHANGE):
            raise UserError(
                f"run: {self.path} holds the run of another recipe; it differs in {', '.join(changed)}. "
                "Choose another folder with run=FOLDER, leave `run` out to have one per recipe, or write --fresh to "
                "rename this one."
            )

    def check_inputs(self, inputs: Inputs) -> None:
        """Refuse to continue a run, or to take its results, with other data or weights. Data and weights that are no
        longer there are not compared.

        Raises:
            UserError: says what has changed.
        """
        before = Manifest.read(self.path / MANIFEST)
        if before and inputs.manifest.entries and (difference := changes(before, inputs.manifest)):
            raise UserError(
                f"data.source: {self.path} holds a run with other data: {difference}. Put the data back, choose "
                "another folder with run=FOLDER, or write --fresh to start a new run; the old one is then renamed."
            )
        try:
            weights = json.loads((self.path / WEIGHTS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if changed := [key for key, digest in weights.items() if inputs.weights.get(key, digest) != digest]:
            raise UserError(
                f"{changed[0]}: {self.path} holds a run with other weights of {', '.join(changed)}: the local file has "
                "changed. Put it back, choose another folder with run=FOLDER, or write --fresh to start a new run."
            )

    def write_inputs(self, inputs: Inputs) -> None:
        """Write data.parquet, unless the data are of the Hub, and weights.json, if there are local weights."""
        if inputs.manifest.entries:
            write_content(self.path / MANIFEST, inputs.manifest.bytes())
        if inputs.weights:
            write_content(self.path / WEIGHTS, inputs.weights)


def open_run_folder(path: Path, key: dict[str, Any], fresh: bool, accelerator: "Accelerator") -> RunFolder:
    """The run folder, which may not exist yet. key: the `recipe_key`. fresh: rename an older one first.

    Raises:
        UserError: as of `RunFolder.check_recipe`.
    """
    folder = RunFolder(path)
    if fresh and accelerator.is_main_process:
        folder.move_aside()
    accelerator.wait_for_everyone()  # all processes look at it after it was renamed, and before it is created
    folder.check_recipe(key)
    accelerator.wait_for_everyone()
    return folder
