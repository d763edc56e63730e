"""Used by all rooms: errors, files, logging, paths, progress, randomness.

In and out: plain values.
Never: imports another room, or torch at import time.
"""

from meco_timm.common.class_names import as_synsets, imagenet, join_names, printable, read_class_names
from meco_timm.common.commit import source_commit
from meco_timm.common.devices import upload
from meco_timm.common.encoding import print_anything
from meco_timm.common.errors import UserError, did_you_mean, first_line, require_extra
from meco_timm.common.files import (
    digest_of,
    flush,
    is_unfinished,
    move_into_place,
    unfinished,
    write_content,
    write_json,
    write_text,
)
from meco_timm.common.layout import WIDTH, Table, column_groups, lay_out
from meco_timm.common.logs import RESULT, get_logger, is_main_process, log_to_screen, set_verbosity, terminal_width
from meco_timm.common.memory import collect_new_objects_only, keep_freed_memory
from meco_timm.common.paths import FOLDERS, expand, is_object, located, object_name, public, short_name
from meco_timm.common.progress import ProgressBar, Status, format_seconds
from meco_timm.common.randomness import batch_seed, derive, draw, reseed, student_seed
from meco_timm.common.signals import Interrupted, StopSign, listen
from meco_timm.common.stopwatch import Stopwatch, share_of_time

__all__ = [
    "FOLDERS",
    "RESULT",
    "WIDTH",
    "Interrupted",
    "ProgressBar",
    "Status",
    "StopSign",
    "Stopwatch",
    "Table",
    "UserError",
    "as_synsets",
    "batch_seed",
    "collect_new_objects_only",
    "column_groups",
    "derive",
    "did_you_mean",
    "digest_of",
    "draw",
    "expand",
    "first_line",
    "flush",
    "format_seconds",
    "get_logger",
    "imagenet",
    "is_main_process",
    "is_object",
    "is_unfinished",
    "join_names",
    "keep_freed_memory",
    "lay_out",
    "listen",
    "located",
    "log_to_screen",
    "move_into_place",
    "object_name",
    "print_anything",
    "printable",
    "public",
    "read_class_names",
    "require_extra",
    "reseed",
    "set_verbosity",
    "share_of_time",
    "short_name",
    "source_commit",
    "student_seed",
    "terminal_width",
    "unfinished",
    "upload",
    "write_content",
    "write_json",
    "write_text",
]
