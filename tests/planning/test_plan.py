"""The plan: all that a run will do, on one screen, with nothing trained, downloaded or written."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
from conftest import CLASSES, ROOT, base_recipe, contents, refused, tree, write
from helpers.checkpoints import TINY, local_dir, network

import train
from meco_timm import UserError, load_recipe, pipeline, plan
from meco_timm.common.layout import WIDTH
from meco_timm.networks.streams import student_stream
from meco_timm.planning import cost, make_plan, weights
from meco_timm.planning.cost import activation_bytes_per_image
from meco_timm.recipe.networks import Network
from meco_timm.recipe.recipe import Alignment
from meco_timm.training import loop

SUMMARY = ["data", "nets", "method", "steps", "here"]


@pytest.fixture(autouse=True)
def _nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the plan trains nothing")

    monkeypatch.setattr(loop.Training, "run", stop)


def rows(text: str, head: str) -> dict[str, list[str]]:
    """The lines of the table that begins with `head`, by their first word."""
    after = text.split(f"\n{head} ", 1)[1].split("\n\n")[0]
    return {line.split()[0]: line.split()[1:] for line in after.splitlines()[1:]}


def planned(recipe: dict[str, Any], folder: Path, *overrides: str) -> str:
    return plan(load_recipe(write(recipe, folder), overrides))


@pytest.fixture(scope="module")
def mixed(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The plan of a teacher to train, one of another size and class order, one without a head, one of logits only."""
    folder = tmp_path_factory.mktemp("mixed")
    shuffled = list(CLASSES[::-1])
    local_dir(folder / "vit", network("deit_tiny_patch16_224", 3, img_size=64, **TINY), shuffled)
    local_dir(folder / "blind", network("test_vit", 0), data_config={"input_size": (3, 64, 64)})
    local_dir(folder / "seven", network("test_resnet", 7), [*CLASSES, "a", "b", "c", "d"])
    recipe = base_recipe(shapes, folder)
    recipe["teachers"] = [
        {"train": "test_resnet"},
        "local-dir:vit",
        "local-dir:blind",
        {"model": "local-dir:seven", "gives": "logits", "size": 48},
    ]
    recipe["alignment"]["length"] = 64
    recipe["loop"]["steps"] = 20
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return planned(recipe, folder)


def test_it_has_each_network_with_size_classes_source_and_cost(mixed):
    found = rows(mixed, "network")
    student = timm.create_model("test_efficientnet", num_classes=3)
    assert list(found) == ["student", "test_resnet", "local-dir:vit", "local-dir:blind", "local-dir:seven"]
    assert found["student"][0] == f"{sum(p.numel() for p in student.parameters()) / 1e6:.2f}"
    assert float(found["student"][1]) > 0
    cells = {name.removeprefix("local-dir:"): " ".join(row[3:]) for name, row in found.items()}
    assert cells["student"].startswith("32 ImageNet 3 random –")
    assert cells["test_resnet"].startswith("32 0.5 3 random, trained first")
    assert cells["vit"] == "64 ImageNet 3 mapped to 3 local-dir:vit apache-2.0"
    assert cells["blind"] == "64 0.5 none: blocks only local-dir:blind apache-2.0"
    assert cells["seven"] == "48 0.5 7 mapped to 3 local-dir:seven apache-2.0"


def test_it_has_each_block_with_its_module_and_shape(mixed):
    block = mixed.split("\nblocks ", 1)[1].split("\n\n")[0]
    lines = {line.split()[0].removeprefix("local-dir:"): " ".join(line.split()[1:]) for line in block.splitlines()[1:]}
    assert lines == {
        "student": "blocks.2 32×4×4 → 64 blocks.4 64×1×1 → 64",
        "test_resnet": "layer2 48×4×4 → 64 layer4 96×1×1 → 64",
        "vit": "blocks.1 32×4×4 → 64 blocks.2 32×4×4 → 64",
        "blind": "blocks.2 64×4×4 → 64 blocks.5 64×4×4 → 64",
        "seven": "none: logits only",
    }


def test_it_has_data_steps_cost_and_memory(mixed, shapes):
    text = " ".join(mixed.split())
    assert f"data {shapes}: 3 classes, 27 training images (27 with labels)" in text
    assert "9 validation, 12 test, at 32 px" in text
    assert (
        "steps 20 of the student, with 8 images each (1 process × 8), 5.9 passes over the training images; 1 t" in text
    )
    assert "M multiply-adds per image for the student" in text
    assert "M for the teachers (random)" in text
    assert "GiB per process in float32" in text


def test_the_average_costs_all_teachers_and_a_random_one_their_mean(recipe, tmp_path):
    recipe["teachers"], costs = [{"train": "test_resnet"}, {"train": "test_byobnet"}], {}
    for sampling in ("random", "average"):
        text = " ".join(planned(recipe, tmp_path, f"zoo.sampling={sampling}", "data.image_size=64").split())
        costs[sampling] = int(text.split(" M for the teachers")[0].split()[-1])
    assert costs["average"] == pytest.approx(2 * costs["random"], abs=2)


def test_the_size_of_a_store_and_the_time_to_precompute_it_are_estimated(recipe, tmp_path, monkeypatch):
    """Size as on disk: 3 logits and 2 blocks of 32 in float16, and a key, of 2 teachers; time from a measured speed."""
    monkeypatch.setattr(cost, "multiply_adds_per_second", lambda: 1e6)
    overrides = [f"store={{folder: {tmp_path / 'store'}, views: 5}}", "alignment={blocks: 2, method: grid, length: 32}"]
    text = " ".join(planned(recipe, tmp_path, *overrides).split())
    size = 2 * (2 * (3 + 2 * 32) + 8)
    assert f"{27 * 5 * size / 1e9:.3g} GB when complete: {27 * 5} views × {size} bytes" in text
    macs = float(text.split(" minutes: ")[1].split()[0])
    assert f"precomputing it takes at least {macs / 1e6 / 60:.0f} minutes" in text
    assert not (tmp_path / "store").exists()
    assert " store " not in planned(recipe, tmp_path)


def test_a_speed_is_measured():
    assert 1e8 < cost.multiply_adds_per_second() < 1e15


def test_it_fits_a_screen(mixed):
    assert max(map(len, mixed.splitlines())) <= WIDTH
    assert len(mixed.splitlines()) < 40
    assert mixed.endswith("\n")
    assert not any(line.endswith(" ") for line in mixed.splitlines())


def test_names_with_brackets_and_colons_are_told_as_they_are(recipe, tmp_path):
    name = local_dir(tmp_path / "[b]:cat:", network("test_resnet", 3), list(CLASSES))
    recipe["teachers"] = [{"model": name, "size": 32}]
    assert "[b]:cat:" in planned(recipe, tmp_path)


def test_nothing_is_written_and_it_is_the_same_again(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("meco_timm.planning.plan.measured_time_lines", lambda *_: [])  # measured anew each time
    recipe["teachers"] = [{"model": local_dir(tmp_path / "mine", network("test_resnet", 3), list(CLASSES))}]
    path = write(recipe, tmp_path)
    before = contents(tmp_path)
    outputs = []
    for _ in range(2):
        assert train.main([path, "--plan"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert contents(tmp_path) == before
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "recipe.yaml"}


def test_networks_are_looked_at_without_weights(recipe, tmp_path, monkeypatch):
    """The largest network costs no more memory than the smallest."""
    made = timm.create_model
    devices = []

    def watched(*arguments: Any, **options: Any) -> Any:
        model = made(*arguments, **options)
        devices.append((next(model.parameters()).device.type, options["pretrained"]))
        return model

    monkeypatch.setattr(timm, "create_model", watched)
    recipe["teachers"] = [{"train": "vit_giant_patch14_224", "args": {"depth": 2, "num_heads": 1}}]
    recipe["data"]["image_size"] = 28
    text = planned(recipe, tmp_path)
    assert set(devices) == {("meta", False)}
    assert "vit_giant_patch14_224" in text


def test_a_run_saves_its_plan(recipe, tmp_path, monkeypatch, capsys):
    """Word for word, before anything is trained."""

    class Stopped(Exception):
        pass

    def stop(*arguments: Any) -> None:
        raise Stopped

    monkeypatch.setattr(pipeline, "assemble_zoo", stop)
    path = write(recipe, tmp_path)
    with pytest.raises(Stopped):
        train.main([path])
    lines = capsys.readouterr().err.split("\ndata ")[1].splitlines()
    assert [head for line in lines[1:-1] if (head := line[:8].strip())] == [*SUMMARY[1:], "plan"]
    assert lines[-2] == f"plan    all of it: {tmp_path / 'run/plan.txt'}"
    assert (tmp_path / "run/plan.txt").read_text() == plan(load_recipe(path))
    assert {"recipe.yaml", "run/plan.txt", "run/recipe.yaml"} <= tree(tmp_path)


@pytest.mark.parametrize("width", [80, 110])
def test_it_fits_the_terminal_and_breaks_no_word(recipe, tmp_path, width):
    names = ["mobilenetv3_large_100.ra_in1k", "vit_small_patch16_224.augreg_in21k_ft_in1k"]
    recipe["teachers"] = [{"train": name} for name in names]
    wide, text = (plan(load_recipe(write(recipe, tmp_path)), width=columns) for columns in (1000, width))
    lines = [line for line in text.splitlines() if str(tmp_path.parent) not in line]  # a path may be longer
    assert max(map(len, lines)) <= width
    assert set(text.split()) == set(wide.split())
    assert text.count(names[1]) >= 3  # at the left of each part of a table


def test_processes_and_the_effective_batch_are_always_there(recipe, tmp_path):
    settings = load_recipe(write(recipe, tmp_path), ["loop.accumulation=3", "loop.batch_size=4"])
    data = pipeline.load_data(settings.data, settings.seed)
    for text in (made := make_plan(settings, data, 2)).text(), made.short():
        assert "\nsteps   4 of the student, with 24 images each (2 processes × 4 × 3 accumulated)" in text


def test_weights_that_are_here_and_to_download(recipe, tmp_path, monkeypatch):
    """With their size and where they are; not of networks from a folder or with random weights."""
    own = local_dir(tmp_path / "own", network("test_resnet", 3), list(CLASSES))
    recipe["teachers"] = [{"train": "resnet18.a1_in1k"}, {"train": "resnet34.a1_in1k"}, {"model": own, "size": 32}]
    here = monkeypatch.setattr
    here(weights, "try_to_load_from_cache", lambda repo, file: "/there" if "resnet34" in repo else None)
    text = planned(recipe, tmp_path)
    assert "\nweights on this machine: resnet34.a1_in1k\n" in text
    assert "\nweights to download: about 45 MB: 45 MB from huggingface.co/timm/resnet18.a1_in1k\n" in text


def test_a_long_training_of_a_folder_on_a_cpu_names_the_small_recipe(recipe, tmp_path, monkeypatch):
    assert "own_images_small" not in planned(recipe, tmp_path)
    monkeypatch.setattr(cost, "multiply_adds_per_second", lambda: 1e5)
    assert "The recipe own_images_small" in planned(recipe, tmp_path)


# Weights without a connection


BLOCKED = "import sys; from meco_timm.cli import main; sys.exit(main(sys.argv[1:]))"


def test_without_a_connection_all_missing_weights_are_named_at_once(recipe, tmp_path):
    """The Hub is a server that takes connections and never answers."""
    recipe["teachers"] = [{"train": "resnet18.a1_in1k"}, {"train": "resnet34.a1_in1k"}]
    recipe["student"] = "mobilenetv3_small_100.lamb_in1k"
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    hub = socket.create_server(("127.0.0.1", 0))
    place = f"127.0.0.1:{hub.getsockname()[1]}"
    environment |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://{place}", "PYTHONPATH": str(ROOT)}
    with hub, subprocess.Popen([sys.executable, "-c", BLOCKED, write(recipe, tmp_path)], env=environment, cwd=tmp_path,
                          stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
        assert process.stderr is not None
        lines = [line for line in process.stderr if not line.endswith(" …\n")]  # a machine may be slow
    said = "".join(lines[2:])
    assert lines[1].startswith("1 process on CPU")
    assert process.returncode == 2, said
    assert said.startswith("weights: 3 network(s) need weights that are not here and cannot be downloaded (")
    for key, name in (("student", "mobilenetv3_small_100.lamb_in1k"), ("teachers.1", "resnet34.a1_in1k")):
        assert re.search(rf"^  {key}: +{re.escape(name)} +\d+ MB from {place}/timm/{re.escape(name)}$", said, re.M)
    for word in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "local-dir:FOLDER", "train: resnet18", "own_images_small"):
        assert word in said
    assert len(said.splitlines()) < 12
    assert not (tmp_path / "run").exists()


def test_weights_are_looked_for_together(recipe, tmp_path, monkeypatch):
    """Ten that do not answer take the time of one."""
    monkeypatch.setattr(weights, "LONGEST", 0.3)
    monkeypatch.setattr(weights.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "_probe", lambda address, faults: time.sleep(30))
    missing = [weights.Weights(f"teachers.{i}", "n", f"https://h/{i}", 1.0, False) for i in range(10)]
    began = time.monotonic()
    with pytest.raises(UserError, match=r"10 network\(s\) need weights.*no answer"):
        weights.require_weights(missing, load_recipe(write(recipe | {"teachers": ["x.y"]}, tmp_path)), None)
    assert time.monotonic() - began < 5


# Warnings


def warnings(recipe: dict[str, Any], folder: Path) -> list[str]:
    recipe["student"] = "test_convnext"
    text = planned(recipe, folder)
    return " ".join(text[text.index("\nmemory") :].split()).replace(" note:", "\nnote:").replace(
        " warning:", "\nwarning:"
    ).splitlines()[1:]  # fmt: skip


def test_no_warnings_where_there_is_nothing_to_warn_of(recipe, tmp_path):
    recipe["teachers"] = [{"train": "test_resnet"}]
    assert warnings(recipe, tmp_path) == []


def test_an_assumed_class_order_is_noted(recipe, tmp_path):
    model = network("test_resnet", 3)
    nameless, named = local_dir(tmp_path / "nameless", model), local_dir(tmp_path / "named", model, list(CLASSES))
    recipe["teachers"] = [{"model": name, "size": 32} for name in (nameless, named)]
    recipe["teachers"].append({"model": nameless, "size": 32, "classes": [0, 1, 2]})
    assert warnings(recipe, tmp_path) == [
        "note: nameless has as many classes as the data set, without names; the same order is assumed"
    ]


def test_images_enlarged_for_a_teacher_give_a_warning(recipe, tmp_path):
    recipe["teachers"] = [{"model": local_dir(tmp_path / "large", network("test_resnet", 3), list(CLASSES))}]
    (message,) = warnings(recipe, tmp_path)
    assert message.startswith("warning: large gets images of 32 px enlarged to 160 px, slow and blurred")


def test_non_commercial_weights_give_a_warning(recipe, tmp_path):
    model = network("test_resnet", 3)
    model.pretrained_cfg["license"] = "cc-by-nc-4.0"
    recipe["teachers"] = [{"model": local_dir(tmp_path / "nc", model, list(CLASSES)), "size": 32}]
    (message,) = warnings(recipe, tmp_path)
    assert message == "warning: the weights of nc are cc-by-nc-4.0: commercial use of the student may not be allowed"


def test_attention_on_1x1_maps_gives_a_warning(recipe, tmp_path):
    recipe["teachers"] = [{"train": "test_resnet"}]
    recipe["alignment"] = {"blocks": 2, "method": "attention", "length": 16}
    message = warnings(recipe, tmp_path)
    assert [line.split(" is a 1×1 map")[0] for line in message] == [
        "warning: block 1 of student",
        "warning: block 1 of test_resnet",
    ]
    recipe["losses"] = {"blocks": 0.0}
    assert warnings(recipe, tmp_path) == []


# Refusals


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student=qwen3_vit_88m_enc", "data.image_size=32"], "student: qwen3_vit_88m_enc"),
        (["student={model: test_vit, args: {patch_drop_rate: 0.5}}"], "student.args: patch_drop_rate"),
        (["student=deit_tiny_patch16_224", "data.image_size=8"], "data.image_size: deit_tiny_patch16_224"),
        (["teachers=[{train: test_resnet}, {train: resnet19}]"], "teachers.1: timm has no model 'resnet19'"),
        (["teachers=[{train: test_resnet, gives: blocks}]"], "teachers: all of them give blocks only"),
        (
            ["teachers=[{train: test_resnet, gives: blocks}]", "alignment.blocks=0"],
            "alignment.blocks is 0, so it would",
        ),
        (["alignment.blocks=6"], "alignment.blocks: test_efficientnet (student) has 5 blocks"),
        (["teachers=['hf-hub:owner/name']"], "teachers.0: hf-hub:owner/name cannot be made"),
        (["teachers=[cs3darknet_s]"], "teachers.0: timm has no weights of cs3darknet_s"),
        (["teachers=[resnet18.a1_in1k]"], "teachers.0: the network has 1000 classes"),
        (["teachers=[{model: test_vit, weights: no.pth}]"], "teachers.0.weights: there is no file no.pth"),
        (["loop.batch_size=64"], "batch"),
        (["student=test_resnett"], "student: timm has no model 'test_resnett'. Did you mean 'test_resnet'"),
        (["student.args={drop: 1}"], "student: test_efficientnet cannot be made with"),
        (["teachers.0=resnet18.a1_in1"], "teachers.0: timm has no weights 'resnet18.a1_in1'. Did you mean 'a1_in1k'"),
        (["teachers.0='local-dir:nowhere'"], "teachers.0: local-dir:nowhere (relative to "),
        (["teachers.1.size=8"], "teachers.1.size: test_vit cannot take images of 8 × 8"),
    ],
)
def test_what_cannot_work_is_refused_before_any_folder_is_made(recipe, tmp_path, capsys, overrides, message):
    """By the plan and by the run, in the same words."""
    path = write(recipe, tmp_path)
    of_plan = refused(capsys, path, *overrides, "--plan")
    assert message in of_plan
    assert refused(capsys, path, *overrides) == of_plan
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


# Memory


def test_what_autograd_keeps_is_counted_without_weights():
    """The same with and without values, and four times as much at twice the size."""
    stream = student_stream(Network(model="test_resnet"), Alignment(blocks=0), 3, 32, weightless=True)
    real = student_stream(Network(model="test_resnet"), Alignment(blocks=0), 3, 32)
    kept = activation_bytes_per_image(stream)
    assert kept == pytest.approx(activation_bytes_per_image(real), rel=0.05)
    image = 4 * 3 * 32 * 32
    assert kept > 5 * image
    double = student_stream(Network(model="test_resnet"), Alignment(blocks=0), 3, 64, weightless=True)
    assert activation_bytes_per_image(double) == pytest.approx(4 * kept, rel=0.15)


def test_one_image_is_too_few_for_a_batch_norm(recipe, tmp_path, capsys):
    """Where its map is one pixel; networks without a batch norm, and larger maps, take it."""
    path = write(recipe, tmp_path)
    told = refused(capsys, path, "loop.batch_size=1", "--plan")
    assert told.startswith("loop.batch_size: 1 image of 32 px gives a batch norm of EfficientNet one value per channel")
    told = refused(capsys, path, "loop.batch_size=1", "student=test_vit", "--plan")
    assert told.startswith("teachers.0.loop.batch_size: 1 image of 32 px gives a batch norm of ResNet one value")
    for change in ("teachers=[train: test_vit]", "data.image_size=64"):
        student = "test_vit" if "teachers" in change else "test_efficientnet"
        assert planned(recipe, tmp_path, "loop.batch_size=1", f"student={student}", change)
