"""The whole, end to end and tiny: files, table, student, running again, interruption, and every bad input."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from conftest import base_recipe, contents, refused, tree, write
from helpers import quick
from torch import Tensor, nn

import train
from meco_timm import load_recipe, pipeline
from meco_timm.recipe.reading import recipe_key
from meco_timm.training import loop
from meco_timm.training.state import TrainingState

RUN_FILES = {
    "combination.json",
    "recipe.yaml",
    "plan.txt",
    "data.parquet",
    "metrics.jsonl",
    "table.json",
    "predictions.safetensors",
    "report.html",
    "student/README.md",
    "student/figures/cost.png",
    "student/figures/curves.png",
    "student/figures/soft_labels.png",
    "student/config.json",
    "student/model.safetensors",
}
NETWORK_FILES = {"config.json", "model.safetensors", "made_by.json", "metrics.jsonl", "data.parquet"}


def run(*arguments: str) -> str:
    """What a command that succeeds prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert train.main(list(arguments)) == 0
    return said.getvalue()


def digest(module: nn.Module) -> str:
    """A hash of all parameters and buffers, also those that are not in the state dict."""
    total = hashlib.blake2b()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        total.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


class Finished(NamedTuple):
    """A run of the base recipe, and what could be seen of it from inside."""

    folder: Path
    path: str
    said: str
    teachers: list[tuple[nn.Module, str]]  # each teacher and its hash before the student's first step
    initial: dict[str, dict[str, Tensor]]  # title of a training → the objective's first state
    trained: dict[str, nn.Module]  # title of a training → the objective at its end


@pytest.fixture(scope="module")
def finished(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """Trained for real, once; watched, not changed."""
    folder = tmp_path_factory.mktemp("finished")
    path = write(base_recipe(shapes, folder), folder)
    teachers: list[tuple[nn.Module, str]] = []
    initial: dict[str, dict[str, Tensor]] = {}
    trained: dict[str, nn.Module] = {}
    assemble, start = pipeline.assemble_zoo, loop.Training.run

    def assembled(*arguments: Any) -> Any:
        zoo = assemble(*arguments)
        teachers.extend((stream, digest(stream)) for stream in zoo.streams.values())
        return zoo

    def started(self: loop.Training) -> Any:
        initial[self.job.title] = {name: tensor.clone() for name, tensor in self.state.objective.state_dict().items()}
        trained[self.job.title] = self.state.objective
        return start(self)

    with pytest.MonkeyPatch.context() as patch:
        quick.draw_nothing(patch.setattr)
        patch.setattr(pipeline, "assemble_zoo", assembled)
        patch.setattr(loop.Training, "run", started)
        said = run(path)
    return Finished(folder, path, said, teachers, initial, trained)


def rows(folder: Path) -> list[dict[str, Any]]:
    """table.json without the measured speed."""
    table = json.loads((folder / "table.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key not in ("images_per_s", "latency_ms")} for row in table]


def lines(file: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the measured speed."""
    read = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("images_per_s", "data_wait")} for line in read]


# A run and what it leaves


def test_the_files_of_a_run_and_no_others(finished):
    assert tree(finished.folder / "run") == RUN_FILES


def test_the_files_of_the_zoo_and_no_others(finished):
    networks = {p.name.rpartition("-")[0]: p.name for p in (finished.folder / "zoo").iterdir() if p.name[0] != "."}
    assert networks.keys() == {"test_resnet", "test_vit", "test_efficientnet"}  # two teachers and the student alone
    assert tree(finished.folder / "zoo") == {f"{n}/{file}" for n in networks.values() for file in NETWORK_FILES}


def test_the_table_has_all_that_is_compared(finished):
    table = json.loads((finished.folder / "run/table.json").read_text())["rows"]
    assert [row["name"] for row in table] == ["test_resnet", "test_vit", "true ensemble", "student alone", "student"]
    for row in table:
        assert 0 <= row["top1"] <= 100
        assert row["top5"] is None
        assert row["nll"] > 0
        assert row["parameters"] > 1000
        assert row["multiply_adds"] > 1000
        assert row["images_per_s"] > 0
        assert f"{row['top1']:.2f}" in finished.said
    assert table[3]["parameters"] == table[4]["parameters"]
    assert table[3]["nll"] != table[4]["nll"]


def test_it_says_how_to_load_the_student(finished):
    command = f'timm.create_model("local-dir:{finished.folder / "run/student"}", pretrained=True)'
    assert command in finished.said


def test_the_card_has_the_table(finished):
    card = (finished.folder / "run/student/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "timm"
    assert all(f"| {row['name']} |" in card for row in rows(finished.folder / "run"))
    assert "timm.create_model" in card


def test_the_metrics_name_every_term(finished):
    first, *_, last = lines(finished.folder / "run/metrics.jsonl")
    places = ("0", "1", "logits")
    terms = [f"{term}/{p}" for term in ("similarity", "adversary", "discriminator_accuracy") for p in places]
    assert first.keys() - {"skipped_steps"} == {"step", "lr", "total", *terms}
    assert last.keys() == {"step", "validation/top1", "validation/nll"}
    shares = [line for line in lines(finished.folder / "run/metrics.jsonl") if any("share" in key for key in line)]
    weighed = [f"gradient_share/{term}/{p}" for term in ("similarity", "adversary") for p in places]
    assert shares
    assert all(line.keys() == {"step", *weighed} for line in shares)
    assert last["step"] == 4


def test_the_resolved_recipe_reads_back_equal(finished):
    resolved = load_recipe(finished.folder / "run/recipe.yaml")
    assert resolved == load_recipe(finished.path)
    assert recipe_key(resolved) == recipe_key(load_recipe(finished.path))


def test_teachers_are_bit_for_bit_what_they_were(finished):
    assert len(finished.teachers) == 2
    assert [digest(teacher) for teacher, _ in finished.teachers] == [before for _, before in finished.teachers]


def test_every_trainable_parameter_moved(finished):
    assert finished.trained.keys() == {"teacher test_resnet", "teacher test_vit", "student alone", "student"}
    for title, objective in finished.trained.items():
        before = finished.initial[title]
        assert [n for n, p in objective.named_parameters() if torch.equal(p, before[n])] == [], title
    assert {n.split(".")[0] for n, _ in finished.trained["student"].named_parameters()} == {"student", "discriminators"}


def test_student_and_student_alone_start_from_the_same_weights(finished):
    student, alone = (
        {name: tensor for name, tensor in finished.initial[title].items() if name.startswith("student.")}
        for title in ("student", "student alone")
    )
    assert student.keys() == alone.keys()
    assert all(torch.equal(student[name], alone[name]) for name in student)


# Again, otherwise, elsewhere


def test_the_same_command_again_trains_nothing_and_says_so(finished):
    def state() -> dict[str, tuple[int, bytes]]:
        return {
            name: ((finished.folder / name).stat().st_mtime_ns, data)
            for name, data in contents(finished.folder).items()
        }

    before = state()
    said = run(finished.path)
    assert f"{finished.folder / 'run'} holds this run, finished; nothing is trained again." in said
    assert "step" not in said
    assert "student alone" in said  # the table is shown again
    assert state() == before


def test_how_often_to_look_is_not_another_recipe(finished):
    assert "nothing is trained again" in run(finished.path, "loop.log_every=3", "data.workers=1")


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["loop.lr=1e-3", "seed=1"], ["loop.lr", "seed"]),
        (["teachers=[{train: test_vit}]"], ["teachers"]),
        (["alignment.length=64"], ["alignment.length"]),
    ],
)
def test_another_recipe_in_the_same_run_folder_is_refused(finished, capsys, overrides, changed):
    before = contents(finished.folder)
    told = refused(capsys, finished.path, *overrides)
    assert f"run: {finished.folder / 'run'} holds the run of another recipe" in told
    assert all(key in told for key in changed)
    assert "run=FOLDER" in told
    assert contents(finished.folder) == before


def test_only_the_teachers_changed(finished, tmp_path):
    """The new teacher is trained, what is in the zoo is used again, and the student is another."""
    shutil.copytree(finished.folder / "zoo", tmp_path / "zoo")
    places = (f"run={tmp_path / 'run'}", f"zoo.folder={tmp_path / 'zoo'}")
    said = run(finished.path, "teachers=[train: test_vit, train: test_mambaout]", *places)
    assert "teacher test_vit: already trained, loaded from" in said
    assert "student alone: already trained, loaded from" in said
    assert "teacher test_mambaout  step" in said
    names = [row["name"] for row in rows(tmp_path / "run")]
    assert names == ["test_vit", "test_mambaout", "true ensemble", "student alone", "student"]
    new, old = rows(tmp_path / "run"), rows(finished.folder / "run")
    assert new[0] == old[1]
    assert new[3] == old[3]
    assert new[4]["nll"] != old[4]["nll"]


VARIANTS: dict[str, list[str]] = {
    "average": [
        "zoo.sampling=average",
        "alignment={blocks: 3, method: flatten, length: 20}",
        "losses={similarity: kl, temperature: 2, block_similarity: l1, blocks: [0, 0.5, 1]}",
        "discriminators={adversary: non_saturating, on: blocks}",
    ],
    "labels": [
        "data.labelled=9",
        "alignment={method: attention, length: 16}",
        "losses={similarity: l2, labels: 0.5, block_similarity: ce, blocks: 0.3}",
        "discriminators={adversary: cooperative, on: logits}",
        "loop.ema=0.5",
        "loop.batch_size=4",
    ],
    "bare": [
        "alignment={blocks: 0}",
        "losses={similarity: l1}",
        "discriminators={adversary: none}",
        "data.validation=0",
        "loop.accumulation=2",
        "loop.batch_size=4",
        "loop.optimizer=sgd",
        "teachers.0.loop.accumulation=1",
    ],
    "methods": ["alignment={method: channel_mean, blocks: 1, length: 17}", "losses.block_similarity=kl"],
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_word_of_the_recipe_runs(finished, tmp_path, changes):
    common = [f"run={tmp_path / 'run'}", f"zoo.folder={tmp_path / 'zoo'}", "loop.steps=2", "teachers.0.size=48"]
    run(finished.path, *common, *changes)
    unwritten = {"combination.json"} if "data.validation=0" in changes else set()  # it is measured on that split
    assert tree(tmp_path / "run") == RUN_FILES - unwritten
    for line in lines(tmp_path / "run/metrics.jsonl"):
        assert all(isinstance(value, (int, float)) and abs(value) < 1e6 for value in line.values())


# Interruption


class Interrupted(Exception):
    pass


def test_interrupted_twice_and_resumed_equals_uninterrupted(finished, tmp_path, monkeypatch):
    """Once while a teacher learns, once while the student does; every file is then the same, bit for bit."""
    save = TrainingState.save
    places = (f"run={tmp_path / 'run'}", f"zoo.folder={tmp_path / 'zoo'}")
    command = [finished.path, *places, "loop.checkpoint_steps=2"]
    for title in ("teacher test_vit", "student"):

        def stop(self: TrainingState, teachers: dict[str, str], title: str = title) -> None:
            save(self, teachers)
            if self.job.title == title and self.step == 2:
                raise Interrupted

        with monkeypatch.context() as patch:
            patch.setattr(TrainingState, "save", stop)
            with pytest.raises(Interrupted):
                train.main(command)
        assert not (tmp_path / "run/table.json").exists()
    (file,) = (tmp_path / "run/checkpoints").iterdir()
    assert tree(tmp_path / "run") == {
        "recipe.yaml",
        "plan.txt",
        "combination.json",
        "data.parquet",
        "metrics.jsonl",
        f"checkpoints/{file.name}",
    }
    state = torch.load(file, weights_only=True)
    assert {name.split(".")[0] for name in state["objective"]} == {"student", "discriminators"}  # no teacher
    said = run(*command)
    assert "teacher test_vit: already trained, loaded from" in said
    assert tree(tmp_path / "run") == RUN_FILES
    assert rows(tmp_path / "run") == rows(finished.folder / "run")
    assert lines(tmp_path / "run/metrics.jsonl") == lines(finished.folder / "run/metrics.jsonl")
    weights = {name for name in tree(tmp_path) if name.endswith(".safetensors")}
    assert len(weights) == 5  # four networks, and the predictions
    for name in weights:
        assert (tmp_path / name).read_bytes() == (finished.folder / name).read_bytes(), name


# Real processes


STRANGER = """
import io, sys
import pyarrow.parquet, timm, torch
from PIL import Image

torch.set_num_threads(1)
sys.modules["meco_timm"] = None  # installed or not, any import of it now fails
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
table = pyarrow.parquet.read_table(sys.argv[2]).to_pydict()
images = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in table["image"]]
with torch.no_grad():
    logits = model(torch.stack([transform(image) for image in images]))
label = torch.tensor(table["label"])
print(100 * (logits.argmax(1) == label).double().mean().item())
print(torch.nn.functional.cross_entropy(logits.double(), label).item())
"""


def test_plain_timm_gets_the_numbers_of_the_table(ended, tmp_path):
    """The student in a process without this package: top-1 on the test split exactly."""
    student = rows(ended)[-1]
    command = [sys.executable, "-I", "-c", STRANGER, str(ended / "student"), str(ended.parent / "shapes/test.parquet")]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    top1, nll = map(float, done.stdout.split())
    assert top1 == student["top1"]
    assert top1 > 50  # it has learned something, so agreement says something
    assert nll == pytest.approx(student["nll"], rel=1e-5)
