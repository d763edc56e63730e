"""Python's garbage collection and the C library's memory during a run."""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
FREE_KEPT, LARGEST_KEPT = 1 << 30, 32 << 20  # bytes; glibc takes no more for the second


def keep_freed_memory() -> bool:
    """Have the C library keep memory that was freed, where it is glibc; returns whether it does.

    By default glibc gives much of what a training step frees back to the system, and the next step gets it anew, page
    by page: a tenth of the CPU time of small networks on a CPU. Where the user has settings of their own they stay.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # another C library; Windows
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, FREE_KEPT) and mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT))


@contextmanager
def collect_new_objects_only() -> Iterator[None]:
    """Each training ends with a collection (accelerate's `free_memory`), which takes 0.3 s where it looks at every
    object of every module that was imported. Here it leaves out those that are there at the beginning. Where the
    program has chosen what to leave out, that stays."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
