"""Requests to the Hub: repeated while it is busy or the connection breaks; an error says how to publish later."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

from meco_timm.common import UserError, first_line
from meco_timm.recipe import Publish

ATTEMPTS, FIRST_WAIT = 4, 1.0  # seconds, doubled each time; the Hub client itself retries large files
LONGEST_WAIT = 300.0  # seconds, if the Hub sends Retry-After
TRANSIENT = (408, 429, 500, 502, 503, 504)
Answer = TypeVar("Answer")


def with_retries(action: Callable[[], Answer], repo: str, settings: Publish, run: Path) -> Answer:
    """Return the Hub's response; retry if the Hub is busy or fails, or the connection breaks.

    Raises:
        UserError: the Hub refuses, or the last attempt fails.
    """
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except (HTTPError, OSError, ValueError, RuntimeError) as raised:
            error = _cause(raised)
            status, retry_after = _response(error)
            transient = status in TRANSIENT if status else isinstance(error, HTTPError | OSError)
            if not transient or attempt == ATTEMPTS - 1:
                raise UserError(_message(error, status, repo, settings, run)) from None
            time.sleep(max(FIRST_WAIT * 2**attempt, retry_after))
    raise AssertionError("a last attempt returns or raises")


def _cause(raised: Exception) -> Exception:
    """The underlying error: the client wraps a failed upload of a large file into a RuntimeError; others are bugs."""
    if not isinstance(raised, RuntimeError):
        return raised
    if not isinstance(raised.__cause__, HTTPError | OSError | ValueError):
        raise raised
    return raised.__cause__


def _response(error: Exception) -> tuple[int | None, float]:
    """(HTTP status of the Hub's response, seconds of its Retry-After header); None and 0 without them."""
    response = error.response if isinstance(error, HfHubHTTPError) else None
    if response is None:
        return None, 0.0
    asked = response.headers.get("retry-after", "")
    return response.status_code, min(float(asked), LONGEST_WAIT) if asked.isdigit() else 0.0


def _message(error: Exception, status: int | None, repo: str, settings: Publish, run: Path) -> str:
    """What went wrong, what to do, and how to publish later; never contains the token."""
    detail = " ".join(str(error).split()) if isinstance(error, ValueError) else first_line(error)
    what = f"{type(error).__name__}: {detail}" if status is None else detail
    what = what.replace(get_token() or "\0", "(token)")
    hint = ""
    if status == 401 or isinstance(error, RepositoryNotFoundError):
        hint = " Check that the token is valid and has write access (`hf auth login`, or HF_TOKEN)."
    elif status == 403:
        hint = f" The token has no write access to {repo}. Use another token, or your own name before the '/'."
    elif isinstance(error, RevisionNotFoundError):
        hint = f" The repository has no branch {settings.revision or 'main'}."
    return (
        f"publish: {repo}: {what}{hint}\nThe run is complete in {run}. Publish it later with\n"
        f"  {publish_command(run, settings)}"
    )


def publish_command(run: Path, settings: Publish) -> str:
    """The command that publishes the run with the same settings."""
    words = ["meco-timm", "publish", str(run), "--repo", settings.repo]
    words.append("--private" if settings.private else "--public")
    for option in ("revision", "license", "card", "space"):
        value = getattr(settings, option)
        words += [f"--{option}", value] if value else []
    words += [f"--{option}" for option in ("overwrite", "onnx", "examples") if getattr(settings, option)]
    return shlex.join(words)
