"""Publish a student on the Hugging Face Hub: one commit of a fixed list of files, and one to its Space, if it has one.

Repeating it changes nothing.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from pydantic import ValidationError

from meco_timm.common import RESULT, UserError, get_logger, write_content
from meco_timm.data import DataSource, load_data
from meco_timm.hub.card import card_files, timm_name
from meco_timm.hub.exporting import FLOAT32, INT8, export_onnx, preprocessor_config
from meco_timm.hub.licences import licence_warning
from meco_timm.hub.shared_recipe import shared_recipe
from meco_timm.hub.space import APP, space_files
from meco_timm.hub.upload import Target, upload
from meco_timm.recipe import Data, Publish
from meco_timm.reporting import Results, read_results, title

logger, result = get_logger(__name__), get_logger(RESULT)

WEIGHTS = "model.safetensors"


def publish(run: str | Path, settings: Publish, dry_run: bool = False) -> str:
    """Upload the student of a finished run, and return the name under which timm loads it.

    The student is first loaded from disk and evaluated on the test split; its accuracy must be that of the table.
    `dry_run`: list what would be uploaded, without a connection.

    Raises:
        UserError: the run has not finished, the student's accuracy is not that of the table, there is no token, the
            repository contains another model, or the Hub refuses or fails. The run folder stays complete.
    """
    results = read_results(run)
    if results.is_backbone and (settings.onnx or settings.space):
        raise UserError("publish: onnx and space are for classifiers: a backbone has no classes. Leave them out.")
    if settings.onnx:
        export_onnx(run, int8=True)
        results = read_results(run)  # with the rows of the files
    classes = json.loads((results.folder.student / "config.json").read_text(encoding="utf-8")).get("label_names", [])
    card = card_files(results, classes, settings)
    if not dry_run:
        for name, content in card.items():
            write_content(results.folder.student / name, content)
    if warning := licence_warning(results, settings.license):
        logger.warning(warning)
    targets = [Target(settings.repo, "model", student_files(results, settings), WEIGHTS, settings.revision)]
    if settings.space:
        page: dict[str, Path | bytes] = {**space_files(results, settings)}
        targets.append(Target(settings.space, "space", page, APP))
    if dry_run:
        for target in targets:
            target.show()
        return timm_name(settings)
    token = get_token()
    if not token:
        raise UserError(
            "publish: no Hugging Face token was found. Log in with `hf auth login`, or set HF_TOKEN to a token with "
            "write access (huggingface.co/settings/tokens), then repeat the command."
        )
    check_student(results)
    for target in targets:
        upload(HfApi(token=token), target, f"{title(results)}, by meco_timm", settings, results.folder.path)
    headless = ", num_classes=0" if results.is_backbone else ""
    result.info(
        f'Published. Load it with timm:\n  timm.create_model("%s", pretrained=True{headless})', timm_name(settings)
    )
    if settings.space:
        result.info("Try it: https://huggingface.co/spaces/%s", settings.space)
    return timm_name(settings)


def publish_settings(run: str | Path, options: dict[str, Any]) -> Publish:
    """The `publish:` section of the run's recipe, if any, overridden by `options`.

    Raises:
        UserError: there is no such run, no repository is named, or a value is invalid.
    """
    settings = (read_results(run).recipe["publish"] or {}) | options
    if "repo" not in settings:
        raise UserError("publish: no repository is named. Write --repo owner/name, or publish: {repo: owner/name}.")
    try:
        return Publish.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"publish: {first['loc'][0]}: {first['input']!r}: {message}") from None


def student_files(results: Results, settings: Publish) -> dict[str, Path | bytes]:
    """Name in the repository → file or content, of everything that is uploaded with the student.

    Raises:
        UserError: a file is missing.
    """
    student, run = results.folder.student, results.folder.path
    files = {name: student / name for name in (WEIGHTS, "config.json", "README.md")}
    files |= {name: run / name for name in ("table.json", "metrics.jsonl")}
    files |= {f"figures/{path.name}": path for path in sorted((student / "figures").glob("*.png"))}
    if settings.onnx:
        files |= {f"onnx/{name}": student / "onnx" / name for name in (FLOAT32, INT8)}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise UserError(f"publish: {', '.join(missing)} is missing from the run. Nothing was uploaded.")
    made = {"recipe.yaml": shared_recipe(results, settings).encode()}
    if settings.onnx:
        made["preprocessor_config.json"] = json.dumps(preprocessor_config(student), indent=1).encode()
    return {**files, **made}


def check_student(results: Results) -> None:
    """Load the student from disk and evaluate it on the test split.

    Raises:
        UserError: the test data cannot be read, or its top-1 is not that of the table.
    """
    from meco_timm.evaluation import evaluate

    row = results.row("student")
    try:
        source = load_data(
            Data.model_validate(results.recipe["data"]), results.recipe["seed"], labels_needed=not results.is_backbone
        )
    except UserError as error:
        raise UserError(
            f"publish: the student is evaluated again before it is uploaded, which needs the test data: {error}"
        ) from error
    if results.is_backbone:
        _check_backbone(results, source)
        return
    found = evaluate(f"local-dir:{results.folder.student}", source)
    one_image = 100 / len(source.test)  # tolerance: another device may round differently
    if abs(found.top1 - row.top1) > max(one_image, 0.02) * 1.001:
        raise UserError(
            f"publish: the student in {results.folder.student} has a top-1 accuracy of {found.top1:.2f} % on the "
            f"test split, but the table has {row.top1:.2f} %. Files or data have changed since the run. Nothing was "
            "uploaded."
        )


def _check_backbone(results: Results, source: DataSource) -> None:
    """Measure the k-NN accuracy of the backbone on disk again, if the table has one."""
    from meco_timm.evaluation import measure_knn

    wanted, settings = results.row("student").knn, Data.model_validate(results.recipe["data"])
    labelled = results.recipe["evaluation"]["labelled"]
    if labelled:
        source = load_data(settings.model_copy(update={"source": labelled}), results.recipe["seed"])
    found = measure_knn(f"local-dir:{results.folder.student}", source)
    if wanted is not None and (found is None or abs(found - wanted) > max(100 / len(source.test), 0.02) * 1.001):
        raise UserError(
            f"publish: the backbone in {results.folder.student} has a k-NN accuracy of {found} %, but the table has "
            f"{wanted:.2f} %. Files or data have changed since the run. Nothing was uploaded."
        )
