"""Compress an ensemble of timm models into one timm model.

from meco_timm import distill, load_recipe
rows = distill(load_recipe("recipes/quickstart.yaml", ["seed=1"]))
"""

from typing import TYPE_CHECKING, Any

from meco_timm.errors import UserError
from meco_timm.reading import load_recipe

if TYPE_CHECKING:
    from meco_timm.pipeline import distill, fill_store, plan

__all__ = ["UserError", "distill", "fill_store", "load_recipe", "plan"]


def __getattr__(name: str) -> Any:
    if name in ("distill", "fill_store", "plan"):  # torch is imported only when something is to be done
        from meco_timm import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'meco_timm' has no attribute {name!r}")
