"""Compress an ensemble of timm models into one timm model.

from meco_timm import distill, load_recipe
rows = distill(load_recipe("quickstart", ["seed=1"]))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from meco_timm.common import UserError
from meco_timm.recipe import load_recipe

if TYPE_CHECKING:
    from meco_timm.evaluation import evaluate, predict
    from meco_timm.hub import export_onnx, publish
    from meco_timm.pipeline import distill, fill_store, plan
    from meco_timm.planning import rank_teachers
    from meco_timm.reporting import compare, report
    from meco_timm.runs import repeat
    from meco_timm.task import EnsembleDistillation
    from meco_timm.zoo import list_teachers

__version__ = "0.2.0.dev0"

__all__ = [
    "EnsembleDistillation",
    "UserError",
    "__version__",
    "compare",
    "distill",
    "evaluate",
    "export_onnx",
    "fill_store",
    "list_teachers",
    "load_recipe",
    "plan",
    "predict",
    "publish",
    "rank_teachers",
    "repeat",
    "report",
]

_ROOMS = {
    "EnsembleDistillation": "task",
    "compare": "reporting",
    "distill": "pipeline",
    "evaluate": "evaluation",
    "export_onnx": "hub",
    "fill_store": "pipeline",
    "list_teachers": "zoo",
    "plan": "pipeline",
    "predict": "evaluation",
    "publish": "hub",
    "rank_teachers": "planning",
    "repeat": "runs",
    "report": "reporting",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:  # torch is imported only when something is to be done
        return getattr(import_module(f"meco_timm.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'meco_timm' has no attribute {name!r}")
