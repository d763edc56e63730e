"""Images and labels.

In: a folder, parquet files, tars, a Hub id, or a data set of Python.
Out: `Batch(image uint8 B×3×H×W, un-normalised; label; row; view)`.
Never: normalises images, or knows a network.
"""

from meco_timm.data.caching import CachePlan, cache_images, plan_cache
from meco_timm.data.folders import Folder
from meco_timm.data.hub_datasets import COUNTS, known_data
from meco_timm.data.images import BadImages, decode_file
from meco_timm.data.loading import Batch, DataSource, Images, check_batch, load_data, whole_split
from meco_timm.data.manifest import Manifest, changes
from meco_timm.data.names import listed, shown, split_name
from meco_timm.data.objects import data_of
from meco_timm.data.sources import Split, read_manifest, read_source
from meco_timm.data.verification import verify
from meco_timm.data.views import Steps, numbered
from meco_timm.data.walk import image_files

__all__ = [
    "COUNTS",
    "BadImages",
    "Batch",
    "CachePlan",
    "DataSource",
    "Folder",
    "Images",
    "Manifest",
    "Split",
    "Steps",
    "cache_images",
    "changes",
    "check_batch",
    "data_of",
    "decode_file",
    "image_files",
    "known_data",
    "listed",
    "load_data",
    "numbered",
    "plan_cache",
    "read_manifest",
    "read_source",
    "shown",
    "split_name",
    "verify",
    "whole_split",
]
