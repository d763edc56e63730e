"""recipes/launch/: accelerate's configs and the Slurm script, with two processes on the CPU."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import ROOT, image_folder, tree, write
from helpers import launch
from torch import nn

from meco_timm.common.errors import UserError
from meco_timm.data.loading import DataSource, load_data
from meco_timm.evaluation.measures import quality
from meco_timm.evaluation.table import compute_logits
from meco_timm.networks.streams import teacher_stream
from meco_timm.recipe.networks import Teacher
from meco_timm.recipe.recipe import Alignment, Recipe
from meco_timm.training import check_launch, describe_processes
from meco_timm.training.sharding import match_layouts

LAUNCH = ROOT / "recipes/launch"
CONFIGS = sorted(LAUNCH.glob("*.yaml"))
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}

SRUN = f"""#!{sys.executable}
# Starts the tasks of a step in a group of their own, which Slurm signals; srun itself is spared.
import os, signal, subprocess, sys
os.setpgrp()
signal.signal(signal.SIGTERM, lambda *_: None)
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = [subprocess.Popen(words, env=os.environ | {{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}})
         for i in range(int(os.environ["SLURM_NTASKS"]))]
with open(os.environ["STEP"], "w") as file:
    file.write(str(os.getpgrp()))
codes = [task.wait() for task in tasks]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""
SCONTROL = """#!/bin/sh
test "$1" = requeue && echo "$2" >> "$REQUEUED" || echo localhost
"""


@pytest.mark.parametrize("path", [*CONFIGS, LAUNCH / "slurm.sh"], ids=lambda path: path.name)
def test_each_begins_with_how_to_run_it_and_where_it_has_been(path):
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert f"recipes/launch/{path.name}" in re.search(r"^# command +(.+)$", head, re.MULTILINE)[1]  # type: ignore[index]
    assert re.search(r"^# tested .+never on a GPU$", head, re.MULTILINE)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_reads_each_config(path):
    config: Any = load_config_from_file(str(path))  # refuses keys that it does not know
    assert config.num_processes == 8


def environment_of(config: Path) -> dict[str, str]:
    """What `accelerate launch` sets for each process."""
    words = [f"--config_file={config}", "train.py"]
    return prepare_multi_gpu_env(_validate_launch_command(launch_command_parser().parse_args(words))[0])


def test_the_slurm_script_parses_and_says_what_the_config_of_fsdp2_says():
    subprocess.run(["bash", "-n", LAUNCH / "slurm.sh"], check=True)
    environment = environment_of(LAUNCH / "fsdp2.yaml")
    (exports,) = re.findall(r"^# For FSDP2 .*: export (.+)$", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE)
    told = dict(word.split("=") for word in exports.split())
    assert len(told) == 3
    assert {key: environment[key] for key in told} == told


@pytest.mark.parametrize(
    ("kind", "fsdp2", "ema", "told"),
    [
        ("DEEPSPEED", False, 0.0, r"accelerate: DEEPSPEED is not supported. Use DDP \(recipes/launch/ddp.yaml\)"),
        ("MEGATRON_LM", False, 0.0, "accelerate: MEGATRON_LM is not supported"),
        ("FSDP", False, 0.0, "accelerate: FSDP 1 is not supported"),
        ("FSDP", True, 0.9, "loop.ema: not supported with FSDP2. Write 0."),
        ("FSDP", True, 0.0, None),
        ("MULTI_GPU", False, 0.9, None),
    ],
)
def test_launches_that_would_judge_parts_for_the_whole_are_refused(kind, fsdp2, ema, told):
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType(kind), is_fsdp2=fsdp2)
    with pytest.raises(UserError, match=told) if told else nullcontext():
        check_launch(accelerator, moving_average=ema > 0)


@pytest.mark.parametrize(
    ("command", "processes", "hint"),
    [
        ("python train.py quickstart", 1, False),
        ("/bin/python /bin/accelerate launch --cpu --num_processes 2 train.py quickstart", 1, True),
        ("/bin/python /bin/accelerate launch --multi_gpu --num_processes 2 train.py quickstart", 2, False),
        ("/bin/python /bin/accelerate launch --num_processes 1 train.py quickstart", 1, False),
    ],
)
def test_the_first_lines_have_the_number_of_processes(monkeypatch, command, processes, hint):
    """And how to have two where accelerate was asked for two and started one."""
    parent = SimpleNamespace(cmdline=lambda: command.split())
    monkeypatch.setattr("meco_timm.training.accelerator.psutil.Process", lambda pid: parent)
    line = describe_processes(SimpleNamespace(num_processes=processes, device=SimpleNamespace(type="cpu")))
    assert line.startswith("2 processes on CPU" if processes == 2 else "1 process on CPU")
    assert ("accelerate launch --multi_gpu --num_processes 2 train.py" in line) == hint


def test_a_gradient_has_the_strides_of_its_weight():
    depthwise, plain = nn.Conv2d(64, 64, 7, groups=64), nn.Conv2d(64, 64, 7, groups=64)
    plain.load_state_dict(depthwise.state_dict())
    match_layouts(depthwise)
    for module in (depthwise, plain):
        module(torch.ones(2, 64, 9, 9)).square().sum().backward()
    assert depthwise.weight.grad.stride() == depthwise.weight.stride()
    assert torch.equal(depthwise.weight.grad, plain.weight.grad)


def finished(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        env=ENVIRONMENT | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_by_each_config(recipe, tmp_path, kind):
    """Launched by accelerate; of FSDP2, with the environment that accelerate sets."""
    recipe["loop"] |= {"steps": 2}
    recipe["teachers"] = recipe["teachers"][:1]
    recipe["student"] = "test_mambaout"  # its depthwise convolutions give gradients in a layout of their own
    path = write(recipe, tmp_path)
    if kind == "ddp":
        said = finished(
            "accelerate", "launch", "--config_file", LAUNCH / "ddp.yaml", "--num_processes=2", "train.py", path
        )
    else:
        environment = environment_of(LAUNCH / "fsdp2.yaml")
        fsdp = {name: value for name, value in environment.items() if "FSDP" in name}
        said = "".join(launch.finished(launch.launch(path, processes=2, program="train as on a GPU", **fsdp)))
    assert said.count("Load the student") == 1
    assert "2 processes on CPU, 1 thread(s) each\n" in said
    assert "Grad strides" not in said
    assert {"table.json", "student/model.safetensors"} < tree(tmp_path / "run")


@pytest.fixture
def several(recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A student with batch norm, one teacher of blocks and one of logits, images that two
    processes cannot halve, a loader for each."""
    image_folder(tmp_path / "data", train_images=14, test_images=5)
    recipe["data"] |= {"source": str(tmp_path / "data"), "workers": 1, "validation": 0.26}
    recipe["teachers"] = [{"train": "test_resnet", "gives": "blocks"}, {"train": "test_vit", "gives": "logits"}]
    recipe["zoo"] |= {"loop": {"steps": 2}}
    recipe["loop"] |= {"steps": 20, "validations": 2}
    return recipe


def judged(recipe: dict[str, Any], split: str) -> tuple[int, dict[str, float | None]]:
    """(images, quality) of the exported student on a split, by one process."""
    settings = Recipe.model_validate(recipe)
    data: DataSource = load_data(settings.data, settings.seed)
    student = Teacher(model=f"local-dir:{recipe['run']}/student")
    stream = teacher_stream(student, Alignment(blocks=0), data.classes).eval()
    logits, label = compute_logits({"": stream.logits}, data, getattr(data, split), Accelerator(), 8)
    return len(label), quality(logits[""], label)


def rows(run: Path) -> list[dict[str, Any]]:
    table = json.loads((run / "table.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key not in ("images_per_s", "latency_ms")} for row in table]


def lines(run: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("images_per_s", "data_wait")} for line in read]


def test_stopped_by_slurm_and_queued_again_it_ends_as_if_left_alone(several, tmp_path):
    """SIGTERM to the whole step, loaders included."""
    whole = several | {"run": str(tmp_path / "whole"), "data": several["data"] | {"workers": 0}}
    launch.finished(launch.launch(write(whole, tmp_path, "whole.yaml"), processes=2))
    scores = [line for line in lines(tmp_path / "whole") if "validation/nll" in line]
    for split, nll in (("test", rows(tmp_path / "whole")[-1]["nll"]), ("validation", None)):
        images, found = judged(whole, split)
        assert images % 2 == 1
        best = max(scores, key=lambda line: (line["validation/top1"], line["step"]))
        assert found["nll"] == pytest.approx(nll or best["validation/nll"], rel=1e-5), split  # each image once

    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}", "ACCELERATE_USE_CPU": "true"}
    environment |= {"SLURM_NTASKS": "2", "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost"}
    environment |= {"STEP": str(tmp_path / "step"), "REQUEUED": str(tmp_path / "requeued")}
    script = ["bash", str(LAUNCH / "slurm.sh"), write(several, tmp_path)]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(script, env=ENVIRONMENT | environment, cwd=ROOT, stdout=log, stderr=log)
    metrics, until = tmp_path / "run/metrics.jsonl", time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count("\n") > 1):
        assert job.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(int((tmp_path / "step").read_text()), signal.SIGTERM)
    asked = time.monotonic()
    assert job.wait(timeout=300) == 143, (tmp_path / "log").read_text()
    assert time.monotonic() - asked < 60  # what slurm.sh asks for before the end
    said = (tmp_path / "log").read_text()
    assert re.search(r"student: stopped at step \d+; the same command continues", said)
    assert "Traceback" not in said
    assert (tmp_path / "requeued").read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / "run/table.json").exists()

    assert "student: continuing from step" in finished(*script, **environment)
    assert (tmp_path / "requeued").read_text().count("\n") == 1
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    weights = [(tmp_path / run / "student/model.safetensors").read_bytes() for run in ("run", "whole")]
    assert weights[0] == weights[1]
