"""New words of the method, added to a copy of the repository as CONTRIBUTING.md says, and trained with."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from conftest import ROOT, write
from helpers.launch import Forked, finished

FUNCTIONS = {  # by the dict that CONTRIBUTING.md names
    "LOGITS": """
def huber(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    return F.huber_loss(student / temperature, teacher / temperature)
""",
    "BLOCKS": """
def cosine(teacher: Tensor, student: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(teacher, student, dim=1).mean()
""",
    "VECTORS": """
def maxima(maps: Tensor, length: int) -> Tensor:
    return F.adaptive_max_pool1d(maps.flatten(1), length)
""",
    "ADVERSARIES": """
def wasserstein(discriminator: Discriminator, teacher: Tensor, student: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    loss = discriminator(scale_gradient(student, -weight)).mean() - discriminator(teacher).mean()
    return loss, loss.detach()
""",
}


def add(root: Path) -> dict[str, dict[str, str]]:
    """Follow the table of CONTRIBUTING.md in a copy; returns the recipe's keys with the new words."""
    rows = re.findall(r"\| `(\S+\.py)`, `(\w+)` \| `(\w+)\.(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text())
    assert {row[1] for row in rows} == FUNCTIONS.keys()
    keys: dict[str, dict[str, str]] = {}
    for file, table, section, key in rows:
        name = re.search(r"def (\w+)", FUNCTIONS[table])[1]  # type: ignore[index]
        _edit(root / "meco_timm" / file, rf"(\n{table}: .*= \{{)", rf'\n{FUNCTIONS[table]}\n\1"{name}": {name}, ')
        key_of_recipe = rf"(class {section}\b.*?\n    {key}: .*?Literal\[)"
        _edit(root / "meco_timm/recipe/method.py", key_of_recipe, rf'\1"{name}", ')
        keys.setdefault(section.lower(), {})[key] = name
    return keys


def _edit(file: Path, place: str, text: str) -> None:
    text, count = re.subn(place, text, file.read_text(), count=1, flags=re.DOTALL if "class" in place else 0)
    assert count == 1, place
    file.write_text(text)


def test_a_word_is_one_function_and_its_name_in_two_places(recipe: dict[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("meco_timm", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    recipe |= add(copy)
    recipe["alignment"] |= {"blocks": 2, "length": 32}
    recipe["losses"] |= {"blocks": 0.5}
    recipe["discriminators"] |= {"on": "all"}
    recipe["teachers"] = [{"train": "test_resnet"}]
    finished([Forked(str(copy), write(recipe, tmp_path), program="train by a copy")])
    lines = [json.loads(line) for line in Path(recipe["run"], "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "total" in line]
    assert {"similarity/logits", "similarity/1", "adversary/0", "adversary/logits"} < losses[-1].keys()
    assert len(losses) == 4
    assert all(value is not None for line in losses for value in line.values())
