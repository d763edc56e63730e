"""What a part of gpu.py finds, written down row by row, so that a part cut off by the clock leaves what it has."""

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.form import Row


class Findings:
    """rows, notes and figures of a part. earlier: the findings of the parts before it, by name."""

    def __init__(self, file: Path, seconds: float, earlier: dict[str, Any]):
        self.file, self.earlier = file, earlier
        self.verdict = "stopped before its end"
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.figures: dict[str, float] = {}
        self._end, self._last, self._longest = time.monotonic() + seconds, time.monotonic(), 0.0

    def add(self, row: Row) -> None:
        """A measurement is done."""
        self.rows.append(row)
        self._longest, self._last = max(self._longest, time.monotonic() - self._last), time.monotonic()
        self.write()

    def has_time(self, what: str, factor: float = 1.5) -> bool:
        """Whether one more measurement fits, `factor` times the longest so far; else a note says what is left out."""
        if time.monotonic() + factor * self._longest < self._end:
            return True
        self.notes.append(f"no time left for {what}: give more --minutes")
        return False

    def write(self) -> None:
        found = {"verdict": self.verdict, "rows": self.rows, "notes": self.notes, "figures": self.figures}
        self.file.write_text(json.dumps(found))
