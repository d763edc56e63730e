"""Python's garbage collection and the C library's memory during a run."""

import ctypes
import gc
import os
import platform
import subprocess
import sys

import pytest

from meco_timm.common import collect_new_objects_only, keep_freed_memory


@pytest.fixture
def unfrozen():
    """Without the objects that conftest.py leaves out."""
    gc.unfreeze()
    yield
    gc.freeze()


def test_what_is_there_at_the_beginning_is_left_out_until_the_end(unfrozen):
    with collect_new_objects_only():
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0


def test_it_ends_with_an_error_too(unfrozen):
    with pytest.raises(ValueError, match="amid"), collect_new_objects_only():
        raise ValueError("amid")
    assert gc.get_freeze_count() == 0


def test_what_the_program_left_out_stays_left_out(unfrozen):
    """By one object, since the number of those left out falls whenever one of them is no longer needed."""
    mark: list[object] = [object]
    collected = any(known is mark for known in gc.get_objects())
    gc.freeze()
    with collect_new_objects_only():
        within = any(known is mark for known in gc.get_objects())
    assert collected
    assert not within
    assert not any(known is mark for known in gc.get_objects())


@pytest.fixture
def plain_environment(monkeypatch):
    """Without settings of the C library's memory."""
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)


FAULTS = """
import resource
import numpy as np
from meco_timm.common import keep_freed_memory
{before}
def step():
    parts = [np.ones(4 << 17) for _ in range(8)]  # 4 MiB, or 1,024 pages, each
step(), step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_memory_of_a_step_is_used_again_by_the_next(plain_environment):
    def faults(before: str) -> int:
        words = [sys.executable, "-c", FAULTS.format(before=before)]
        return int(subprocess.run(words, capture_output=True, check=True).stdout)

    assert faults("assert keep_freed_memory()") < 2_000
    assert faults("") > 20_000


def test_settings_of_the_users_own_stay(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(plain_environment, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
