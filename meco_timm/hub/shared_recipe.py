"""The recipe of a finished run for others who repeat it, with its table and environment as comments."""

from typing import Any

from meco_timm.common import Table, lay_out, public
from meco_timm.evaluation import table_columns
from meco_timm.hub.card import repeat_command
from meco_timm.recipe import Publish, dump_yaml
from meco_timm.reporting import Results, title


def shared_recipe(results: Results, settings: Publish) -> str:
    """The run's recipe as YAML, which `meco-timm train` takes: all keys, but without folder, trackers and upload.

    Of absolute paths, which contain names of users and disks, only the last part is left.
    """
    recipe, about = results.recipe, results.about
    facts = {
        "command": repeat_command(results, settings),
        "hardware": about.get("hardware", about["device"]),
        "versions": ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        "seed": recipe["seed"],
    }
    heads, *rows = zip(*table_columns([*results.rows, *results.exports]), strict=True)
    table = Table([*heads], [[*row] for row in rows], frozenset(heads[1:]))
    head = [
        f"{title(results)}, on {public(recipe['data']['source'])}. With the same data, versions and hardware meco_timm",
        "repeats the run, and all of this table but the speeds:",
        "",
        *lay_out([table]).splitlines(),
        *(f"{name:<10} {value}" for name, value in facts.items()),
    ]
    comments = "\n".join(f"# {' '.join(line.splitlines())}".rstrip() for line in head)
    keys = recipe | {"run": None, "trackers": [], "publish": None}
    return f"{comments}\n\n{dump_yaml(public_values(keys))}"


def public_values(value: Any) -> Any:
    """The value with every text in it as `public` shows it."""
    if isinstance(value, dict):
        return {key: public_values(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [public_values(inner) for inner in value]
    return public(value) if isinstance(value, str) else value
