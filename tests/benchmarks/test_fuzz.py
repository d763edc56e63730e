"""Recipes, folders and tables bent at random: 100, 200 and 60; `python -m benchmarks.fuzz` tries thousands."""

from functools import partial

import pytest

from benchmarks import fuzz
from benchmarks.fuzz_folders import check_folder, folders
from benchmarks.fuzz_recipes import Reader, recipes
from benchmarks.fuzz_tables import check_table, tables


def test_recipes_end_in_a_plan_or_a_message(tmp_path):
    ends, _ = fuzz.run(recipes(), Reader(tmp_path, plan_every=20), 100, 0, raises=True)
    assert ends["planned"] > 0
    assert ends["used"] > 25
    assert ends["refused"] > 25


def test_folders_are_read_as_they_lie_there_or_refused(tmp_path):
    ends, _ = fuzz.run(folders(), partial(check_folder, scratch=tmp_path), 200, 0, raises=True)
    assert ends["used"] > 50
    assert ends["refused"] > 50


def test_tables_and_tars_have_the_labels_that_were_written(tmp_path):
    ends, _ = fuzz.run(tables(), partial(check_table, scratch=tmp_path), 60, 0, raises=True)
    assert ends["used"] > 15
    assert ends["refused"] > 15


def test_classes_taken_by_their_numbers_are_noticed(tmp_path, monkeypatch):
    from meco_timm.data import labels

    monkeypatch.setattr(labels, "_renumber", lambda codes, *_: codes)
    ends, failures = fuzz.run(tables(), partial(check_table, scratch=tmp_path), 40, 0)
    assert ends["failed"] == len(failures) > 0


def test_a_failure_is_counted(tmp_path):
    ends, failures = fuzz.run(folders(), lambda _: {}["nothing"], 5, 0)
    assert ends["failed"] == 5 == len(failures)
    assert failures[0].startswith("KeyError")


def test_a_reading_that_loses_an_image_is_noticed(tmp_path, monkeypatch):
    from meco_timm.data import walk

    monkeypatch.setattr(walk, "image_endings", lambda: frozenset({".png"}))
    with pytest.raises(AssertionError, match="used and"):
        fuzz.run(folders(), partial(check_folder, scratch=tmp_path), 400, 0, raises=True)
