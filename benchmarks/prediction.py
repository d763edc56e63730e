"""The time and memory that a plan predicts, against what runs then take.

Time is CPU time of one thread without imports; memory is the peak of the process with them.

OMP_NUM_THREADS=1 python -m benchmarks.prediction --fashion-mnist FOLDER
"""

import contextlib
import io
import re
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.form import Row, arguments, in_own_process, peak_mib, report
from meco_timm import distill, load_recipe, plan
from meco_timm.data.loading import load_data
from meco_timm.planning.time_estimate import measured_seconds

RUNS = {
    "quickstart": ("quickstart", []),
    "quickstart, other networks at 48 px": (
        "quickstart",
        [
            "teachers=[train: test_byobnet, train: test_convnext]",
            "student={model: test_resnet, args: {channels: [16, 24, 32, 48], stem_width: 8}}",
            "data.image_size=48",
            "zoo.loop.steps=150",
            "loop.steps=300",
        ],
    ),
    "Fashion-MNIST, 400 steps": ("fashion_mnist_ensemble", ["zoo.loop.steps=200", "loop.steps=400"]),
}


class Both(NamedTuple):
    """Of a run: CPU seconds, and MiB of memory."""

    predicted: float
    measured: float
    predicted_mib: float
    peak: float


def both(name: str, overrides: list[str]) -> Both:
    """The memory is predicted in the plan that a user reads."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        places = [f"run={folder}/run", f"zoo.folder={folder}/zoo", "data.workers=0"]
        recipe = load_recipe(f"recipes/{name}.yaml", [*overrides, *places])
        memory = re.search(r"memory  about ([\d.]+) GiB", plan(recipe))
        assert memory is not None
        began = time.process_time()
        distill(recipe)
        measured, peak = time.process_time() - began, peak_mib()
        data = load_data(recipe.data, recipe.seed)
        predicted = sum(measured_seconds(recipe, data, recipe.loop.batch_size, time.process_time).values())
        return Both(predicted, measured, float(memory[1]) * 1024, peak)


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--fashion-mnist", type=Path, metavar="FOLDER", help="its parquet files; else from the Hub")
    args = parser.parse_args()
    rows: list[Row] = []
    for name, (recipe, overrides) in RUNS.items():
        here = [f"data.source={args.fashion_mnist}"] if "fashion" in recipe and args.fashion_mnist else []
        found = in_own_process(both, recipe, overrides + here)
        rows.append(
            {
                "run": name,
                "predicted s": found.predicted,
                "measured s": found.measured,
                "ratio": found.predicted / found.measured,
                "predicted MiB": found.predicted_mib,
                "peak MiB": found.peak,
                "peak / predicted": found.peak / found.predicted_mib,
            }
        )
    figures = {
        "worst_ratio": max((row["ratio"] for row in rows), key=lambda ratio: abs(ratio - 1)),
        "highest_peak_over_predicted": max(row["peak / predicted"] for row in rows),
    }
    report("prediction", rows, figures, args.json)


if __name__ == "__main__":
    main()
