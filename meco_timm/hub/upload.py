"""One commit to a repository of the Hub: created if it does not exist; another's content is not replaced unasked."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils.sha import git_hash

from meco_timm.common import UserError
from meco_timm.hub.retries import with_retries
from meco_timm.recipe import Publish


class Target(NamedTuple):
    """A repository of the Hub and what it is to contain: name → file or content.

    main: the file by which a repository with this content is told from another. branch: None for `main`.
    """

    repo: str
    kind: Literal["model", "space"]
    files: dict[str, Path | bytes]
    main: str
    branch: str | None = None

    def show(self) -> None:
        """Print the files and their sizes."""
        where = f"the Space {self.repo}" if self.kind == "space" else self.repo
        print(f"To {where}{f' ({self.branch})' if self.branch else ''}, in one commit:")
        for name, content in self.files.items():
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            print(f"  {size / 1e6:8.3f} MB  {name}")


def upload(api: HfApi, target: Target, message: str, settings: Publish, run: Path) -> None:
    """Create the repository and the branch if they do not exist, then make one commit.

    Raises:
        UserError: the Hub refuses or fails, the repository has other content, or it is public although a private one
            is asked for.
    """
    repo, kind, branch = target.repo, target.kind, target.branch or "main"

    def ask(action: Any, **options: Any) -> Any:
        return with_retries(lambda: action(repo, repo_type=kind, **options), repo, settings, run)

    sdk = {"space_sdk": "gradio"} if kind == "space" else {}
    ask(api.create_repo, private=settings.private, exist_ok=True, **sdk)
    if settings.private and not ask(api.repo_info).private:
        place = f"spaces/{repo}" if kind == "space" else repo
        raise UserError(
            f"publish: {repo} is there already and public, but private is asked for. Nothing was uploaded to it. Make "
            f"it private at huggingface.co/{place}/settings, name another repository, or write --public."
        )
    if branch != "main":
        ask(api.create_branch, branch=branch, exist_ok=True)
    info = ask(api.repo_info, revision=branch, files_metadata=True)
    obsolete = _obsolete_files(info.siblings or [], target, settings.overwrite)

    def commit() -> Any:
        additions = [_addition(name, content) for name, content in target.files.items()]  # new for every attempt
        operations: list[Any] = [*additions, *(CommitOperationDelete(name) for name in obsolete)]
        return api.create_commit(repo, operations, commit_message=message, revision=branch, repo_type=kind)

    with_retries(commit, repo, settings, run)


def _addition(name: str, content: Path | bytes) -> CommitOperationAdd:
    return CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))


def _obsolete_files(existing: list[Any], target: Target, overwrite: bool) -> list[str]:
    """Other files in the repository, to be deleted if `overwrite` is set.

    Raises:
        UserError: it has other content and `overwrite` is not set.
    """
    main = next((file for file in existing if file.rfilename == target.main), None)
    others = [file.rfilename for file in existing if file.rfilename not in (*target.files, ".gitattributes")]
    same = main is not None and _has_content(main, target.files[target.main])
    if not overwrite and ((main is not None and not same) or (main is None and others)):
        names = ", ".join(sorted(file.rfilename for file in existing))
        what = "app" if target.kind == "space" else "model"
        raise UserError(
            f"publish: {target.repo} contains another {what} ({names[:200]}). "
            f"Name another repository, or replace the {what} with --overwrite (publish.overwrite=true)."
        )
    return others if overwrite or same else []


def _has_content(file: Any, content: Path | bytes) -> bool:
    """Whether a file of the Hub has this content, by its hash."""
    if file.lfs is not None:
        return file.lfs.sha256 == _addition(file.rfilename, content).upload_info.sha256.hex()
    return file.blob_id == git_hash(content if isinstance(content, bytes) else content.read_bytes())
