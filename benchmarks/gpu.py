"""Does it work on this GPU, how fast, and does it cost what the plan says? One command, one page.

Parts, each in a process of its own, so that one failure does not hide the others:

backbone       a small backbone recipe to its table
store          filled, then read by a run that loads no teacher
fsdp2          its losses against one process
two processes  both on one GPU (gloo): the losses of one process with both batches?
resume         killed with SIGKILL and repeated: the same result?
quickstart     its table in float32, bf16, fp16 (GPU only), and compiled in bf16
step           images/s of a step against a loop by hand, places that make the host wait, idle share of the GPU
loader         images/s of 1 to all cores, from 32-px images and from JPEGs: how many workers feed the step
teachers       1, 3 and 8 teachers, offloaded, stored; memory and seconds against the plan's
peers          images/s, memory and share of the card's peak beside timm's distillation tasks and torchdistill, all with
               channels_last and compiled (--peers: only these)

    python -m benchmarks.gpu [--minutes 20] [--json FILE] [--part step teachers]

Without a GPU every part runs on the CPU in small, to show that it works; its speeds then mean nothing. It needs no
network, and no data and packages beyond the project's own. docs/training.md says how to read the page.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.form import Row, table, write
from meco_timm.common import source_commit

ROOT = Path(__file__).parents[1]
SHARES = {  # of the minutes that a part may take on a GPU; the next ones have what it leaves
    "backbone": 0.1, "store": 0.1, "fsdp2": 0.15, "two processes": 0.15, "resume": 0.2, "quickstart": 0.3,
    "step": 0.3, "loader": 0.1, "teachers": 0.25, "peers": 0.4,
}  # fmt: skip
SMALL_SECONDS = 900.0  # of a part on a CPU, however busy it is
NO_TIME: dict[str, Any] = {"verdict": "no time left", "rows": [], "notes": [], "figures": {}, "seconds": 0}


def run_part(name: str, seconds: float, earlier: dict[str, Any]) -> dict[str, Any]:
    """What a part found: verdict, rows, notes, figures, seconds. A failure or too long a run is a verdict too; the rows
    found before it stay."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out, before = Path(folder, "out.json"), Path(folder, "earlier.json")
        before.write_text(json.dumps(earlier))
        words = [sys.executable, "-m", "benchmarks.gpu", "--inside", name, "--earlier", str(before), "--json", str(out)]
        words += ["--minutes", str(seconds / 60)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
        )
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
        found = json.loads(out.read_text()) if out.exists() else {"rows": [], "notes": [], "figures": {}}
    taken = round(time.monotonic() - began)
    if process.returncode:
        late = process.returncode == -signal.SIGKILL and taken >= int(seconds)
        found["verdict"] = f"stopped after {taken} s" if late else "failed"
        found["notes"] += [] if late else printed.splitlines()[-12:]
    return found | {"seconds": taken}


def run_parts(names: list[str], seconds: float) -> dict[str, dict[str, Any]]:
    """On a GPU: one after the other, while there is time."""
    parts: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + seconds
    for name in names:
        own = min(seconds * SHARES[name], end - time.monotonic())
        parts[name] = run_part(name, own, parts) if own > 10 else NO_TIME
        print(f"{name}: {parts[name]['verdict']} ({parts[name]['seconds']} s)", file=sys.stderr, flush=True)
    return parts


def run_small(names: list[str]) -> dict[str, dict[str, Any]]:
    """On a CPU: two at a time, for speeds mean nothing there."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(lambda name: run_part(name, SMALL_SECONDS, {}), names), strict=True))


def page(parts: dict[str, dict[str, Any]]) -> str:
    """The result for people."""
    blocks = [f"meco_timm on {machine()}, commit {source_commit()}"]
    for name, part in parts.items():
        blocks.append(f"{name}: {part['verdict']} ({part['seconds']} s)")
        blocks += [table(part["rows"])] if part["rows"] else []
        blocks += ["\n".join(f"  {note}" for note in part["notes"])] if part["notes"] else []
    return "\n\n".join(blocks)


def machine() -> str:
    """Card, cores and library versions."""
    import accelerate
    import timm

    libraries = f"torch {torch.__version__}, timm {timm.__version__}, accelerate {accelerate.__version__}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not torch.cuda.is_available():
        return f"the CPU, {cores} cores, in small: no GPU was found ({libraries})"
    card = torch.cuda.get_device_properties(0)
    count = torch.cuda.device_count()
    return f"{count} × {card.name}, {card.total_memory / 2**30:.0f} GiB, {cores} cores ({libraries})"


def one_part(name: str, seconds: float, earlier: dict[str, Any], out: Path) -> None:
    """Run a part in this process."""
    from benchmarks import gpu_runs, gpu_steps
    from benchmarks.gpu_measure import Findings

    parts = {
        "backbone": gpu_runs.backbone,
        "store": gpu_runs.store,
        "fsdp2": gpu_runs.fsdp2,
        "two processes": gpu_runs.two_processes,
        "resume": gpu_runs.resume,
        "quickstart": gpu_runs.quickstart,
        "step": gpu_steps.step,
        "loader": gpu_runs.loader,
        "teachers": gpu_steps.teachers,
        "peers": gpu_steps.peers,
    }
    findings = Findings(out, seconds, earlier)
    findings.verdict = parts[name](findings)
    findings.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="at most, on a GPU (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and figures there too")
    parser.add_argument("--part", nargs="+", choices=SHARES, default=list(SHARES), metavar="PART", help="only these")
    parser.add_argument("--peers", dest="part", action="store_const", const=["peers"], help="only the peers")
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # a part in a process of its own
    parser.add_argument("--earlier", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)  # train.py, as gpu_runs.run wants it
    args = parser.parse_args()
    if args.run:
        from benchmarks.gpu_runs import run

        sys.exit(run(args.run))
    if args.inside:
        one_part(args.inside, 60 * args.minutes, json.loads(args.earlier.read_text()), args.json)
        return
    parts = run_parts(args.part, 60 * args.minutes) if torch.cuda.is_available() else run_small(args.part)
    print(page(parts))
    if args.json:
        rows: list[Row] = [{"part": name, **row} for name, part in parts.items() for row in part["rows"]]
        figures = {f"{name}/{key}": value for name, part in parts.items() for key, value in part["figures"].items()}
        write(args.json, "gpu", rows, figures)


if __name__ == "__main__":
    main()
