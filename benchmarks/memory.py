"""Peak memory of training with 1, 4 and 8 teachers: all on the device, two resident, in bf16, and from a full store.

Resident memory of a process that takes five steps, less what its imports take. On a CPU "the device" is the host, so
`zoo.resident` cannot save anything here and must not cost anything; on a GPU the same command shows the device's peak.

    OMP_NUM_THREADS=1 python -m benchmarks.memory
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.form import Row, arguments, in_own_process, peak_mib, report
from benchmarks.step import CLASSES, recipe, stepping, training_of, zoo_of
from meco_timm.data.loading import Batch
from meco_timm.networks import Combination
from meco_timm.networks.streams import Outputs
from meco_timm.zoo.output_shards import OutputShards
from meco_timm.zoo.store import Store, layout
from meco_timm.zoo.zoo import Zoo

SIZES = (1, 4, 8)
WAYS: dict[str, dict[str, Any]] = {
    "all": {},
    "resident 2": {"resident": 2},
    "bf16": {"precision": "bf16"},
    "store": {},
}


def peak(way: str, teachers: int, args: argparse.Namespace) -> float:
    """MiB of a process that trains this way."""
    imports = peak_mib()
    student = timm.create_model(args.student, num_classes=CLASSES)
    settings = recipe(
        args, {"teachers": [{"model": args.teacher}] * teachers, "zoo": {"sampling": "random"} | WAYS[way]}
    )
    images = torch.randint(0, 256, (4, args.batch, 3, args.size, args.size), dtype=torch.uint8)
    rows = torch.arange(args.batch)
    with tempfile.TemporaryDirectory() as folder:
        if way == "store":  # a run from a full store has its teachers only for the time of their fingerprints
            zoo = zoo_of([timm.create_model("test_vit", num_classes=CLASSES)], settings)
            from_store(zoo, [str(i) for i in range(teachers)], settings, Path(folder), rows)
        else:
            made = (timm.create_model(args.teacher, num_classes=CLASSES) for _ in range(teachers))
            zoo = zoo_of(made, settings)  # not a list, which would keep them as they were before they were frozen
        step = stepping(training_of(student, zoo, settings), [Batch(i, rows, rows, 0 * rows) for i in images])
        for _ in range(5):
            step()
    return peak_mib() - imports


def from_store(zoo: Zoo, names: list[str], settings: Any, folder: Path, rows: torch.Tensor) -> None:
    """Give the zoo these teachers, whose outputs, here random, are all stored; one that it does not have is as its
    first."""
    store, temperature = settings.store, settings.losses.temperature
    plans = {name: layout(store, temperature, zoo.streams.get(name, zoo.streams["0"]), CLASSES) for name in names}
    zoo.names, zoo.block_shapes, shards = names, [list(plan.blocks) for plan in plans.values()], {}
    for name, plan in plans.items():
        shards[name] = OutputShards(folder / name, plan, 1, len(rows), check=True)
        outputs = Outputs(
            [torch.randn(len(rows), *shape) for shape in plan.blocks], None, torch.randn(len(rows), CLASSES)
        )
        shards[name].add(0 * rows, rows, plan.pack(outputs))
        shards[name].flush()
    zoo.combine(Combination.equal(names))
    zoo.store = Store(folder, shards, zoo.context.device)
    zoo.release()


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--teacher", default="resnet34")
    parser.add_argument("--size", type=int, default=64, help="pixels (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images per step (default %(default)s)")
    args = parser.parse_args()

    rows: list[Row] = []
    for way in WAYS:
        peaks = {n: min(in_own_process(peak, way, n, args) for _ in range(args.rounds)) for n in SIZES}
        rows.append({"teachers": way, **{f"{n}: MiB": peaks[n] for n in SIZES}, "8 over 1": peaks[8] / peaks[1]})
    figures = {"peak_8_over_1": rows[0]["8 over 1"]}
    figures |= {f"peak_8_over_1_{row['teachers'].replace(' ', '_')}": row["8 over 1"] for row in rows[1:]}
    report("memory", rows, figures, args.json)


if __name__ == "__main__":
    main()
