"""Checkpoints that are written atomically and verified, and stopping on a signal.

A checkpoint's file name contains the digest of its bytes, so that damage is detected; it gets this name by one rename
after it is written. Only tensors and plain values are loaded, never pickled code.
"""

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from meco_timm.common import StopSign, digest_of, first_line, flush, get_logger

logger = get_logger(__name__)

ASK_SECONDS = 1.0  # between two agreements of all processes on stopping and saving
NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.pt")


class Checkpoints:
    """The newest `keep` states of a run in `folder`."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep

    def save(self, step: int, state: dict[str, Any]) -> bool:
        """Write the state of `step`, then delete the oldest; False, with a warning, if it cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / "unfinished.tmp"
        try:
            with beside.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            with suppress(OSError):  # where nothing can be written, nothing can be removed
                beside.unlink(missing_ok=True)
            last = f"that of step {old[0][0]} remains" if (old := self._found()) else "there is none yet"
            why = first_line(error)
            message = "the checkpoint of step %d could not be written to %s (%s); %s"
            logger.warning(message, step, self.folder, why, last)
            return False
        path = beside.rename(self.folder / f"step-{step:09d}-{digest_of(beside)}.pt")
        flush(self.folder)
        logger.debug("checkpoint of step %d: %s, %.1f MB", step, path, path.stat().st_size / 1e6)
        for _, path in self._found()[self.keep :]:
            path.unlink()
        return True

    def newest(self) -> dict[str, Any] | None:
        """The newest undamaged state, on the CPU; damaged ones are skipped with a warning."""
        for step, path in self._found():
            match = NAME.fullmatch(path.name)
            if match and match[2] == digest_of(path):
                return torch.load(path, map_location="cpu", weights_only=True)
            logger.warning("the checkpoint of step %d is damaged and skipped (%s)", step, path)
        return None

    def _found(self) -> list[tuple[int, Path]]:
        """(step, file), newest first."""
        paths = self.folder.glob("step-*.pt") if self.folder.is_dir() else ()
        return sorted(((int(m[1]), path) for path in paths if (m := NAME.fullmatch(path.name))), reverse=True)


class Watch:
    """Decides when to stop and when to save by the clock; all processes decide alike, at the same step."""

    def __init__(self, accelerator: Accelerator, minutes: float, step: int, stop: StopSign):
        self.accelerator, self.minutes, self.stop = accelerator, minutes, stop
        self.saved_at = self.asked_at = time.monotonic()
        self.last, self.next = step, step + 1

    def look(self, step: int) -> tuple[bool, bool]:
        """(stop, save) after a step. Many processes communicate about once a second: it waits for the device."""
        now = time.monotonic()
        due = now - self.saved_at > 60 * self.minutes
        if self.accelerator.num_processes == 1:
            return self.stop.seen, due
        if step < self.next:
            return False, False
        pace = (now - self.asked_at) / (step - self.last)  # seconds per step
        mine = torch.tensor([self.stop.seen, due, pace], dtype=torch.float32, device=self.accelerator.device)
        stops, dues, paces = self.accelerator.reduce(mine).tolist()
        self.last, self.asked_at = step, now
        self.next = step + max(1, int(ASK_SECONDS * self.accelerator.num_processes / max(paces, 1e-6)))
        return stops > 0, dues > 0

    def saved(self) -> None:
        self.saved_at = time.monotonic()
