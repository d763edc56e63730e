"""Compress an ensemble of timm models into one timm model.

from meco_timm import distill, load_recipe
rows = distill(load_recipe("recipes/quickstart.yaml", ["seed=1"]))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from meco_timm.errors import UserError
from meco_timm.reading import load_recipe

if TYPE_CHECKING:
    from meco_timm.comparing import compare
    from meco_timm.judging import evaluate
    from meco_timm.listing import list_teachers
    from meco_timm.pipeline import distill, fill_store, plan
    from meco_timm.publishing import publish
    from meco_timm.reporting import report

__all__ = [
    "UserError",
    "compare",
    "distill",
    "evaluate",
    "fill_store",
    "list_teachers",
    "load_recipe",
    "plan",
    "publish",
    "report",
]

_HOMES = {
    "compare": "comparing",
    "distill": "pipeline",
    "evaluate": "judging",
    "fill_store": "pipeline",
    "list_teachers": "listing",
    "plan": "pipeline",
    "publish": "publishing",
    "report": "reporting",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # torch is imported only when something is to be done
        return getattr(import_module(f"meco_timm.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'meco_timm' has no attribute {name!r}")
