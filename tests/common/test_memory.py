"""Python's garbage collection during a run."""

import gc

import pytest

from meco_timm.common import collect_new_objects_only


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
    gc.freeze()
    before = gc.get_freeze_count()
    with collect_new_objects_only():
        assert gc.get_freeze_count() == before
    assert gc.get_freeze_count() == before
