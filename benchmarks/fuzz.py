"""Recipes, folders of images, tables, tars and lists, bent at random: each ends in a plan, or in one clear message.

    python -m benchmarks.fuzz --recipes 5000 --folders 500 --tables 1000

A failure is: another exception than `UserError`, an empty or endless message, a file that was written, or a folder that
was not read as an independent count has it (benchmarks/fuzz_folders.py). Recipes are made from the schema
(benchmarks/fuzz_recipes.py). One recipe in `--plan-every` that can be read is planned with its networks as well.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.strategies import SearchStrategy

from benchmarks.form import Row, report
from benchmarks.fuzz_folders import check_folder, folders
from benchmarks.fuzz_recipes import Reader, recipes
from benchmarks.fuzz_tables import check_table, tables
from meco_timm.common.errors import UserError

SHOWN = 5  # failures that are printed


def run(
    examples: SearchStrategy[Any], check: Callable[[Any], str], count: int, start: int, raises: bool = False
) -> tuple[Counter[str], list[str]]:
    """How `count` examples ended, and the failures; `raises`: stop at the first failure, with the smallest example."""
    ends: Counter[str] = Counter()
    failures: list[str] = []

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if raises else [Phase.generate],
        verbosity=Verbosity.quiet,
    )
    @given(examples)
    def each(example: Any) -> None:
        try:
            ends[check(example)] += 1
        except Exception as error:
            if raises:
                raise
            ends["failed"] += 1
            failures.append(f"{type(error).__name__}: {error}\n    {example!r:.400}")

    each()
    return ends, failures


def message_of(error: UserError) -> str:
    """The message of a refusal, which must be for people."""
    text = str(error)
    assert text.strip(), "an empty message"
    assert len(text.splitlines()) <= 30, f"a message of {len(text.splitlines())} lines"
    assert "Traceback" not in text, text
    text.encode()  # it can be printed
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=int, default=200, help="recipes (default %(default)s)")
    parser.add_argument("--folders", type=int, default=200, help="folders of images (default %(default)s)")
    parser.add_argument("--tables", type=int, default=200, help="tables, tars and lists (default %(default)s)")
    parser.add_argument("--plan-every", type=int, default=20, help="recipes read per recipe planned (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and figures there too")
    args = parser.parse_args()

    rows: list[Row] = []
    shown: list[str] = []
    for kind, count in (("recipes", args.recipes), ("folders", args.folders), ("tables", args.tables)):
        if not count:
            continue
        began = time.process_time()
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            if kind == "recipes":
                ends, failures = run(recipes(), Reader(place, args.plan_every), count, args.seed)
            elif kind == "folders":
                ends, failures = run(folders(), partial(check_folder, scratch=place), count, args.seed)
            else:
                ends, failures = run(tables(), partial(check_table, scratch=place), count, args.seed)
        rows.append({"kind": kind, "tried": sum(ends.values()), **{e: ends[e] for e in ("used", "refused", "failed")},
                     "planned": ends["planned"], "CPU s": time.process_time() - began})  # fmt: skip
        shown += failures
    for failure in shown[:SHOWN]:
        print(failure, end="\n\n")
    report("fuzz", rows, {f"{row['kind']}_failed": row["failed"] for row in rows}, args.json)


if __name__ == "__main__":
    main()
