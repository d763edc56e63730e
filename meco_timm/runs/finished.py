"""A finished run, shown from its folder: table, verdict, report and student. Nothing here imports torch."""

from pathlib import Path

from meco_timm.common import RESULT, get_logger, is_main_process, short_name
from meco_timm.data import read_manifest
from meco_timm.evaluation import Row, compare_errors, compare_features, styled_table
from meco_timm.recipe import Recipe, recipe_key
from meco_timm.training import Inputs, RunFolder

logger = get_logger(__name__)
result = get_logger(RESULT)


def finished_run(recipe: Recipe) -> tuple[RunFolder, list[Row]] | None:
    """The folder and the results of this run; None if it is not finished.

    Raises:
        UserError: the run folder contains the run of another recipe, or one with other data or weights.
    """
    folder = RunFolder(Path(recipe.run or "run"))
    rows = folder.finished_rows()
    if rows is None:
        return None
    folder.check_recipe(recipe_key(recipe))
    folder.check_inputs(Inputs.of(read_manifest(recipe.data, labels_needed=not recipe.is_backbone), recipe.networks))
    logger.info("%s holds this run, finished; nothing is trained again.", folder.path)
    return folder, rows


def show_finished(recipe: Recipe) -> bool:
    """Show this run, if it is finished and nothing is left to do; returns whether it was.

    Raises:
        UserError: as `finished_run`.
    """
    found = None if recipe.publish else finished_run(recipe)
    if found is None:
        return False
    show_results(recipe, *found)
    return True


def show_results(recipe: Recipe, folder: RunFolder, rows: list[Row]) -> None:
    """Print the table, and where the report and the student are; in the main process."""
    if not is_main_process():
        return
    folder.drop_checkpoints()  # the run may have been killed after it wrote its results
    place = f"local-dir:{folder.student.resolve()}"
    if recipe.is_backbone:
        result.info(styled_table(rows, "\nPooled features, on held-out images"))
        result.info("\n%s", compare_features(rows))
        _show_report(folder)
        result.info('\nLoad the backbone with timm:\n  timm.create_model("%s", pretrained=True, num_classes=0)', place)
        return
    result.info(styled_table([*rows, *folder.exports()], f"\nTest split of {short_name(recipe.data.source)}"))
    for note in folder.about().get("data_notes", []):
        result.info("Note: %s.", note)
    result.info("\n%s", compare_errors(rows))
    if explanation := folder.about().get("explanation"):
        result.info("%s To try, added to the command (trained teachers are reused):\n  %s", *explanation)
    _show_report(folder)
    result.info('\nLoad the student with timm:\n  timm.create_model("%s", pretrained=True)', place)


def _show_report(folder: RunFolder) -> None:
    """Write the report, if it is not there, and say where it is."""
    if not folder.report.exists():
        from meco_timm.reporting import report

        report(folder.path)
    result.info("\nReport: %s", folder.report)
