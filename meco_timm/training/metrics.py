"""metrics.jsonl: losses, speed and validations of a training run."""

import json
import math
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from meco_timm.common import UserError, get_logger, write_text
from meco_timm.distillation import Objective

logger = get_logger(__name__)

INERT = 1e-3  # share of the student's gradient below which a term has no effect
PATIENCE = 20  # steps in a row without a finite gradient, after which the run stops


class MetricLines:
    """A line of losses every `log_every` steps and a line per validation; a resumed run repeats none."""

    def __init__(self, path: Path, start: int, main: bool, objective: Objective):
        self.path, self.main, self.objective = path, main, objective
        self._warned: set[str] = set()
        self._top1, self._best = -1.0, -1.0  # of the last validation, and the best, in per cent
        self._mean = 0.0  # images per second since the beginning
        self._waiting = b""  # lines that could not be written yet
        self._paced = self._began = (time.monotonic(), start, 0.0)  # time, step, seconds of waiting at a call of `pace`
        if main:
            old = path.read_text().splitlines(keepends=True) if path.exists() else []
            whole = [line for line in old if line.endswith("\n")]  # a killed run may leave half a line
            kept = [line for line in whole if json.loads(line)["step"] <= start]
            write_text(path, "".join(kept))
            self._best = max((json.loads(line).get("validation/top1", -1.0) for line in kept), default=-1.0)
            self._size = path.stat().st_size

    def _write(self, record: dict[str, Any]) -> None:
        """Append a line; if it cannot be written, warn once and try again with the next line."""
        if not self.main:
            return
        self._waiting += json.dumps(record).encode() + b"\n"
        try:
            with self.path.open("r+b", buffering=0) as file:
                file.truncate(self._size)  # a write that failed may have left a part
                file.seek(self._size)
                written = file.write(self._waiting)
        except OSError as error:
            if "disk" not in self._warned:
                logger.warning("%s cannot be written: %s; training continues.", self.path, error.strerror)
            self._warned.add("disk")
            return
        if written == len(self._waiting):
            self._size, self._waiting = self._size + written, b""

    def pace(self, step: int, images: int, waited: float) -> dict[str, float]:
        """Images per second since the last call, for metrics.jsonl, and the share of that time spent waiting for data.

        images: of a step. waited: seconds of waiting for data in all.
        """
        now = time.monotonic()
        (then, before, waited_before), self._paced = self._paced, (now, step, waited)
        seconds = max(now - then, 1e-9)
        self._mean = (step - self._began[1]) * images / max(now - self._began[0], 1e-9)
        rate, share = (step - before) * images / seconds, min((waited - waited_before) / seconds, 1.0)
        return {"images_per_s": rate, "data_wait": share}

    def losses(self, step: int, losses: dict[str, Tensor], facts: dict[str, float], bad_in_row: int) -> list[str]:
        """Write the line and return the fields of the progress bar, the most important first. Reads the device.

        Raises:
            UserError: `PATIENCE` steps in a row had no finite gradient; names the term.
        """
        values = {name: loss.item() for name, loss in losses.items()}
        if bad_in_row >= PATIENCE:
            broken = [name for name, value in values.items() if not math.isfinite(value)] or ["the gradient"]
            raise UserError(
                f"loop: at step {step} {broken[-1]} is not finite, for {bad_in_row} steps in a row. Lower loop.lr or "
                "do without mixed precision. These steps changed no weights; the last good checkpoint remains."
            )
        self._write({"step": step, **facts, **{k: v if math.isfinite(v) else None for k, v in values.items()}})
        return [
            f"{self._mean:.0f} images/s",  # since the beginning, as the time left: validations are in it
            *self._validated(),
            f"loss {values['total']:.3f}",
            *([f"skipped {facts['skipped_steps']}"] if facts["skipped_steps"] else []),
            *([f"waiting for data {facts['data_wait']:.0%}"] if facts["data_wait"] >= 0.1 else []),
            *(self.objective.summary(values) if len(values) > 2 else []),  # a single term is the total
        ]

    def _validated(self) -> list[str]:
        if self._top1 < 0:
            return []
        return [f"top-1 {self._top1:.2f} %" + (f" (best {self._best:.2f} %)" if self._best > self._top1 else "")]

    def validation(self, step: int, scores: dict[str, float]) -> None:
        """Write the line; its top-1 is shown with the losses from now on."""
        if scores["nll"]:  # 0 without a validation split
            self._top1, self._best = scores["top1"], max(scores["top1"], self._best)
        self._write({"step": step, **{f"validation/{name}": value for name, value in scores.items()}})
        logger.debug("validation at step %d: top-1 %.2f %%, NLL %.4f", step, scores["top1"], scores["nll"])

    def shares(self, step: int, shares: dict[str, float]) -> None:
        """Write each term's share of the student's gradient; warn once of a term with almost none."""
        self._write({"step": step, **{f"gradient_share/{name}": share for name, share in shares.items()}})
        for name in sorted(name for name, share in shares.items() if share < INERT and name not in self._warned):
            self._warned.add(name)
            logger.warning(
                f"{name} has {100 * shares[name]:.2g} % of the student's gradient at step {step}, so it teaches almost "
                f"nothing. Raise {self.objective.weight_key(name)}, or set it to 0."
            )
