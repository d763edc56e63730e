"""Progress of loops and stages: one live line on a terminal, otherwise a log message now and then."""

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.text import Text

from meco_timm.common.logs import get_logger, live_console

LINE_SECONDS = 30.0  # between two messages of a loop
SILENT_SECONDS = 5.0  # without a word, at most
BAR = 16  # characters

logger = get_logger(__name__)


def format_seconds(seconds: float) -> str:
    """Format as `45 s`, `12 min` or `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class _Live:
    """The live line of a loop or a stage. A second one inside of it shows nothing: a terminal has one last line."""

    shown = False

    def __init__(self) -> None:
        self.console = None if _Live.shown else live_console()

    def show(self, display: Any) -> None:
        _Live.shown, self.display = True, display
        display.start()

    def hide(self) -> None:
        if self.console:
            self.display.stop()
            _Live.shown = False


class ProgressBar(_Live):
    """Progress of `total` steps, of which `start` are done; shown by the main process only.

    report_end: log the last step in any case.
    """

    def __init__(self, title: str, total: int, start: int = 0, report_end: bool = False):
        super().__init__()
        self.report_end = report_end
        self.title, self.total, self.start = title, total, start
        self.fields: Sequence[str] = ()
        self.began = self.last_line = time.monotonic()
        self.silent = LINE_SECONDS if _Live.shown else SILENT_SECONDS  # before the first message

    def __enter__(self) -> "ProgressBar":
        if self.console:
            self.bar = Progress(_Line(self.console), console=self.console)
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.start, fields=())
            self.show(self.bar)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.hide()

    def step(self, done: int, fields: Sequence[str] = ()) -> None:
        """`done` steps are complete; `fields`, the most important first, replace the last ones unless empty."""
        self.fields = fields or self.fields
        if self.console:
            self.bar.update(self.task, completed=done, fields=self.fields)
            return
        now = time.monotonic()
        last = self.report_end and done == self.total
        if now - self.last_line >= self.silent or last:
            self.last_line, self.silent = now, LINE_SECONDS
            spent = now - self.began
            left = f"{format_seconds(spent / max(done - self.start, 1) * (self.total - done))} left"
            rest = left if done < self.total else f"in {format_seconds(spent)}"
            line = [f"{self.title}  step {done}/{self.total}", rest, *self.fields]
            logger.info("%s", "  ".join(line))


class _Line(ProgressColumn):
    """Name, bar, step and time left, then as many fields as there is room for."""

    max_refresh = None

    def __init__(self, console: Console):
        super().__init__()
        self.console = console

    def render(self, task: Task) -> Text:
        """The line of a task, no wider than the console."""
        done, total = int(task.completed), int(task.total or 0)
        if task.finished:
            left = f"  in {format_seconds(task.finished_time or 0)}"
        else:
            left = "" if task.time_remaining is None else f"  {format_seconds(task.time_remaining)} left"
        step, width = f" {done}/{total}{left}", self.console.width - 1
        room = max(width - len(step) - BAR - 1, 10)
        name = task.description if len(task.description) <= room else f"{task.description[: room - 1]}…"
        filled = BAR * done // max(total, 1)
        line = Text.assemble(name, " ", ("━" * filled, "green"), ("━" * (BAR - filled), "bright_black"), step)
        for field in task.fields["fields"]:
            if len(line) + 2 + len(field) > width:
                break
            line.append(f"  {field}")
        return line


class Status(_Live):
    """The stage that runs now: with its seconds on a terminal, otherwise a message when it has taken some seconds.

    with Status("reading the images") as status:
        status.update("measuring test_resnet")
    """

    def __init__(self, text: str):
        super().__init__()
        self.text = text
        self.task: TaskID | None = None
        self.timer: threading.Timer | None = None

    def __enter__(self) -> "Status":
        if self.console:
            self.bar = Progress(_Seconds(), console=self.console, transient=True)
            self.show(self.bar)
        self.update(self.text)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.timer:
            self.timer.cancel()
        self.hide()

    def update(self, text: str) -> None:
        """The next stage begins."""
        if self.console:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(text, total=None)
            return
        if self.timer:
            self.timer.cancel()
        self.timer = threading.Timer(SILENT_SECONDS, logger.info, [f"{text} …"])
        self.timer.daemon = True
        self.timer.start()


class _Seconds(ProgressColumn):
    """Text and seconds of a stage."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.description} … {task.elapsed or 0:.0f} s", no_wrap=True, overflow="ellipsis")
