"""The recipe of a student on the Hub, by which others repeat its run."""

from pathlib import Path

from meco_timm.common import UserError, first_line

HUB = "hf-hub:"


def read_hub_recipe(name: str) -> str:
    """Fetch the text of the recipe.yaml of `hf-hub:owner/name`, or of a revision of it: `hf-hub:owner/name@revision`.

    Raises:
        UserError: there is no such repository or revision, it has no recipe, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    repo, _, revision = name.removeprefix(HUB).partition("@")
    try:
        file = hf_hub_download(repo, "recipe.yaml", revision=revision or None)
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"{name}: its recipe.yaml cannot be fetched from the Hub: {first_line(error)}") from None
    return Path(file).read_text(encoding="utf-8")
