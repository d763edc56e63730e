"""Stopping a process on a signal, with its work saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from meco_timm.common.errors import UserError


class Interrupted(UserError):
    """The run was asked to stop and has saved its state. Exit code 143, as of a process ended by SIGTERM."""

    exit_code = 143


class StopSign:
    """Whether the process has been asked to stop (SIGTERM, or Ctrl-C; a second Ctrl-C stops at once)."""

    def __init__(self) -> None:
        self.seen = False

    def _handle(self, number: int, frame: object) -> None:
        if self.seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.seen = True


@contextmanager
def listen() -> Iterator[StopSign]:
    """Turn SIGTERM and SIGINT into a flag that the loop reads after each step."""
    sign = StopSign()
    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        old = [signal.signal(number, sign._handle) for number in numbers]
    except ValueError:  # not in the main thread, as in some notebooks: a signal then ends the process as usual
        yield sign
        return
    try:
        yield sign
    finally:
        for number, handler in zip(numbers, old, strict=True):
            signal.signal(number, handler)
