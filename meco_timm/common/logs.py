"""Logging: every module logs to a child of the logger `meco_timm`; the commands show it on the screen.

Nothing is installed by importing. Without a handler, Python shows warnings on standard error and drops the rest.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

ROOT = "meco_timm"
RESULT = f"{ROOT}.result"  # tables and final results: standard output, also with --quiet
FILE_WIDTH = 10_000  # characters of a line in a file, which is not wrapped

# Warnings of libraries that the user of a command can do nothing about; --verbose shows them.
IGNORED_WARNINGS = ("Palette images with Transparency",)  # Pillow: images are converted to RGB as timm does it
IGNORED_LOGGERS = ("huggingface_hub.repocard",)  # "Repo card metadata block was not found": of others' model cards


def get_logger(name: str) -> logging.Logger:
    """Python's logger `name`, below `meco_timm`; it is silent in all processes of a launch but the main one."""
    logger = logging.getLogger(name)
    logger.addFilter(_in_main_process)
    return logger


def is_main_process() -> bool:
    """Whether this is the main process of a launch, as known before torch is imported."""
    return os.environ.get("RANK", "0") == "0"


def _in_main_process(record: logging.LogRecord) -> bool:
    return is_main_process()


def set_verbosity(verbose: bool | None) -> None:
    """`True` shows all messages, `None` progress and notes, `False` only warnings and results."""
    levels = {True: logging.DEBUG, None: logging.INFO, False: logging.WARNING}
    logging.getLogger(ROOT).setLevel(levels[verbose])
    for name in IGNORED_LOGGERS:
        logging.getLogger(name).setLevel(logging.NOTSET if verbose else logging.ERROR)
    for start in IGNORED_WARNINGS:
        warnings.filterwarnings("default" if verbose else "ignore", message=start)


@contextmanager
def log_to_screen(verbose: bool | None = None) -> Iterator[None]:
    """Show the log as plain text: results on standard output, everything else on standard error.

    For the commands. The previous state of Python's logging and warnings is restored at the end.
    """
    root, result, *ignored = (logging.getLogger(name) for name in (ROOT, RESULT, *IGNORED_LOGGERS))
    levels = {logger: logger.level for logger in (root, result, *ignored)}
    screens = {root: ScreenHandler(stderr=True), result: ScreenHandler(stderr=False)}
    with warnings.catch_warnings():
        set_verbosity(verbose)
        result.setLevel(logging.INFO)
        for logger, handler in screens.items():
            logger.addHandler(handler)
            logger.propagate = False
        try:
            yield
        finally:
            for logger, handler in screens.items():
                logger.removeHandler(handler)
                logger.propagate = True
            for logger, level in levels.items():
                logger.setLevel(level)


class ScreenHandler(RichHandler):
    """The message alone. Rich's own layout adds time, level and path, and fills each line with spaces."""

    def __init__(self, stderr: bool):
        console = Console(stderr=stderr)
        super().__init__(console=console if console.is_terminal else Console(stderr=stderr, width=FILE_WIDTH))

    def render(self, *, record: logging.LogRecord, **_: Any) -> Text:
        if isinstance(record.msg, Text):  # a table with its styles
            return record.msg
        return Text(f"{'warning: ' * (record.levelno >= logging.WARNING)}{record.getMessage()}")


def terminal_width(otherwise: int) -> int:
    """Columns of the terminal that the log is shown on; `otherwise` where there is none."""
    consoles = [handler.console for handler in logging.getLogger(ROOT).handlers if isinstance(handler, ScreenHandler)]
    return next((console.width for console in consoles if console.is_terminal), otherwise)


def live_console() -> Console | None:
    """The terminal for a progress bar: only in the main process, where `log_to_screen` is active and shows progress."""
    logger = logging.getLogger(ROOT)
    if not (logger.isEnabledFor(logging.INFO) and is_main_process()):
        return None
    consoles = [handler.console for handler in logger.handlers if isinstance(handler, ScreenHandler)]
    return next((console for console in consoles if console.is_terminal), None)
