"""The form that all benchmarks share: sides measured by turns, a table for people, `--json FILE` for comparison.

CPU time instead of the clock, and sides that take turns, because a machine that others use too is slower at one
moment than at another; a ratio of two sides within one round does not notice.
"""

import argparse
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from meco_timm.common import source_commit

Row = dict[str, Any]  # column → value


def arguments(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has. A benchmark that is terminated from here on ends its children
    too: none goes on training."""
    signal.signal(signal.SIGTERM, partial(_end_with_children, os.getpid()))
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and figures there too")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each side (default %(default)s)")
    return parser


def _end_with_children(owner: int, number: int, frame: object) -> None:
    if os.getpid() != owner:  # a child that was forked has the handler too, and ends as without it
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    sys.exit(128 + number)


def by_turns(sides: dict[str, Callable[[], Any]], rounds: int, calls: int = 1) -> dict[str, list[float]]:
    """CPU seconds of one call of each side in each round: the median of `calls` calls, the sides alternating by call.

    One call of each warms up; another side begins each time.
    """
    for side in sides.values():
        side()
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds * calls):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            began = time.process_time()
            sides[name]()
            seconds[name].append(time.process_time() - began)
    return {name: [median(s[i : i + calls]) for i in range(0, len(s), calls)] for name, s in seconds.items()}


def ratio(seconds: dict[str, list[float]], side: str, base: str) -> float:
    """Median over rounds of side/base."""
    return median(a / b for a, b in zip(seconds[side], seconds[base], strict=True))


def spread(values: list[float]) -> str:
    """Smallest – largest."""
    return f"{min(values):.3g} – {max(values):.3g}"


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` in a fresh process, which also gives it a peak of memory of its own.

    Linux hands a process's peak down to those that it starts, so call this before this process grows.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def report(benchmark: str, rows: list[Row], figures: dict[str, float], file: Path | None) -> None:
    """Print the table and the figures; write them to `file` in the form all benchmarks share."""
    print(f"{benchmark}, commit {source_commit()}, {torch.get_num_threads()} thread(s)\n\n{table(rows)}\n")
    print("  ".join(f"{name} {_cell(value)}" for name, value in figures.items()))
    if file:
        write(file, benchmark, rows, figures)


def write(file: Path, benchmark: str, rows: list[Row], figures: dict[str, float]) -> None:
    """The form that all benchmarks share."""
    result = {"benchmark": benchmark, "commit": source_commit(), "threads": torch.get_num_threads(), "rows": rows}
    file.write_text(json.dumps(result | {"figures": figures}, indent=1, ensure_ascii=False) + "\n")


def table(rows: list[Row]) -> str:
    """Columns as in the first row; the first to the left, the others to the right."""
    lines = [list(rows[0]), *([_cell(row.get(name)) for name in rows[0]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pads = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    return "\n".join("  ".join(p(c, w) for p, c, w in zip(pads, line, widths, strict=True)).rstrip() for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return "" if value is None else str(value)
