"""13 · A student on the Hub: one commit of named files, after the run has ended. Repeating it changes nothing."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from pydantic import ValidationError

from meco_timm.common import RESULT, UserError, get_logger, write_content
from meco_timm.data import load_data
from meco_timm.hub.card import card_files
from meco_timm.hub.licences import licence_warning
from meco_timm.recipe import Publish, public_yaml
from meco_timm.reporting import Results, read_results, title

logger = get_logger(__name__)

WEIGHTS = "model.safetensors"
TRIES, FIRST_WAIT = 4, 1.0  # seconds, then twice as long each time; large files the client itself tries again
LONGEST_WAIT = 300.0  # seconds, if the Hub asks to wait
PASSING = (408, 429, 500, 502, 503, 504)
Answer = TypeVar("Answer")


def publish(run: str | Path, settings: Publish, dry_run: bool = False) -> str:
    """Upload the student of a finished run, and return the name under which timm loads it.

    `dry_run` says what would be uploaded and talks to nobody. The student is loaded from disk and measured on the test
    split first: what is published is what the table says.

    Raises:
        UserError: the run has not ended, the student is not what the table says, there is no token, the repository
            holds another model, or the Hub refuses or fails; the run folder is complete whatever happens.
    """
    results = read_results(run)
    classes = json.loads((results.folder.student / "config.json").read_text(encoding="utf-8"))["label_names"]
    card = card_files(results, classes, settings)
    if not dry_run:
        for name, content in card.items():
            write_content(results.folder.student / name, content)
    files = named_files(results)
    if warning := licence_warning(results, settings.license):
        logger.warning(warning)
    if dry_run:
        _say_files(files, settings)
        return _place(settings)
    token = get_token()
    if not token:
        raise UserError(
            "publish: there is no token of the Hub. Log in with `hf auth login`, or set HF_TOKEN to one that may write "
            "(huggingface.co/settings/tokens); the same command then goes on."
        )
    check_student(results)
    _upload(HfApi(token=token), settings, files, results)
    message = 'Published. Load it with plain timm:\n  timm.create_model("%s", pretrained=True)'
    get_logger(RESULT).info(message, _place(settings))
    return _place(settings)


def publish_settings(run: str | Path, said: dict[str, Any]) -> Publish:
    """The `publish:` of the run's recipe, if any, with what is said here on top.

    Raises:
        UserError: there is no such run, no repository is named, or a value is wrong.
    """
    in_recipe = read_results(run).recipe.publish
    settings = (in_recipe.model_dump() if in_recipe else {}) | said
    if "repo" not in settings:
        raise UserError("publish: no repository is named. Write --repo owner/name, or publish: {repo: owner/name}.")
    try:
        return Publish.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"publish: {first['loc'][0]}: {first['input']!r}: {message}") from None


def named_files(results: Results) -> dict[str, Path | bytes]:
    """Name in the repository → file, or what is in it: all that is uploaded, and nothing else is.

    The recipe goes without the local folders that its paths name.

    Raises:
        UserError: one is missing.
    """
    student, run = results.folder.student, results.folder.path
    files = {name: student / name for name in (WEIGHTS, "config.json", "README.md")}
    files |= {name: run / name for name in ("table.json", "metrics.jsonl")}
    files |= {f"figures/{path.name}": path for path in sorted((student / "figures").glob("*.png"))}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise UserError(f"publish: {', '.join(missing)} is missing from the run, which is therefore not published.")
    return {**files, "recipe.yaml": public_yaml(results.recipe).encode()}


def check_student(results: Results) -> None:
    """Load the student from disk as anyone would, and measure it on the test split.

    Raises:
        UserError: the test data are not there, or its top-1 is not the table's.
    """
    from meco_timm.evaluation import evaluate

    said, data = results.row("student"), results.recipe.data
    try:
        source = load_data(data, results.recipe.seed)
    except UserError as error:
        raise UserError(
            f"publish: the student is measured again before it is uploaded, so the test data must be there: {error}"
        ) from error
    found = evaluate(f"local-dir:{results.folder.student}", source)
    one_image = 100 / len(source.test)  # may fall on the other side: another device rounds otherwise
    if abs(found.top1 - said.top1) > max(one_image, 0.02) * 1.001:
        raise UserError(
            f"publish: the student in {results.folder.student} has {found.top1:.2f} % of the test split right, the "
            f"table says {said.top1:.2f} %. Files or the data were changed since the run ended. Nothing was uploaded."
        )


def _upload(api: HfApi, settings: Publish, files: dict[str, Path | bytes], results: Results) -> None:
    """Make the repository and the branch where they are missing, then one commit."""
    repo, branch = settings.repo, settings.revision or "main"

    def call(action: Callable[[], Answer]) -> Answer:
        return _patiently(action, settings, results)

    call(lambda: api.create_repo(repo, private=settings.private, exist_ok=True))
    if branch != "main":
        call(lambda: api.create_branch(repo, branch=branch, exist_ok=True))
    there = call(lambda: api.model_info(repo, revision=branch, files_metadata=True)).siblings or []
    gone = _not_ours(there, files, settings)
    message = f"{title(results)}, by meco_timm"

    def commit() -> Any:
        operations = [_addition(name, content) for name, content in files.items()]
        return api.create_commit(
            repo,
            [*operations, *(CommitOperationDelete(name) for name in gone)],
            commit_message=message,
            revision=branch,
        )

    call(commit)


def _addition(name: str, content: Path | bytes) -> CommitOperationAdd:
    return CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))


def _not_ours(there: list[Any], files: dict[str, Path | bytes], settings: Publish) -> list[str]:
    """What the repository has besides, and loses where `overwrite` is set.

    Raises:
        UserError: it holds another model and `overwrite` is not set.
    """
    weights = next((file for file in there if file.rfilename == WEIGHTS), None)
    ours = _addition(WEIGHTS, files[WEIGHTS])
    others = [file.rfilename for file in there if file.rfilename not in (*files, ".gitattributes")]
    same = weights is not None and weights.lfs is not None and weights.lfs.sha256 == ours.upload_info.sha256.hex()
    if not settings.overwrite and ((weights is not None and not same) or (weights is None and others)):
        raise UserError(
            f"publish: {settings.repo} holds another model ({', '.join(sorted(f.rfilename for f in there))[:200]}). "
            "Choose another name, or replace it with --overwrite (publish.overwrite=true)."
        )
    return others if settings.overwrite or same else []


def _patiently(action: Callable[[], Answer], settings: Publish, results: Results) -> Answer:
    """What the Hub answers, asked again where it is too busy, fails, or the connection breaks.

    Raises:
        UserError: it refuses, or does not come round.
    """
    for attempt in range(TRIES):
        try:
            return action()
        except (HTTPError, OSError, ValueError, RuntimeError) as raised:
            error = _cause(raised)
            status = _status(error)
            passing = status in PASSING if status else isinstance(error, HTTPError | OSError)
            if not passing or attempt == TRIES - 1:
                raise UserError(_told(error, status, settings, results)) from None
            time.sleep(max(FIRST_WAIT * 2**attempt, _asked_to_wait(error)))
    raise AssertionError("a last attempt returns or raises")


def _cause(raised: Exception) -> Exception:
    """What went wrong: the client wraps a failure to send a large file into a RuntimeError; any other is a bug's."""
    if not isinstance(raised, RuntimeError):
        return raised
    if not isinstance(raised.__cause__, HTTPError | OSError | ValueError):
        raise raised
    return raised.__cause__


def _status(error: Exception) -> int | None:
    """Of the Hub's answer, if it gave one."""
    response = error.response if isinstance(error, HfHubHTTPError) else None
    return None if response is None else response.status_code


def _asked_to_wait(error: Exception) -> float:
    """Seconds that the Hub asks to wait, 0 if it does not."""
    response = error.response if isinstance(error, HfHubHTTPError) else None
    asked = response.headers.get("retry-after", "") if response is not None else ""
    return min(float(asked), LONGEST_WAIT) if asked.isdigit() else 0.0


def _told(error: Exception, status: int | None, settings: Publish, results: Results) -> str:
    """What went wrong, what to do, and how to publish later. The token stands in none of it."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
    detail = " ".join(str(error).split()) if isinstance(error, ValueError) else first
    what = f"{type(error).__name__}: {detail}" if status is None else detail
    what = what.replace(get_token() or "\0", "(token)")
    hint = ""
    if status == 401 or isinstance(error, RepositoryNotFoundError):
        hint = " Is the token right, and may it write? `hf auth login`, or HF_TOKEN."
    elif status == 403:
        hint = f" The token may not write to {settings.repo}: use one that may, or your own name before the '/'."
    elif isinstance(error, RevisionNotFoundError):
        hint = f" The repository has no branch {settings.revision or 'main'}."
    branch = f" --revision {settings.revision}" if settings.revision else ""
    return (
        f"publish: {settings.repo}: {what}{hint}\nThe run is complete in {results.folder.path}; publish it later with\n"
        f"  meco-timm publish {results.folder.path} --repo {settings.repo}{branch}"
    )


def _place(settings: Publish) -> str:
    return f"hf-hub:{settings.repo}" + (f"@{settings.revision}" if settings.revision else "")


def _say_files(files: dict[str, Path | bytes], settings: Publish) -> None:
    print(f"To {settings.repo}{f' ({settings.revision})' if settings.revision else ''}, in one commit:")
    for name, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        print(f"  {size / 1e6:8.3f} MB  {name}")
