"""A finished student as others get it: card, licences, ONNX files, the Hugging Face Hub.

In: a run folder. Out: a model card; ONNX files; one commit on the Hugging Face Hub, and one to a Space.
Never: changes the student.
"""

from meco_timm.hub.exporting import Export, export_onnx
from meco_timm.hub.finish import describe_run, finish_backbone_run, finish_run
from meco_timm.hub.latency_table import measure_networks
from meco_timm.hub.publishing import publish, publish_settings

__all__ = [
    "Export",
    "describe_run",
    "export_onnx",
    "finish_backbone_run",
    "finish_run",
    "measure_networks",
    "publish",
    "publish_settings",
]
