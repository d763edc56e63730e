"""How long a user waits for the first line of a run, and for a finished run that is shown again, from Python's start.

OMP_NUM_THREADS=1 python -m benchmarks.startup
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.form import Row, arguments, report, spread

ROOT = Path(__file__).parents[1]
SHORT = ["loop.steps=4", "loop.validations=1", "zoo.loop.steps=2"]


def command(folder: Path, name: str) -> list[str]:
    """The quickstart in few steps; with another name a run of its own with the same teachers."""
    places = [f"run={folder / name}", f"zoo.folder={folder / 'zoo'}"]
    return [sys.executable, str(ROOT / "train.py"), str(ROOT / "recipes/quickstart.yaml"), *SHORT, *places]


def to_the_end(words: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of the command with its processes."""
    before, began = os.times(), time.monotonic()
    subprocess.run(words, capture_output=True, check=True)
    wall, after = time.monotonic() - began, os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system, wall


def first_line(words: list[str]) -> float:
    """Wall seconds until the command prints a line; it is killed then."""
    began = time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        while not (line := process.stdout.readline()).strip():
            if not line:
                raise RuntimeError(f"{' '.join(words)} printed nothing")
        waited = time.monotonic() - began
        process.kill()
    return waited


def main() -> None:
    args = arguments(__doc__, rounds=9).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        to_the_end(command(folder, "finished"))
        first = [first_line(command(folder, f"new-{turn}")) for turn in range(args.rounds)]
        shown = [to_the_end(command(folder, "finished")) for _ in range(args.rounds)]
    cpu, again = zip(*shown, strict=True)
    rows: list[Row] = [
        {"until": name, "median s": median(seconds), "min – max": spread([*seconds])}
        for name, seconds in (("first line", first), ("finished run is shown", again), ("the same, CPU", cpu))
    ]
    report("startup", rows, {"first_line_s": median(first), "finished_s": median(again)}, args.json)


if __name__ == "__main__":
    main()
