"""Every recipe rehearsed: all its networks with random weights, few images, trainings of three steps.

To end within minutes on a CPU, batches have 2 images, and networks see them at 64 px, which changes no part of a run.

    OMP_NUM_THREADS=1 python -m benchmarks.rehearsals
"""

import contextlib
import io
import tempfile
import time
from pathlib import Path

from benchmarks.data import draw
from benchmarks.form import Row, arguments, in_own_process, report
from meco_timm import distill, load_recipe

SIDE = 64


def rehearse(path: Path, overrides: list[str]) -> float:
    """CPU seconds."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        if path.stem == "own_images":
            overrides = [*overrides, f"data.source={draw(Path(folder) / 'images', 60, 128) / 'train'}"]
        recipe = load_recipe(path, [*overrides, f"run={folder}/run"])
        began = time.process_time()
        distill(recipe, limit_steps=3)
        return time.process_time() - began


def small(path: Path) -> list[str]:
    """Overrides that make a recipe light, where it is heavy."""
    recipe = load_recipe(path)
    light = ["loop.batch_size=2", "data.workers=0"]
    if recipe.data.image_size <= SIDE:
        return light
    return [*light, f"data.image_size={SIDE}", *(f"teachers.{i}.size={SIDE}" for i in range(len(recipe.teachers)))]


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("recipes", nargs="*", type=Path, default=sorted(Path("recipes").glob("*.yaml")))
    args = parser.parse_args()
    rows: list[Row] = []
    for path in args.recipes:
        rows.append({"recipe": path.stem, "CPU s": in_own_process(rehearse, path, small(path))})
        print(path.stem, f"{rows[-1]['CPU s']:.0f} s", flush=True)
    report("rehearsals", rows, {"recipes": len(rows), "slowest": max(row["CPU s"] for row in rows)}, args.json)


if __name__ == "__main__":
    main()
