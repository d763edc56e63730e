"""What the user sees while a loop runs: a live bar on a terminal, a plain line now and then in a file."""

import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 15.0


class Ticker:
    """Progress of one training run of `total` steps; silent where `shown` is false (all but the main process)."""

    def __init__(self, title: str, total: int, start: int, shown: bool):
        self.title, self.total, self.start, self.shown = title, total, start, shown
        self.began = self.last_line = time.monotonic()
        self.bar: Progress | None = None
        if shown and Console().is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.completed}/{task.total}")]
            self.bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
            self.task = self.bar.add_task(title, total=total, completed=start, note="")

    def __enter__(self) -> "Ticker":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, done: int, note: str = "") -> None:
        """`done` steps are behind us; `note` (images/s, losses) replaces the last one unless empty."""
        if self.bar:
            self.bar.update(self.task, completed=done)
            if note:
                self.bar.update(self.task, note=note)
        elif self.shown and note and (time.monotonic() - self.last_line > LINE_SECONDS or done == self.total):
            self.last_line = time.monotonic()
            left = (self.last_line - self.began) / max(done - self.start, 1) * (self.total - done)
            say(f"{self.title}  step {done}/{self.total}  {left:.0f} s left  {note}")


def say(text: str) -> None:
    """A line for the user; call it on the main process only."""
    print(text, file=sys.stdout, flush=True)


def say_first(text: str) -> None:
    """A line for the user where nothing is known of processes yet: the first of the launch says it."""
    if os.environ.get("RANK", "0") == "0":
        say(text)
