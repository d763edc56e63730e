"""The hours that a plan predicts, against what runs then take: CPU time of one thread, everything included but imports.

OMP_NUM_THREADS=1 python -m benchmarks.prediction --fashion-mnist FOLDER
"""

import contextlib
import io
import tempfile
import time
from pathlib import Path

from benchmarks.form import Row, arguments, in_own_process, report
from meco_timm import distill, load_recipe
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


def both(name: str, overrides: list[str]) -> tuple[float, float]:
    """(predicted, measured) CPU seconds."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        places = [f"run={folder}/run", f"zoo.folder={folder}/zoo", "data.workers=0"]
        recipe = load_recipe(f"recipes/{name}.yaml", [*overrides, *places])
        data = load_data(recipe.data, recipe.seed)
        predicted = sum(measured_seconds(recipe, data, recipe.loop.batch_size, time.process_time).values())
        began = time.process_time()
        distill(recipe)
        return predicted, time.process_time() - began


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--fashion-mnist", type=Path, metavar="FOLDER", help="its parquet files; else from the Hub")
    args = parser.parse_args()
    rows: list[Row] = []
    for name, (recipe, overrides) in RUNS.items():
        here = [f"data.source={args.fashion_mnist}"] if "fashion" in recipe and args.fashion_mnist else []
        predicted, measured = in_own_process(both, recipe, overrides + here)
        rows.append({"run": name, "predicted s": predicted, "measured s": measured, "ratio": predicted / measured})
    worst = max((row["ratio"] for row in rows), key=lambda ratio: abs(ratio - 1))
    report("prediction", rows, {"worst_ratio": worst}, args.json)


if __name__ == "__main__":
    main()
