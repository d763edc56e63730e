"""The parts of gpu.py that are whole runs of train.py, and the loaders."""

import copy
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate.state import DistributedType, PartialState
from PIL import Image
from timm.models import save_for_hf

from benchmarks import resume as kills
from benchmarks.gpu_measure import CUDA, Findings
from meco_timm.data.loading import load_data
from meco_timm.data.views import Steps
from meco_timm.recipe.reading import load_recipe

ROOT = Path(__file__).parents[1]
PROGRAM = (sys.executable, "-m", "benchmarks.gpu", "--run")
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "MECO_TIMM_DETERMINISTIC": "1"}
TABLE = ("student alone", "true ensemble", "student")  # rows of it on the page
SHORT = ["teachers=[train: test_vit]", "student=test_vit2", "data.workers=0"]  # in place of the quickstart's
SHORT += [f"{loop}.{key}" for loop in ("loop", "zoo.loop") for key in ("steps=8", "batch_size=16", "validations=1")]


def run(words: list[str]) -> int:
    """train.py in this process; the environment may ask for deterministic algorithms, or for two processes on a GPU."""
    import train

    if os.environ.get("MECO_TIMM_DETERMINISTIC"):
        torch.use_deterministic_algorithms(True, warn_only=True)
    if CUDA and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(backend="gloo")  # NCCL refuses two processes on one GPU
    if not CUDA and "FSDP_VERSION" in os.environ:
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU  # else accelerate passes it over
    return train.main(words)


def trained(folder: Path, words: list[str], **environment: str) -> tuple[list[dict[str, Any]] | None, str, float]:
    """(rows of the table, none where there is no table, or None if it fails, output, seconds) of a run of the
    quickstart's recipe."""
    own = [f"run={folder / 'run'}", f"zoo.folder={folder / 'zoo'}"]
    command = [*PROGRAM, str(ROOT / "recipes/quickstart.yaml"), *own, *words]
    began = time.monotonic()
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, cwd=ROOT)
    seconds, table = time.monotonic() - began, folder / "run/table.json"
    rows = json.loads(table.read_text())["rows"] if table.exists() else []
    return None if done.returncode else rows, done.stdout + done.stderr, seconds


def quickstart(found: Findings) -> str:
    """The quickstart in float32, and in other precisions and compiled with a fifth of the steps."""
    fifth = ["loop.steps=200", "zoo.loop.steps=100"] if CUDA else SHORT
    ways: dict[str, tuple[list[str], dict[str, str]]] = {
        "float32": ([] if CUDA else SHORT, {}),
        "bf16": ([*fifth, "precision=bf16"], {}),
        **({"fp16": ([*fifth, "precision=fp16"], {})} if CUDA else {}),
        "bf16, compiled": ([*fifth, "precision=bf16", "loop.compile=true"], {}),
    }
    if not CUDA:  # where compiling for a CPU takes minutes
        ways["bf16, compiled"] = ([*fifth, "precision=bf16"], {"ACCELERATE_DYNAMO_BACKEND": "EAGER"})
    workers = [f"data.workers={min(4, os.cpu_count() or 1)}"] if CUDA else []
    for name, (words, environment) in ways.items():
        if not found.has_time(name, 0.7):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows, printed, seconds = trained(Path(folder), [*words, *workers], **environment)
        top1 = {row["name"]: row["top1"] for row in rows or []}
        found.add({"run": name, "seconds": seconds, **{key: top1.get(key) for key in TABLE}})
        found.figures[f"seconds {name}"] = seconds
        found.notes += [] if rows else [f"{name} failed:", *printed.splitlines()[-6:]]
    if any(row["student"] is None for row in found.rows):
        return "failed"
    if CUDA and found.rows[0]["student"] < 96:
        found.notes.append(f"the student has {found.rows[0]['student']:.1f} %; on a CPU it has 98.8")
        return "worse than on a CPU"
    return "as expected"


def loader(found: Findings) -> str:
    """Images per second that loader processes give, against what the step takes."""
    cores = os.cpu_count() or 1
    counts = [count for count in sorted({0, 1, 2, 4, 8, cores} if CUDA else {0, 1}) if count <= cores]
    with tempfile.TemporaryDirectory() as folder:
        jpegs = make_jpegs(Path(folder), 600 if CUDA else 40)
        for name, source, size, batch in (
            ("32 px, PNG", ROOT / "recipes/data/digits", 32, 256 if CUDA else 16),
            ("224 px, JPEG of 500 × 375", jpegs, 224, 64 if CUDA else 4),
        ):
            speeds = {f"{count} workers": images_per_second(source, size, batch, count) for count in counts}
            found.add({"images/s": name, **speeds})
            found.figures |= {f"{name}, {key}": value for key, value in speeds.items()}
    steps = {row["form"]: row["images/s"] for row in found.earlier.get("step", {}).get("rows", []) if "images/s" in row}
    if CUDA and "MEAL" in steps:
        feeding = [count for count in counts if found.rows[1][f"{count} workers"] > steps["MEAL"]]
        enough = f"{feeding[0]} workers feed it" if feeding else f"{cores} workers do not feed it"
        found.notes.append(f"MEAL's step takes {steps['MEAL']:.0f} images/s of 224 px: {enough}")
    return "as expected"


def make_jpegs(folder: Path, count: int) -> Path:
    """`count` JPEGs of 500 × 375 in two classes; soft shapes and noise, so that they are as large as photographs."""
    generator = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
        noisy = (pixels + generator.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
        path = folder / "photographs" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(path, quality=88)
    return folder / "photographs"


def images_per_second(source: Path, size: int, batch: int, workers: int) -> float:
    """Of the training views, after the loader's start."""
    words = [f"data.source={source}", f"data.image_size={size}", "data.labelled=null", "data.verify=none"]
    recipe = load_recipe(ROOT / "recipes/quickstart.yaml", words)
    data = replace(load_data(recipe.data, 0), workers=workers)
    batches, seconds = data.batches(data.train, Steps(batch, 0, 0, 10_000)), 2.0 if CUDA else 0.5
    for _ in range(2 * max(workers, 1)):  # those that were prepared meanwhile
        next(batches)
    began, read = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        read += len(next(batches).row)
    return read / (time.perf_counter() - began)


def store(found: Findings) -> str:
    """A store that is filled, and read by a run that loads no teacher."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*SHORT, f"store={{folder: {folder}/store, views: 1}}"]
        filled = _ended(found, "filled", Path(folder), [*words, "--store"])
        read = _ended(found, "read", Path(folder), words)
    return "as expected" if filled is not None and "complete; no teacher is loaded" in (read or "") else "failed"


def backbone(found: Findings) -> str:
    """A small backbone from two encoders with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        names = ("test_vit", "test_resnet")
        for name in names:
            save_for_hf(timm.create_model(name, num_classes=0), f"{folder}/{name}", safe_serialization=True)
        teachers = ", ".join(f"{{model: 'local-dir:{folder}/{name}', size: 160}}" for name in names)
        words = ["task=backbone", f"teachers=[{teachers}]", "data.labelled=null", *SHORT[1:]]
        return "failed" if _ended(found, "backbone", Path(folder), words) is None else "as expected"


def _ended(found: Findings, name: str, folder: Path, words: list[str]) -> str | None:
    """Add a row for a run; its output, None if it fails."""
    rows, printed, seconds = trained(folder, words)
    found.add({"run": name, "seconds": seconds, "ended": rows is not None, "rows of the table": len(rows or [])})
    found.notes += [] if rows is not None else [f"{name} failed:", *printed.splitlines()[-6:]]
    return None if rows is None else printed


def resume(found: Findings) -> str:
    """A run that is killed on its way and repeated, against one that is not, with torch's deterministic algorithms.
    Where they differ, the same run once more."""
    recipe = copy.deepcopy(kills.RECIPE)
    if not CUDA:
        recipe["teachers"], recipe["zoo"]["loop"]["steps"] = recipe["teachers"][:1], 6
        recipe["loop"] |= {"steps": 10, "validations": 2, "log_every": 2}
    os.environ.update(DETERMINISTIC)
    with tempfile.TemporaryDirectory() as folder:
        whole, again, killed = (Path(folder, name) for name in ("whole", "again", "killed"))
        seconds = kills.to_the_end(whole, recipe, PROGRAM)
        place = kills.killed_after(killed, recipe, 0.6 * seconds, PROGRAM) or "after its end"
        kills.to_the_end(killed, recipe, PROGRAM)
        equal, apart = kills.result(killed) == kills.result(whole), far(whole, killed)
        found.add({"runs": f"killed ({place}) and repeated", "equal": equal, "largest difference": apart})
        found.figures["largest difference"] = apart
        if equal:
            return "as expected"
        kills.to_the_end(again, recipe, PROGRAM)
        noise = far(whole, again)
        found.add({"runs": "the same run twice", "equal": noise == 0, "largest difference": noise})
    found.notes.append("no run is repeated to the bit on this GPU" if noise else "the killed run alone differs")
    return "as expected" if noise and apart <= 3 * noise else "failed"


def far(one: Path, other: Path) -> float:
    """Largest difference between two students' weights, as a share of the largest weight."""
    from safetensors.torch import load_file

    a, b = (load_file(folder / "run/student/model.safetensors") for folder in (one, other))
    return max((a[k].double() - b[k].double()).abs().max().item() / max(a[k].abs().max().item(), 1e-12) for k in a
               if a[k].is_floating_point())  # fmt: skip


def two_processes(found: Findings) -> str:
    """Two processes × 8 images against one × 16."""
    return _against_one(found, 2)


def fsdp2(found: Findings) -> str:
    """FSDP2 over one GPU, or over two processes on a CPU, against a plain process."""
    return _against_one(found, 1 if CUDA else 2, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2",
                        FSDP_AUTO_WRAP_POLICY="NO_WRAP")  # fmt: skip


def _against_one(found: Findings, processes: int, **environment: str) -> str:
    """So many processes, which share 16 images a step, against one, a student without batch norm."""
    plain = ["student=test_vit2", "teachers=[{train: test_vit}]", "data.workers=0", "loop.steps=10", "loop.log_every=2"]
    plain += ["loop.validations=1", "zoo.loop.steps=4", "zoo.loop.batch_size=8"]
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder, "one"), Path(folder, "two")
        rows, printed, _ = trained(one, [*plain, "loop.batch_size=16"])
        if rows is None:
            found.notes += printed.splitlines()[-6:]
            return "failed"
        teacher = next((one / "zoo").glob("test_vit-*"))  # of both
        own = [*plain, f"loop.batch_size={16 // processes}", f"teachers=[{{model: 'local-dir:{teacher}'}}]"]
        printed = _launch(two, own, processes, environment)
        if printed:
            found.notes += printed.splitlines()[-8:]
            return "failed"
        apart = far(one, two)
        losses = [_totals(place / "run/metrics.jsonl") for place in (one, two)]
    for i, (whole, half) in enumerate(zip(*losses, strict=True)):
        found.add({"step": 2 * i + 2, "loss of one process": whole, f"of the first of {processes}": half})
    found.notes.append(f"largest difference of the students' weights: {apart:.1e} of the largest weight")
    found.figures["largest difference"] = apart
    return "as expected" if apart < 1e-2 else "differs"


def _launch(folder: Path, words: list[str], processes: int, environment: dict[str, str]) -> str:
    """Start all and wait; the output if one fails, else nothing."""
    own = [f"run={folder / 'run'}", f"zoo.folder={folder / 'zoo'}"]
    command = [*PROGRAM, str(ROOT / "recipes/quickstart.yaml"), *own, *words]
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    common |= environment | {"LOCAL_WORLD_SIZE": str(processes)}
    common |= {} if CUDA else {"ACCELERATE_USE_CPU": "true"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": "0" if CUDA else str(rank)} for rank in range(processes)]
    running = [
        subprocess.Popen(command, env=os.environ | common | rank, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True, cwd=ROOT)
        for rank in ranks
    ]  # fmt: skip
    printed = [process.communicate()[0] for process in running]
    return "" if not any(process.returncode for process in running) else "\n".join(printed)


def _totals(path: Path) -> list[float]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["total"] for line in lines if "total" in line]
