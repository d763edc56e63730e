from .caching import CachePlan, cache_images, plan_cache
from .decoding import decode, decode_file
from .folders import Folder
from .hub_datasets import COUNTS, known_data
from .images import BadImages
from .labels import NO_LABEL, Split
from .loading import Batch, DataSource, Images, check_batch, load_data, whole_split
from .manifest import MANIFEST, Manifest, changes, read_manifest
from .names import split_name
from .objects import data_of
from .sources import read_source
from .stored import content_of
from .verification import verify
from .views import Steps, numbered
from .walk import image_files

__all__ = [
    "COUNTS",
    "MANIFEST",
    "NO_LABEL",
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
    "content_of",
    "data_of",
    "decode",
    "decode_file",
    "image_files",
    "known_data",
    "load_data",
    "numbered",
    "plan_cache",
    "read_manifest",
    "read_source",
    "split_name",
    "verify",
    "whole_split",
]
