"""Killed at a random moment, does the same command end as if nothing had happened?

Each trial is a real `python train.py`, killed with SIGKILL at a moment drawn evenly from the uninterrupted run's
duration (while a teacher, the student alone or the student trains, in a checkpoint, in the evaluation), then given
again. At its end the student's files, the zoo's weights, the table and every line of metrics are compared, byte by byte
but for measured speeds. A third of the trials read images without loader processes, a third with two, and a third cut
views from the cache a batch at a time, compared with a run that has no cache.

The cost of checkpoints is that of one every minute, of a ResNet-50 with AdamW: the seconds that one holds up training.

    OMP_NUM_THREADS=1 python -m benchmarks.resume
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.form import Row, arguments, report
from meco_timm.common.files import digest_of
from meco_timm.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
SPEEDS = ("images_per_s", "latency_ms", "data_wait")  # all that two equal runs may differ in
RECIPE: dict[str, Any] = {
    "data": {
        "source": str(ROOT / "recipes/data/digits"),
        "image_size": 32,
        "labelled": 300,
        "augmentation": {"scale": [0.8, 1.0], "hflip": 0, "auto_augment": "rand-m5"},
    },
    "teachers": [{"train": "test_resnet"}, {"train": "test_vit"}],
    "student": {"model": "test_efficientnet", "args": {"drop_rate": 0.1}},
    "zoo": {"sampling": "random", "loop": {"steps": 40}},
    "alignment": {"method": "projection", "length": 64},
    "losses": {"blocks": 3.0},
    "discriminators": {"adversary": "minimax"},
    "loop": {
        "steps": 60, "batch_size": 16, "ema": 0.9, "mixup": 0.2, "random_erasing": 0.2, "validations": 6,
        "log_every": 5, "checkpoint_steps": 2,
    },
}  # fmt: skip


# Changes of the recipe's data: of the run that is left alone, and of those that are killed.
CROPS = {"augmentation": {"scale": [0.8, 1.0], "hflip": 0}}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no loader process": ({"workers": 0}, {"workers": 0}),
    "two loader processes": ({"workers": 2}, {"workers": 2}),
    "views by the batch": (
        CROPS | {"workers": 0, "cache": "none"},
        CROPS | {"workers": 2, "cache": "memory", "augment_on": "device"},
    ),
}
PROGRAM = (sys.executable, str(ROOT / "train.py"))


def command(folder: Path, recipe: dict[str, Any], program: Sequence[str]) -> list[str]:
    """The launch of a run and a zoo of its own in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = recipe | {"run": str(folder / "run"), "zoo": recipe["zoo"] | {"folder": str(folder / "zoo")}}
    (folder / "recipe.yaml").write_text(json.dumps(settings))
    return [*program, str(folder / "recipe.yaml")]


def to_the_end(folder: Path, recipe: dict[str, Any], program: Sequence[str] = PROGRAM) -> float:
    """Run, or go on, until the end; the seconds since the run folder was there."""
    process = start(folder, recipe, program)
    began = time.monotonic()
    if process.wait() != 0:
        raise RuntimeError(f"{folder} did not end well: {(folder / 'log').read_text()[-2000:]}")
    return time.monotonic() - began


def start(folder: Path, recipe: dict[str, Any], program: Sequence[str]) -> "subprocess.Popen[bytes]":
    """The process, once it has written its plan: what comes before is imports."""
    process = launch(command(folder, recipe, program), folder / "log")
    while process.poll() is None and not (folder / "run/plan.txt").exists():
        time.sleep(0.01)
    return process


def launch(words: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as file:
        return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)


def killed_after(folder: Path, recipe: dict[str, Any], seconds: float, program: Sequence[str] = PROGRAM) -> str | None:
    """Start, kill -9 so many seconds later, and say where that was; None where the run had ended before."""
    process = start(folder, recipe, program)
    try:
        process.wait(seconds)
        return None
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return place(folder)


def place(folder: Path) -> str:
    """What a killed run was at."""
    saving = " (in a checkpoint)" if list(folder.rglob("unfinished.tmp")) else ""
    training = sorted(path.name.split("-")[0] for path in folder.glob("zoo/*.training"))
    if training:
        return training[0] + saving
    if (folder / "run/checkpoints").exists():
        return "student" + saving
    return "between trainings"


def result(folder: Path) -> dict[str, Any]:
    """All that a run leaves, without speeds: name → digest, or lines."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): digest_of(path)
        for path in [*folder.glob("run/student/*.*"), *folder.glob("zoo/*/model.safetensors")]
        if path.name != "README.md"  # it quotes the measured speed
    }
    rows = json.loads((folder / "run/table.json").read_text())["rows"]
    lines = [json.loads(line) for path in sorted(folder.rglob("metrics.jsonl")) for line in path.open()]
    found["table"], found["metrics"] = (
        [{key: value for key, value in record.items() if key not in SPEEDS} for record in records]
        for records in (rows, lines)
    )
    return found


def checkpoint_seconds(folder: Path, times: int = 5) -> float:
    """Median seconds that a checkpoint of a ResNet-50 with AdamW and its best weights holds up training."""
    import timm

    model = timm.create_model("resnet50")
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    state = {"objective": model.state_dict(), "optimizer": optimizer.state_dict(), "best": dict(model.state_dict())}
    checkpoints, seconds = Checkpoints(folder), []
    for step in range(times):
        began = time.monotonic()
        checkpoints.save(step, state)
        seconds.append(time.monotonic() - began)
    return median(seconds)


def main() -> None:
    parser = arguments(__doc__, rounds=21)
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default %(default)s)")
    args = parser.parse_args()
    moments = random.Random(args.seed)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for i, (way, changes) in enumerate(WAYS.items()):
            alone, recipe = (RECIPE | {"data": RECIPE["data"] | change} for change in changes)
            whole = Path(scratch) / f"whole-{i}"
            duration = to_the_end(whole, alone)
            trials = len(range(i, args.rounds, len(WAYS)))
            while trials:
                folder, after = Path(scratch) / f"{i}-{trials}", moments.uniform(0, duration)
                at = killed_after(folder, recipe, after)
                if at:
                    to_the_end(folder, recipe)
                    same = result(folder) == result(whole)
                    rows.append({"images": way, "killed after s": after, "at": at, "identical": str(same)})
                    print(rows[-1], flush=True)
                    trials -= 1
        seconds = checkpoint_seconds(Path(scratch) / "checkpoints")
    identical = sum(row["identical"] == "True" for row in rows)
    figures = {"kills": len(rows), "identical": identical, "checkpoint_cost": seconds / 60}
    report("resume", rows, figures, args.json)


if __name__ == "__main__":
    main()
