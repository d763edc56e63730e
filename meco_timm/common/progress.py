"""Progress of a loop: a live bar on a terminal, otherwise a log message now and then."""

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from meco_timm.common.logs import get_logger, live_console

LINE_SECONDS = 15.0

logger = get_logger(__name__)


class Ticker:
    """Progress of `total` steps, of which `start` are done; shown by the main process only."""

    def __init__(self, title: str, total: int, start: int):
        self.title, self.total, self.start = title, total, start
        self.began = self.last_line = time.monotonic()
        self.bar: Progress | None = None
        if console := live_console():
            columns = [TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.completed}/{task.total}")]
            self.bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console)
            self.task = self.bar.add_task(title, total=total, completed=start, note="")

    def __enter__(self) -> "Ticker":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, done: int, note: str = "") -> None:
        """`done` steps are complete; `note` (images/s, losses) replaces the last one unless empty."""
        if self.bar:
            self.bar.update(self.task, completed=done)
            if note:
                self.bar.update(self.task, note=note)
        elif note and (time.monotonic() - self.last_line > LINE_SECONDS or done == self.total):
            self.last_line = time.monotonic()
            left = (self.last_line - self.began) / max(done - self.start, 1) * (self.total - done)
            logger.info("%s  step %d/%d  %.0f s left  %s", self.title, done, self.total, left, note)
