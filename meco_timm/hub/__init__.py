"""Publish a finished student on the Hugging Face Hub.

In: a run folder. Out: a model card; one commit on the Hugging Face Hub.
Never: changes the student.
"""

from meco_timm.hub.finish import describe_run, finish_run
from meco_timm.hub.publishing import publish, publish_settings

__all__ = [
    "describe_run",
    "finish_run",
    "publish",
    "publish_settings",
]
