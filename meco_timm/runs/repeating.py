"""Repeat recipes over seeds, each a plain run in a process of its own, and compare the students over seeds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from meco_timm.common import RESULT, UserError, get_logger
from meco_timm.evaluation import Row, seeds_table, seeds_text, styled_columns
from meco_timm.recipe import Recipe, load_recipe
from meco_timm.runs.finished import finished_run
from meco_timm.training import RunFolder

logger = get_logger(__name__)
result = get_logger(RESULT)


class PlainRun(NamedTuple):
    """A run of one recipe with one seed, as `meco-timm train RECIPE OVERRIDES` makes it."""

    name: str
    seed: int
    path: str
    overrides: list[str]
    recipe: Recipe

    @property
    def title(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.recipe.run or "run"))


def repeat(
    recipes: Sequence[str | Path],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    jobs: int = 1,
    output: str | Path = "repeat.html",
) -> dict[str, dict[int, list[Row]]]:
    """Run every recipe with every seed, print the table over seeds, write a page, and return the rows of each run.

    Runs that have ended are not repeated, and interrupted ones continue, so the call can be stopped and repeated.

    overrides: keys of all recipes, `key=value`. jobs: runs at the same time, each with its share of the cores. output:
    the page, beside which the messages of each run are kept if there are several jobs.

    Raises:
        UserError: a recipe or its data are wrong, or a run fails.
    """
    runs = [
        plain_run(name, path, seed, overrides) for seed in seeds for name, path in _names(recipes).items()
    ]  # one seed of each recipe first: what can be compared early is
    results = run_all(runs, jobs, Path(output).with_suffix(""))
    repeats: dict[str, dict[int, list[Row]]] = {}
    for run in runs:
        repeats.setdefault(run.name, {})[run.seed] = results[run.title]
    heads, lines = seeds_table(repeats)
    title = "Top-1 in per cent on the test split, mean ± standard deviation over seeds"
    result.info(styled_columns([list(column) for column in zip(heads, *lines, strict=True)], f"\n{title}"))
    result.info("\n%s", seeds_text(repeats))
    folders = {(run.name, run.seed): run.folder.path for run in runs}
    from meco_timm.reporting import write_repeat_page

    result.info("\nPage: %s", write_repeat_page(repeats, folders, Path(output)))
    return repeats


def _names(recipes: Sequence[str | Path]) -> dict[str, str]:
    """Recipe by a short unique name."""
    named = {Path(recipe).stem: str(recipe) for recipe in recipes}
    return named if len(named) == len(recipes) else {str(recipe): str(recipe) for recipe in recipes}


def plain_run(name: str, path: str, seed: int, overrides: Sequence[str]) -> PlainRun:
    """A recipe with a seed; one that names its run folder has a folder of its own for each seed.

    Raises:
        UserError: the recipe is wrong.
    """
    own = [*overrides, f"seed={seed}"]
    recipe = load_recipe(path, own)
    if recipe.run == load_recipe(path, [*overrides, f"seed={seed + 1}"]).run:  # named, so no function of the seed
        own.append(f"run={recipe.run}-seed{seed}")
        recipe = load_recipe(path, own)
    return PlainRun(name, seed, path, own, recipe)


def run_all(runs: Sequence[PlainRun], jobs: int, logs: Path) -> dict[str, list[Row]]:
    """Run what has not ended, `jobs` at a time, and return the table of each by its title.

    Raises:
        UserError: a run fails; the others are stopped and can be continued.
    """
    waiting = [run for run in runs if finished_run(run.recipe) is None]
    done = len(runs) - len(waiting)
    logger.info("%d of %d runs have ended", done, len(runs))
    with _stopped_at_the_end() as running:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                logger.info("run %s", run.title)
                running[_start(run, jobs, logs)] = run
            ended = next((process for process in running if process.poll() is not None), None)
            if ended is None:
                time.sleep(0.1)
                continue
            run = running.pop(ended)
            if ended.returncode:
                log = f" Its messages are in {_log(run, logs)}." if jobs > 1 else ""
                raise UserError(f"repeat: the run {run.title} ended with code {ended.returncode}.{log}")
            done += 1
            logger.info("ended: %s (%d of %d)", run.title, done, len(runs))
    tables = {run.title: run.folder.finished_rows() for run in runs}
    return {title: rows for title, rows in tables.items() if rows is not None}


def _start(run: PlainRun, jobs: int, logs: Path) -> "subprocess.Popen[bytes]":
    """Start a run; it shows its messages if it is alone, else it has a file for them."""
    command = [sys.executable, "-m", "meco_timm", "train", run.path, *run.overrides]
    if jobs == 1:
        return subprocess.Popen(command, preexec_fn=_end_with_parent)
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    log = _log(run, logs)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        environment = {"OMP_NUM_THREADS": threads} | os.environ
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, preexec_fn=_end_with_parent
        )


def _log(run: PlainRun, logs: Path) -> Path:
    return logs / f"{run.name.replace('/', '-')}-{run.seed}.log"


def _end_with_parent() -> None:
    """Let Linux send SIGTERM to this process when its parent dies, whatever kills it; a run then saves its state."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextmanager
def _stopped_at_the_end() -> "Iterator[dict[subprocess.Popen[bytes], PlainRun]]":
    """The running processes; those that still run when the block ends are asked to save their state and end."""
    running: dict[subprocess.Popen[bytes], PlainRun] = {}

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield running
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
