"""Messages go through Python's logging; only the commands show them, on the right stream."""

import logging
import warnings

import pytest
from conftest import write

from meco_timm import distill, load_recipe
from meco_timm.cli import main
from meco_timm.common import RESULT, get_logger, log_to_screen, set_verbosity

note, result = get_logger("meco_timm.test"), get_logger(RESULT)


def messages() -> None:
    """One of each kind; also what Pillow and huggingface_hub warn of."""
    note.debug("detail")
    note.info("step %d", 3)
    note.warning("disk full")
    result.info("top-1 [bold] 98.00 " + "x" * 300)
    warnings.warn("Palette images with Transparency expressed in bytes should be converted", stacklevel=1)
    logging.getLogger("huggingface_hub.repocard").warning("Repo card metadata block was not found.")


@pytest.mark.parametrize(
    ("verbose", "expected"),
    [
        (None, "step 3\nwarning: disk full\n"),
        (False, "warning: disk full\n"),
        (True, "detail\nstep 3\nwarning: disk full\n"),
    ],
)
def test_what_is_shown_where(capsys, caplog, verbose, expected):
    """Results on standard output, notes on standard error, not wrapped; then all is as it was."""
    root = logging.getLogger("meco_timm")
    before = (root.level, root.propagate, list(root.handlers), list(warnings.filters))
    with log_to_screen(verbose), warnings.catch_warnings(record=True) as shown:
        messages()
    out, err = capsys.readouterr()
    assert (out, err) == ("top-1 [bold] 98.00 " + "x" * 300 + "\n", expected)
    ignored = (len(shown), "Repo card" in caplog.text)
    assert ignored == ((1, True) if verbose else (0, False))
    assert (root.level, root.propagate, list(root.handlers), list(warnings.filters)) == before


def test_the_verbosity_can_be_set_later(capsys):
    with log_to_screen():
        set_verbosity(False)
        note.info("hidden")
        set_verbosity(True)
        note.debug("shown")
    assert capsys.readouterr().err == "shown\n"


def test_other_processes_of_a_launch_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with log_to_screen(True):
        note.warning("disk full")
        result.info("table")
    assert "".join(capsys.readouterr()) == ""


def test_importing_installs_nothing():
    """conftest.py has imported all that a run imports."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "meco_timm"]
    assert len(names) > 10
    assert all(not logging.getLogger(name).handlers for name in names)


def test_from_python_a_run_is_silent_and_its_log_can_be_had(recipe, tmp_path, capsys, caplog):
    recipe |= {"teachers": [{"train": "test_resnet"}], "loop": recipe["loop"] | {"steps": 2}}
    rows = distill(load_recipe(write(recipe, tmp_path)))
    assert capsys.readouterr() == ("", "")
    assert rows[0].name == "test_resnet"
    assert any(message.startswith("student  step 2/2") for message in caplog.messages)
    assert "true ensemble " in caplog.text


def test_the_commands_have_quiet_and_verbose(ended, capsys):
    recipe = str(ended.parent / "recipe.yaml")
    shown = {}
    for option in ("-q", "-v", None):
        assert main([recipe, *([option] if option else [])]) == 0
        out, shown[option] = capsys.readouterr()
        assert "student alone  " in out
        assert "Load the student" in out
    assert shown["-q"] == ""
    assert "nothing is trained again" in shown[None]
    assert "nothing is trained again" in shown["-v"]
