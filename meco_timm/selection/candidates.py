"""Networks beyond the recipe's teachers that could be teachers, and what it takes to download them."""

from pathlib import Path
from typing import NamedTuple

import timm
from huggingface_hub import try_to_load_from_cache

from meco_timm.common import UserError, did_you_mean, expand, located
from meco_timm.networks import is_hub_or_folder, make_network
from meco_timm.recipe import Network

MOST = 100
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class Candidate(NamedTuple):
    """A timm name with a tag, `hf-hub:owner/name` or `local-dir:path`. megabytes: to download, 0 if it is here."""

    name: str
    megabytes: float


def find_candidates(text: str) -> list[Candidate]:
    """The networks in a file, one a line (# begins a comment), or those of timm with weights whose name fits a pattern.

    Sizes are those of weights in float32.

    Raises:
        UserError: there are none, more than `MOST`, or a name is unknown.
    """
    names = _names(text)
    if len(names) > MOST:
        raise UserError(f"--candidates: {text} names {len(names)} networks, more than {MOST}. Narrow it.")
    return [Candidate(name, _megabytes(name)) for name in names]


def _names(text: str) -> list[str]:
    file = Path(expand(text))
    if file.is_file():
        try:
            lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--candidates: {located(file)} cannot be read: {error}.") from None
        names = list(dict.fromkeys(line for line in lines if line))
        if not names:
            raise UserError(f"--candidates: {located(file)} names no network. Write one a line.")
        return names
    if is_hub_or_folder(text):
        return [text]
    names = timm.list_pretrained(text)
    if not names:
        near = did_you_mean(text, timm.list_pretrained())
        raise UserError(f"--candidates: {text} is no file, and fits no network of timm with weights.{near}")
    return names


def _megabytes(name: str) -> float:
    """Of the weights, unless they are on this disk."""
    model, _ = make_network(Network(model=name), {}, True, None, f"--candidates: {name}", weightless=True)
    hub = name.partition(":")[2] if name.startswith("hf-hub:") else model.pretrained_cfg.get("hf_hub_id")
    cached = hub and any(isinstance(try_to_load_from_cache(hub, file), str) for file in WEIGHT_FILES)
    if name.startswith("local-dir:") or cached:
        return 0.0
    return sum(p.numel() for p in model.parameters()) * 4 / 1e6


def print_candidates(candidates: list[Candidate]) -> bool:
    """List what is to be downloaded; whether there is anything."""
    for candidate in candidates:
        size = f"{candidate.megabytes:,.0f} MB to download" if candidate.megabytes else "already here"
        print(f"{candidate.name}: {size}")
    total = sum(candidate.megabytes for candidate in candidates)
    if total:
        print(f"In all {total:,.0f} MB to download.")
    return total > 0
