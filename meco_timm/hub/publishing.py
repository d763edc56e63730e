"""Publish a student on the Hugging Face Hub: one commit of a fixed list of files. Repeating it changes nothing."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from pydantic import ValidationError

from meco_timm.common import RESULT, UserError, get_logger, public, write_content
from meco_timm.data import DataSource, load_data
from meco_timm.hub.card import card_files, timm_name
from meco_timm.hub.exporting import FLOAT32, INT8, export_onnx, preprocessor_config
from meco_timm.hub.licences import licence_warning
from meco_timm.hub.retries import with_retries
from meco_timm.recipe import Data, Publish, dump_yaml
from meco_timm.reporting import Results, read_results, title

logger = get_logger(__name__)

WEIGHTS = "model.safetensors"


def publish(run: str | Path, settings: Publish, dry_run: bool = False) -> str:
    """Upload the student of a finished run, and return the name under which timm loads it.

    The student is first loaded from disk and evaluated on the test split; its accuracy must be that of the table.
    `dry_run`: list what would be uploaded, without a connection.

    Raises:
        UserError: the run has not finished, the student's accuracy is not that of the table, there is no token, the
            repository contains another model, or the Hub refuses or fails. The run folder stays complete.
    """
    if settings.onnx and not dry_run:
        export_onnx(run, int8=True)
    results = read_results(run)
    classes = json.loads((results.folder.student / "config.json").read_text(encoding="utf-8")).get("label_names", [])
    card = card_files(results, classes, settings)
    if not dry_run:
        for name, content in card.items():
            write_content(results.folder.student / name, content)
    files = named_files(results, settings.onnx)
    if warning := licence_warning(results, settings.license):
        logger.warning(warning)
    if dry_run:
        _print_files(files, settings)
        return timm_name(settings)
    token = get_token()
    if not token:
        raise UserError(
            "publish: no Hugging Face token was found. Log in with `hf auth login`, or set HF_TOKEN to a token with "
            "write access (huggingface.co/settings/tokens), then repeat the command."
        )
    check_student(results)
    _upload(HfApi(token=token), settings, files, results)
    headless = ", num_classes=0" if results.is_backbone else ""
    message = f'Published. Load it with timm:\n  timm.create_model("%s", pretrained=True{headless})'
    get_logger(RESULT).info(message, timm_name(settings))
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


def named_files(results: Results, onnx: bool = False) -> dict[str, Path | bytes]:
    """Name in the repository → file or content, of everything that is uploaded. onnx: with the exported files.

    Raises:
        UserError: a file is missing.
    """
    student, run = results.folder.student, results.folder.path
    files = {name: student / name for name in (WEIGHTS, "config.json", "README.md")}
    files |= {name: run / name for name in ("table.json", "metrics.jsonl")}
    files |= {f"figures/{path.name}": path for path in sorted((student / "figures").glob("*.png"))}
    if onnx:
        files |= {f"onnx/{name}": student / "onnx" / name for name in (FLOAT32, INT8)}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise UserError(f"publish: {', '.join(missing)} is missing from the run. Nothing was uploaded.")
    made = {"recipe.yaml": public_yaml(results.recipe).encode()}
    if onnx:
        made["preprocessor_config.json"] = json.dumps(preprocessor_config(student), indent=1).encode()
    return {**files, **made}


def public_yaml(recipe: dict[str, Any]) -> str:
    """The recipe as YAML; of absolute paths, which contain names of users and disks, only the last part."""

    def published(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: published(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [published(inner) for inner in value]
        return public(value) if isinstance(value, str) else value

    return dump_yaml(published(recipe))


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


def _upload(api: HfApi, settings: Publish, files: dict[str, Path | bytes], results: Results) -> None:
    """Create the repository and the branch if they do not exist, then make one commit.

    Raises:
        UserError: the repository contains another model, or is public although a private one is asked for.
    """
    repo, branch, run = settings.repo, settings.revision or "main", results.folder.path
    with_retries(lambda: api.create_repo(repo, private=settings.private, exist_ok=True), settings, run)
    if settings.private and not with_retries(lambda: api.model_info(repo), settings, run).private:
        raise UserError(
            f"publish: {repo} is there already and public, but private is asked for. Nothing was uploaded. Make it "
            f"private at huggingface.co/{repo}/settings, name another repository, or write --public."
        )
    if branch != "main":
        with_retries(lambda: api.create_branch(repo, branch=branch, exist_ok=True), settings, run)
    info = with_retries(lambda: api.model_info(repo, revision=branch, files_metadata=True), settings, run)
    obsolete = _obsolete_files(info.siblings or [], files, settings)
    message = f"{title(results)}, by meco_timm"

    def commit() -> Any:
        additions = [_addition(name, content) for name, content in files.items()]  # new for every attempt
        operations: list[Any] = [*additions, *(CommitOperationDelete(name) for name in obsolete)]
        return api.create_commit(repo, operations, commit_message=message, revision=branch)

    with_retries(commit, settings, run)


def _addition(name: str, content: Path | bytes) -> CommitOperationAdd:
    return CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))


def _obsolete_files(existing: list[Any], files: dict[str, Path | bytes], settings: Publish) -> list[str]:
    """Other files in the repository, to be deleted if `overwrite` is set.

    Raises:
        UserError: it contains another model and `overwrite` is not set.
    """
    weights = next((file for file in existing if file.rfilename == WEIGHTS), None)
    ours = _addition(WEIGHTS, files[WEIGHTS])
    others = [file.rfilename for file in existing if file.rfilename not in (*files, ".gitattributes")]
    same = weights is not None and weights.lfs is not None and weights.lfs.sha256 == ours.upload_info.sha256.hex()
    if not settings.overwrite and ((weights is not None and not same) or (weights is None and others)):
        names = ", ".join(sorted(file.rfilename for file in existing))
        raise UserError(
            f"publish: {settings.repo} contains another model ({names[:200]}). "
            "Name another repository, or replace the model with --overwrite (publish.overwrite=true)."
        )
    return others if settings.overwrite or same else []


def _print_files(files: dict[str, Path | bytes], settings: Publish) -> None:
    print(f"To {settings.repo}{f' ({settings.revision})' if settings.revision else ''}, in one commit:")
    for name, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        print(f"  {size / 1e6:8.3f} MB  {name}")
