"""Python's garbage collection during a run."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
