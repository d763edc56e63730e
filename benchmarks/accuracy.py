"""Which way of distilling wins: the arms of a study, each over seeds, against the student alone and the true ensemble.

A study (benchmarks/studies/*.yaml) is a recipe, overrides for all arms, and for each arm its own; `{seed}` in them is
the run's. Runs and intervals are those of `meco-timm repeat`, with a recipe per arm: an interrupted study continues.
Arms are to be chosen by the column of the validation split; the others show the test split.

    OMP_NUM_THREADS=1 python -m benchmarks.accuracy benchmarks/studies/few_images.yaml [--set data.source=FOLDER]
    python -m benchmarks.accuracy benchmarks/studies/own_images.yaml --finished --picture FILE.svg
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import yaml

from benchmarks.form import Row, report, table
from meco_timm.common import log_to_screen
from meco_timm.evaluation import Runs, paired_interval, seeds_table, values_of
from meco_timm.recipe import load_recipe, recipe_key
from meco_timm.reporting.drawing import INK, axes, chart_style, legend, series_style
from meco_timm.runs import PlainRun, run_all


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


def runs_of(
    study: Study, arms: Sequence[str], seeds: Sequence[int], changes: list[str], folder: Path
) -> list[PlainRun]:
    """A plain run for each arm and seed; the teachers that all share are trained now."""
    zoo = f"zoo.folder={folder.parent / 'zoo'}"
    given = given_teachers(study, [*changes, zoo])
    runs = []
    for seed in seeds:
        for arm in arms:
            own = [word.replace("{seed}", str(seed)) for word in (*study.common, *changes, *study.arms[arm])]
            place = folder / "runs" / f"{arm.replace(' ', '-').replace('/', '-')}-{seed}"
            own += [*given, f"seed={seed}", f"run={place}", zoo]
            runs.append(PlainRun(arm, seed, study.recipe, own, load_recipe(study.recipe, own)))
    return runs


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


def best_alone(runs: Sequence[PlainRun], arms: dict[str, Runs], arm: str) -> dict[int, float]:
    """Seed → top-1 of the arm's student alone at its best: of all that the study's arms gave this network, whatever
    their budget and augmentation, those settings that are best in the mean of all seeds."""
    keys = {run.name: recipe_key(run.recipe) for run in runs}
    tried: dict[str, dict[int, float]] = {}
    for name, key in keys.items():
        if key["student"] == keys[arm]["student"]:
            tried.setdefault(json.dumps(key["loop"]), {}).update(values_of(arms[name], "student alone"))
    return max((found for found in tried.values() if found.keys() >= arms[arm].keys()), key=lambda f: mean(f.values()))


def compared(runs: Sequence[PlainRun], arms: dict[str, Runs], validation: dict[str, float]) -> list[Row]:
    """The table over seeds, with the validation split and the student alone at its best beside it."""
    heads, lines = seeds_table(arms)
    rows: list[Row] = []
    for line in lines:
        arm = line[0]
        student, best = values_of(arms[arm], "student"), best_alone(runs, arms, arm)
        row = dict(zip(["arm", *heads[1:]], line, strict=True))
        row["− best alone"] = str(paired_interval([top1 - best[seed] for seed, top1 in student.items()]))
        rows.append(row | {"validation": validation[arm]})
    return rows


class Point(NamedTuple):
    """A form (how the student was trained) at a size and budget. `steps`: those of a first stage included."""

    form: str
    size: str
    steps: int
    top1: dict[int, float]  # by seed


def points(runs: Sequence[PlainRun], arms: dict[str, Runs]) -> list[Point]:
    """The student and the student alone of each arm, the smallest first."""
    found: list[tuple[int, Point]] = []
    for arm, recipe in {run.name: run.recipe for run in runs}.items():
        start = Path(str(recipe.student.model).removeprefix("local-dir:"))
        first = load_recipe(start.with_name("recipe.yaml"), []) if start.is_dir() else None
        steps = sum(stage.loop.steps or 0 for stage in (first, recipe) if stage is not None)
        row = next(row for rows in arms[arm].values() for row in rows if row.name == "student")
        size = f"{row.parameters / 1e6:.2g} M parameters,\n{row.multiply_adds / 1e6:.1f} M multiply-adds"
        for name, form in (("student alone", "labels"), ("student", "MEAL's form")):
            form = f"backbone, then {form}" if first else form
            found.append((row.parameters, Point(form, size, steps, values_of(arms[arm], name))))
    return [point for _, point in sorted(found, key=lambda pair: (pair[0], pair[1].steps))]


def draw_cost(found: list[Point], ensemble: float, file: Path) -> None:
    """Top-1, with the standard deviation over seeds, against the steps of training, a panel for each size: an SVG."""
    budgets = {
        size: sorted({p.steps for p in found if p.size == size}) for size in dict.fromkeys(p.size for p in found)
    }
    forms = sorted({point.form for point in found}, key=lambda form: (len(form), form))
    with chart_style({"svg.hashsalt": file.name}):
        figure, panels = axes(4.2, 1, len(budgets), sharey=True, squeeze=False)
        figure.set_figwidth(7)
        for panel, (size, steps) in zip(panels[0], budgets.items(), strict=True):
            for i, form in enumerate(forms):
                here = [p for p in found if (p.size, p.form) == (size, form)]
                panel.errorbar(
                    [steps.index(p.steps) + 0.1 * (i - len(forms) / 2) for p in here],  # side by side
                    [mean(p.top1.values()) for p in here],
                    [stdev(p.top1.values()) if len(p.top1) > 1 else 0 for p in here],
                    **series_style(i),
                    linewidth=1,
                    capsize=2,
                    label=form,
                )
            panel.axhline(ensemble, color=INK, linestyle=":", label="true ensemble")
            panel.axhline(ensemble - 1.5, color=INK, linewidth=0.7, label="1.5 points below it")
            panel.set_xticks(range(len(steps)), [f"{n:,}" for n in steps])
            panel.set_xlim(-0.5, len(steps) - 0.5)
            panel.set(title=size, xlabel="steps")
        panels[0][0].set_ylabel("top-1, test split (%)")
        legend(figure, panels[0][:1])
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date")), facecolor="white")


def best_validation(run: PlainRun) -> float:
    """The highest top-1 on the validation split, in per cent."""
    lines = map(json.loads, (run.folder.path / "metrics.jsonl").read_text().splitlines())
    return max((line["validation/top1"] for line in lines if "validation/top1" in line), default=math.nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="which (default: 0 to the study's number)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every arm")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/accuracy"), help="runs and the zoo")
    parser.add_argument("--finished", action="store_true", help="only the runs that have ended")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="an SVG of accuracy against cost")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and figures there too")
    args = parser.parse_args()

    study = Study(**yaml.safe_load(args.study.read_text()))
    names = sorted(args.arms or study.arms, key=lambda arm: arm != study.base)  # the base first
    folder = args.folder / args.study.stem
    with log_to_screen():
        runs = runs_of(study, names, args.seeds or range(study.seeds), args.set, folder)
        if args.finished:
            runs = [run for run in runs if run.folder.finished_rows() is not None]
            names = [arm for arm in names if any(run.name == arm for run in runs)]
        tables = run_all(runs, args.jobs, folder / "logs")
    arms: dict[str, Runs] = {arm: {run.seed: tables[run.title] for run in runs if run.name == arm} for arm in names}
    validation = {arm: mean(best_validation(run) for run in runs if run.name == arm) for arm in names}
    print(f"\n{table(compared(runs, arms, validation))}\n")
    if args.picture:
        ensemble = mean(top1 for rows in arms.values() for top1 in values_of(rows, "true ensemble").values())
        draw_cost(points(runs, arms), ensemble, args.picture)
    flat = [
        {"arm": arm, "seed": seed, **{key: getattr(row, key) for key in ("top1", "nll", "ece")}}
        for arm, found in arms.items()
        for seed, rows in found.items()
        for row in rows
        if row.name == "student"
    ]
    figures = {f"top1/{arm}": mean(values_of(arms[arm], "student").values()) for arm in names}
    report("accuracy", flat, figures, args.json)


if __name__ == "__main__":
    main()
