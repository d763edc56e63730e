"""Which way of distilling wins: the arms of a study, each over seeds, against the student alone and the true ensemble.

A study (benchmarks/studies/*.yaml) is a recipe, overrides for all arms, and for each arm its own; `{seed}` in them is
the run's. Every run is a plain `distill`, its table the result. Arms are paired by seed: the same split, zoo, initial
weights and batches. Runs that have ended are never repeated, so the command can be stopped and given again. Arms are to
be chosen by the column of the validation split; the others show the test split.

    OMP_NUM_THREADS=1 python -m benchmarks.accuracy benchmarks/studies/few_images.yaml [--set data.source=FOLDER]
"""

import argparse
import contextlib
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
import yaml

from benchmarks.form import Row, commit, report, table
from meco_timm.common import log_to_screen, write_json
from meco_timm.recipe.reading import load_recipe, recipe_key

# Half-widths of 95 % intervals of a mean of n paired differences, in standard errors: Student's t with n - 1 degrees.
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


class Study(NamedTuple):
    """A study's file. `base`: the arm that the others are compared with, besides alone and ensemble.

    `teachers`: overrides with which the teachers are trained once, with seed 0, and given to the runs of all seeds;
    null for teachers of each seed's own.
    """

    recipe: str
    seeds: int
    base: str
    common: list[str]
    arms: dict[str, list[str]]
    teachers: list[str] | None = None


class Difference(NamedTuple):
    """Mean of paired differences in percentage points, and half the width of its 95 % interval."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.half:.2f}" if math.isfinite(self.half) else f"{self.mean:+.2f}"


def run_arm(study: Study, arm: str, seed: int, changes: list[str], folder: Path) -> dict[str, Any]:
    """The result of one run: read where it has ended, else made now, in this process."""
    from meco_timm import distill

    torch.set_num_threads(1)
    name = f"{arm.replace(' ', '-').replace('/', '-')}-{seed}"
    overrides = [change.replace("{seed}", str(seed)) for change in (*study.common, *changes, *study.arms[arm])]
    zoo = f"zoo.folder={folder.parent / 'zoo'}"
    overrides += given_teachers(study, [*changes, zoo])
    recipe = load_recipe(study.recipe, [*overrides, f"seed={seed}", f"run={folder / 'runs' / name}", zoo])
    file, key = folder / f"{name}.json", recipe_key(recipe)
    if file.exists() and (known := json.loads(file.read_text()))["recipe"] == key:
        return known
    began = time.process_time()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with (
        (folder / "logs" / f"{name}.log").open("a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        log_to_screen(),
    ):
        rows = {row.name: row._asdict() for row in distill(recipe)}
    lines = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    shares = [record for record in lines if any(key.startswith("gradient_share") for key in record)]
    best = max((record["validation/top1"] for record in lines if "validation/top1" in record), default=math.nan)
    result = {"arm": arm, "seed": seed, "commit": commit(), "cpu_s": time.process_time() - began, "recipe": key}
    result |= {"rows": rows, "validation": best, "gradient_shares": shares}
    write_json(file, result)
    return result


def given_teachers(study: Study, changes: list[str]) -> list[str]:
    """The override that gives an arm the same teachers with every seed, trained now if they are not in the zoo yet."""
    if study.teachers is None:
        return []
    from accelerate import Accelerator

    from meco_timm.data import load_data, verify
    from meco_timm.recipe import named_teachers
    from meco_timm.training import LabelTraining, train_teachers

    recipe = load_recipe(study.recipe, [*study.common, *study.teachers, *changes, "store.folder=null", "seed=0"])
    data, accelerator = load_data(recipe.data, 0), Accelerator()
    verify(data, recipe.data, Path(recipe.zoo.folder) / ".images", accelerator)  # so that a copy of the images is known
    training = LabelTraining(data, recipe.data, recipe.seed, Path(recipe.zoo.folder), accelerator)
    found = train_teachers(named_teachers(recipe.teachers), training).values()
    return [f"teachers={json.dumps([{'model': teacher.model} for teacher in found])}"]


def difference(values: list[float]) -> Difference:
    """Of paired differences, one per seed."""
    n = len(values)
    half = T95.get(n, 1.96) * stdev(values) / math.sqrt(n) if n > 1 else math.inf
    return Difference(mean(values), half)


def compared(results: list[dict[str, Any]], base: str) -> list[Row]:
    """One row per arm: top-1 in per cent over its seeds, and paired differences to alone, ensemble and base."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], {})[result["seed"]] = result["rows"]
    rows: list[Row] = []
    for arm, runs in by_arm.items():
        top1 = {seed: run["student"]["top1"] for seed, run in runs.items()}
        row: Row = {
            "arm": arm,
            "seeds": len(runs),
            "validation": mean(r["validation"] for r in results if r["arm"] == arm),
        }
        row["top-1"] = mean(top1.values())
        row["s.d."] = stdev(top1.values()) if len(runs) > 1 else None
        for name in ("student alone", "true ensemble"):
            row[f"− {name}"] = str(difference([top1[s] - runs[s][name]["top1"] for s in runs]))
        best = best_alone(results, arm)
        row["− best alone"] = str(difference([top1[s] - best[s] for s in runs if s in best]))
        shared = [s for s in runs if s in by_arm.get(base, {})]
        paired = [top1[s] - by_arm[base][s]["student"]["top1"] for s in shared]
        row[f"− {base}"] = str(difference(paired)) if shared and arm != base else None
        errors = [(100 - top1[s]) / (100 - runs[s]["student alone"]["top1"]) for s in runs]
        row["error / alone"] = mean(errors)
        for name in ("nll", "ece"):
            row[name] = mean(run["student"][name] for run in runs.values())
        rows.append(row)
    return rows


def best_alone(results: list[dict[str, Any]], arm: str) -> dict[int, float]:
    """Seed → top-1 of the arm's student alone at its best: of all that the study's arms gave this network, whatever
    their budget and augmentation, those settings that are best in the mean of all seeds."""
    network = next(r["recipe"]["student"] for r in results if r["arm"] == arm)
    seeds = {r["seed"] for r in results if r["arm"] == arm}
    tried: dict[str, dict[int, float]] = {}
    for r in results:
        if r["recipe"]["student"] == network:
            tried.setdefault(json.dumps(r["recipe"]["loop"]), {})[r["seed"]] = r["rows"]["student alone"]["top1"]
    whole = [runs for runs in tried.values() if runs.keys() >= seeds]
    return max(whole, key=lambda runs: mean(runs.values()))


def anchors(results: list[dict[str, Any]]) -> list[Row]:
    """The teachers, the ensemble and the student alone as they stood beside the arms, over distinct runs."""
    seen: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for result in results:
        for name, row in result["rows"].items():
            if name != "student":
                seen.setdefault((name, row["parameters"]), {})[f"{result['seed']} {row['top1']}"] = row
    rows: list[Row] = []
    for (name, parameters), runs in seen.items():
        cells = {"network": name, "params M": parameters / 1e6, "runs": len(runs)}
        rows.append(cells | {key: mean(run[key] for run in runs.values()) for key in ("top1", "nll", "ece")})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="which (default: 0 to the study's number)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every arm")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/accuracy"), help="results, runs and the zoo")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and figures there too")
    args = parser.parse_args()

    study = Study(**yaml.safe_load(args.study.read_text()))
    todo = [(arm, seed) for seed in args.seeds or range(study.seeds) for arm in args.arms or study.arms]
    folder = args.folder / args.study.stem
    results: dict[tuple[str, int], dict[str, Any]] = {}
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run_arm, study, arm, seed, args.set, folder): (arm, seed) for arm, seed in todo}
        for done in as_completed(waiting):
            arm, seed = waiting[done]
            results[arm, seed] = done.result()
            print(f"{arm}, seed {seed}: {results[arm, seed]['rows']['student']['top1']:.2f}", flush=True)
    ordered = [results[at] for at in todo]
    print(f"\n{table(anchors(ordered))}\n")
    rows = compared(ordered, study.base)
    print(f"{table(rows)}\n")
    flat = [
        {"arm": r["arm"], "seed": r["seed"], **{key: r["rows"]["student"][key] for key in ("top1", "nll", "ece")}}
        for r in ordered
    ]
    report("accuracy", flat, {f"error_over_alone/{row['arm']}": row["error / alone"] for row in rows}, args.json)


if __name__ == "__main__":
    main()
