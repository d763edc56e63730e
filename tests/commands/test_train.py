"""The whole, end to end and tiny: files, table, student, running again, interruption, and every bad input."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
import torch
import yaml
from conftest import CLASSES, ROOT, base_recipe, contents, draw_image, fill, image_folder, refused, tree, write
from torch import Tensor, nn

import train
from meco_timm import load_recipe, pipeline
from meco_timm.evaluation import table
from meco_timm.recipe.reading import recipe_key
from meco_timm.training import loop

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
        initial[self.job.title] = {name: tensor.clone() for name, tensor in self.objective.state_dict().items()}
        trained[self.job.title] = self.objective
        return start(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "assemble_zoo", assembled)
        patch.setattr(loop.Training, "run", started)
        said = run(path)
    return Finished(folder, path, said, teachers, initial, trained)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the half second per row that measuring speed takes; the finished run has measured it."""
    monkeypatch.setattr(table, "images_per_second", lambda *arguments: 1.0)


def rows(folder: Path) -> list[dict[str, Any]]:
    """table.json without the measured speed."""
    table = json.loads((folder / "table.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key != "images_per_s"} for row in table]


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


def test_only_the_teachers_changed(finished, tmp_path, unmeasured):
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


def test_without_a_run_folder_each_recipe_has_its_own(recipe, finished, tmp_path, monkeypatch, unmeasured):
    del recipe["run"]
    recipe |= {"zoo": {"folder": str(finished.folder / "zoo")}, "teachers": recipe["teachers"][:1]}
    path = write(recipe, tmp_path, "mine.yaml")
    monkeypatch.chdir(tmp_path)
    run(path)
    run(path, "losses.temperature=2.5")
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all(folder.name.startswith("mine-") and tree(folder) == RUN_FILES for folder in folders)


VARIANTS: dict[str, list[str]] = {
    "average": [
        "zoo.sampling=average",
        "alignment={blocks: 3, method: flatten, length: 20, projection: true}",
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
def test_every_word_of_the_recipe_runs(finished, tmp_path, unmeasured, changes):
    common = [f"run={tmp_path / 'run'}", f"zoo.folder={tmp_path / 'zoo'}", "loop.steps=2", "teachers.0.size=48"]
    run(finished.path, *common, *changes)
    unwritten = {"combination.json"} if "data.validation=0" in changes else set()  # it is measured on that split
    assert tree(tmp_path / "run") == RUN_FILES - unwritten
    for line in lines(tmp_path / "run/metrics.jsonl"):
        assert all(isinstance(value, (int, float)) and abs(value) < 1e6 for value in line.values())


# Interruption


class Interrupted(Exception):
    pass


def test_interrupted_twice_and_resumed_equals_uninterrupted(finished, tmp_path, monkeypatch, unmeasured):
    """Once while a teacher learns, once while the student does; every file is then the same, bit for bit."""
    checkpoint = loop.Training._checkpoint
    places = (f"run={tmp_path / 'run'}", f"zoo.folder={tmp_path / 'zoo'}")
    command = [finished.path, *places, "loop.checkpoint_steps=2"]
    for title in ("teacher test_vit", "student"):

        def stop(self: loop.Training, title: str = title) -> None:
            checkpoint(self)
            if self.job.title == title and self.step == 2:
                raise Interrupted

        with monkeypatch.context() as patch:
            patch.setattr(loop.Training, "_checkpoint", stop)
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


# The plan


def test_the_plan_is_told_and_nothing_is_written(recipe, tmp_path, capsys):
    path = write(recipe, tmp_path)
    assert train.main([path, "--plan"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("student", "test_resnet", "test_vit", "3 classes", "27 training images"))
    assert tree(tmp_path) == {"recipe.yaml"}


# Real processes


def test_a_missing_recipe_is_told_at_once(tmp_path):
    (tmp_path / "quickstart.yaml").touch()
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "train.py"), str(tmp_path / "quikstart.yaml")]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{tmp_path / 'quikstart.yaml'}: there is no such recipe. Did you mean '{tmp_path / 'quickstart.yaml'}'?\n"
    )
    assert time.monotonic() - started < 5  # in well under one on an idle machine; torch alone takes longer than five


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
    logits = torch.cat([model(torch.stack([transform(i) for i in images[at:at + 100]])) for at in range(0, 599, 100)])
label = torch.tensor(table["label"])
print(100 * (logits.argmax(1) == label).double().mean().item())
print(torch.nn.functional.cross_entropy(logits.double(), label).item())
"""


def test_a_stranger_to_this_package_gets_the_tables_numbers(tmp_path, unmeasured):
    """The student of a run on the real digits, in a process that knows only timm: top-1 on the test split exactly."""
    digits = ROOT / "recipes/data/digits"
    recipe = base_recipe(digits, tmp_path)
    recipe |= {"student": "test_mambaout", "teachers": [{"train": "test_resnet", "loop": {"steps": 1}}]}
    recipe |= {"losses": {"labels": 10.0, "blocks": 0.3}, "data": recipe["data"] | {"validation": 0.05}}
    recipe["loop"] |= {"steps": 12, "lr": 5e-3, "batch_size": 16}
    run(write(recipe, tmp_path))
    student = rows(tmp_path / "run")[-1]
    command = [sys.executable, "-I", "-c", STRANGER, str(tmp_path / "run/student"), str(digits / "test.parquet")]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    top1, nll = map(float, done.stdout.split())
    assert top1 == student["top1"]
    assert top1 > 12  # it has learned something, so agreement says something
    assert nll == pytest.approx(student["nll"], rel=1e-5)


# Bad input: code 2, one screen of plain words, nothing written


def wrong_text(text: str | None) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        path = folder / "recipe.yaml"
        if text is not None:
            path.write_text(text)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "recipe.yaml: there is no such recipe."),
        ("", "recipe.yaml: the recipe is empty. Start from one that `meco-timm recipes` lists."),
        ("# only a comment\n", "recipe.yaml: the recipe is empty."),
        ("---\n", "recipe.yaml: the recipe is empty."),
    ],
    ids=["missing", "empty", "comment", "document"],
)
def test_a_recipe_that_is_not_there(tmp_path, capsys, text, told):
    assert told in refused(capsys, wrong_text(text)(tmp_path))


IN_THE_RECIPE: dict[str, tuple[str, str, list[str]]] = {
    # what: (key, value, what must be told)
    "unknown key": ("loop.batchsize", "8", ["loop.batchsize: there is no such key. Did you mean 'batch_size'?"]),
    "unknown section": ("lop.lr", "8", ["lop: there is no such key. Did you mean 'loop'?"]),
    "no teachers": ("teachers", "[]", ["teachers: the list of teachers is empty. Name at least one timm model"]),
    "null teachers": ("teachers", "null", ["teachers: input should be a valid list"]),
    "unknown similarity": (
        "losses.similarity",
        "kll",
        ["'kll' is not a value of this key: l1, l2, kl, ce, dist.", "'kl'"],
    ),
    "unknown block similarity": ("losses.block_similarity", "cosine", ["'cosine' is not a value of this key"]),
    "unknown adversary": (
        "discriminators.adversary",
        "minmax",
        ["'minmax' is not a value of this key: minimax, non_saturating, cooperative, none. Did you mean 'minimax'?"],
    ),
    "unknown sampling": ("zoo.sampling", "all", ["'all' is not a value of this key: random, average."]),
    "zero batch": ("loop.batch_size", "0", ["loop.batch_size: input should be greater than 0, but it is 0"]),
    "negative batch": ("loop.batch_size", "-8", ["loop.batch_size: input should be greater than 0, but it is -8"]),
    "zero epochs": ("loop.epochs", "0", ["loop.epochs: input should be greater than 0, but it is 0"]),
    "negative epochs": ("loop.epochs", "-1", ["loop.epochs: input should be greater than 0, but it is -1"]),
    "zero steps": ("loop.steps", "0", ["loop.steps: input should be greater than 0"]),
    "batch of a teacher": ("zoo.loop.batch_size", "0", ["zoo.loop.batch_size: input should be greater than 0"]),
    "weights of the wrong length": ("losses.blocks", "[1, 1, 1]", ["losses.blocks has 3 weights", "blocks is 2"]),
    "scale from large to small": (
        "data.augmentation.scale",
        "[1.0, 0.1]",
        ["data.augmentation: scale is written [smallest, largest], but 1.0 is larger than 0.1"],
    ),
    "negative weight": ("losses.blocks", "[1, -1]", ["losses.blocks.1: input should be greater than or equal to 0"]),
}


@pytest.mark.parametrize(("key", "value", "told"), IN_THE_RECIPE.values(), ids=IN_THE_RECIPE.keys())
@pytest.mark.parametrize("by", ["file", "command line"])
def test_a_wrong_recipe(recipe, tmp_path, capsys, key, value, told, by):
    if by == "command line":
        said = refused(capsys, write(recipe, tmp_path), f"{key}={value}")
        assert said.startswith("command line: ")
    else:
        section: Any = recipe
        *sections, last = key.split(".")
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = yaml.safe_load(value)
        path = write(recipe, tmp_path)
        said = refused(capsys, path)
        text = Path(path).read_text().splitlines()
        line = int(said.removeprefix(f"{path}:").split(":")[0])
        assert any(word in text[line - 1] for word in (last, sections[-1] if sections else last, "-"))
    assert all(words in said for words in told), said
    assert tree(tmp_path) == {"recipe.yaml"}


NETWORKS: dict[str, tuple[list[str], list[str]]] = {
    "unknown student": (["student=test_resnett"], ["student: timm has no model 'test_resnett'", "'test_resnet'"]),
    "unknown teacher": (
        ["teachers.1={train: resnt18}"],
        ["teachers.1: timm has no model 'resnt18'. Did you mean 'resnet18'"],
    ),
    "unknown tag": (
        ["teachers.0=resnet18.a1_in1"],
        ["teachers.0: timm has no weights 'resnet18.a1_in1'. Did you mean 'a1_in1k'"],
    ),
    "other classes": (
        ["teachers.0=test_resnet.r160_in1k"],
        ["teachers.0: the teacher has 1000 classes", "the data set 3", "train:"],
    ),
    "no such folder": (
        ["teachers.0='local-dir:nowhere'"],
        ["teachers.0: local-dir:nowhere (relative to ", "is not a folder"],
    ),
    "too many blocks": (["alignment.blocks=6"], ["alignment.blocks: ", "has 5 blocks to compare, not 6"]),
    "more blocks than a teacher has": (
        ["alignment.blocks=20", "student=vit_tiny_patch16_224"],
        ["alignment.blocks: ", "blocks to compare, not 20"],
    ),
    "image size": (
        ["student=test_vit", "data.image_size=8"],
        ["data.image_size: test_vit cannot take images of 8 × 8"],
    ),
    "size of a teacher": (["teachers.1.size=8"], ["teachers.1.size: test_vit cannot take images of 8 × 8"]),
    "unknown argument": (["student.args={drop: 1}"], ["student: test_efficientnet cannot be made with"]),
}


@pytest.mark.parametrize(("overrides", "told"), NETWORKS.values(), ids=NETWORKS.keys())
def test_networks_that_cannot_be(recipe, tmp_path, capsys, overrides, told):
    said = refused(capsys, write(recipe, tmp_path), *overrides)
    assert all(words in said for words in told), said
    assert tree(tmp_path) == {"recipe.yaml"}


def test_a_checkpoint_with_other_classes_as_a_teacher(finished, tmp_path, capsys):
    """A student of three classes offered as a teacher of ten."""
    recipe = base_recipe(ROOT / "recipes/data/digits", tmp_path)
    recipe["teachers"] = [{"train": "test_vit"}, f"local-dir:{finished.folder / 'run/student'}"]
    said = refused(capsys, write(recipe, tmp_path))
    assert "teachers.1: the teacher has 3 classes (circle, cross, dash), the data set 10 (0, 1, 2 and 7 more)" in said
    assert tree(tmp_path) == {"recipe.yaml"}


def one_class(folder: Path) -> list[str]:
    fill(folder, {"circle": 8})
    return ["holds 1 class folder(s) (circle); at least 2 are needed"]


def no_class(folder: Path) -> list[str]:
    folder.mkdir()
    draw_image(0, 0).save(folder / "lonely.png")
    return ["holds 1 image(s) and 0 class folder(s)"]


def empty_class(folder: Path) -> list[str]:
    fill(folder, {"circle": 8, "cross": 8, "dash": 0})
    return [f"the class folder {folder / 'dash'} is empty"]


def empty_class_in_one_split(folder: Path) -> list[str]:
    image_folder(folder)
    for file in (folder / "train/dash").iterdir():
        file.unlink()
    return [f"the class folder {folder / 'train/dash'} is empty"]


def parquet(folder: Path, labels: list[int], kind: Any) -> None:
    folder.mkdir(exist_ok=True)
    images = [{"bytes": (p := io.BytesIO(), draw_image(i % 3, i).save(p, "PNG"))[0].getvalue(), "path": None}
              for i in range(len(labels))]  # fmt: skip
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    if kind is not None:  # as a faulty file has it: the names say three classes, a label is beyond them
        meta = {"info": {"features": datasets.Features(image=datasets.Image(), label=kind).to_dict()}}
        import pyarrow.parquet

        arrow = table.data.table.replace_schema_metadata({"huggingface": json.dumps(meta)})
        pyarrow.parquet.write_table(arrow, folder / "train.parquet")
    else:
        table.to_parquet(folder / "train.parquet")


def negative_label(folder: Path) -> list[str]:
    parquet(folder, [0, 1, 2] * 5 + [-3], None)
    return ["labels out of range: row 15 of the train split has label -3", "3 classes (0 to 2)"]


def label_beyond_the_names(folder: Path) -> list[str]:
    parquet(folder, [0, 1, 2] * 5 + [7], datasets.ClassLabel(names=list(CLASSES)))
    return ["labels out of range: row 15 of the train split has label 7", "3 classes (0 to 2)"]


def gap_in_the_labels(folder: Path) -> list[str]:
    parquet(folder, [0, 1, 3] * 5, None)
    return ["empty class(es): 2"]


def too_few_images(folder: Path) -> list[str]:
    image_folder(folder, train_images=2)
    return ["loop.batch_size: 8", "more than the 4 training images", "Write at most 4"]


def not_there(folder: Path) -> list[str]:
    folder.with_name("dota").mkdir()
    return [f"there is no folder {folder}. Did you mean '{folder.with_name('dota')}'"]


DATA = [one_class, no_class, empty_class, empty_class_in_one_split, negative_label, label_beyond_the_names,
        gap_in_the_labels, too_few_images, not_there]  # fmt: skip


@pytest.mark.parametrize("make", DATA, ids=lambda make: make.__name__)
def test_data_that_cannot_be_used(tmp_path, capsys, make):
    told = make(tmp_path / "data")
    path = write(base_recipe(tmp_path / "data", tmp_path), tmp_path)
    before = contents(tmp_path)
    said = refused(capsys, path)
    assert "data.source: " in said or "loop.batch_size: " in said
    assert all(words in said for words in told), said
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("split", "workers"), [("train", 0), ("train", 1), ("test", 0)])
def test_a_truncated_image_is_named(tmp_path, capsys, split, workers):
    image_folder(tmp_path / "data")
    broken = tmp_path / "data" / split / "cross/001.png"
    broken.write_bytes(broken.read_bytes()[:100])
    recipe = base_recipe(tmp_path / "data", tmp_path)
    recipe["data"] |= {"workers": workers, "validation": 0.0}
    recipe |= {"teachers": [{"train": "test_resnet"}], "loop": {"steps": 2, "batch_size": 8}}
    path = write(recipe, tmp_path)
    said = refused(capsys, path)
    assert "data.source: 1 image(s) cannot be read; nothing was trained" in said
    assert f"{broken}: " in said
    assert not (tmp_path / "run").exists()
    assert f"data.source: {broken}: the image cannot be read" in refused(capsys, path, "data.verify=none")


def test_more_labels_asked_for_than_there_are(recipe, tmp_path, capsys):
    path = write(recipe, tmp_path)
    assert "data.labelled: 100 must lie between 3" in refused(capsys, path, "data.labelled=100")
    assert "data.labelled: 2 must lie between 3" in refused(capsys, path, "data.labelled=2")
    assert tree(tmp_path) == {"recipe.yaml"}


@pytest.mark.parametrize(("key", "told"), [("train_split", "'nope' is not a split"), ("image_column", "no column")])
def test_names_that_the_data_do_not_have(recipe, tmp_path, capsys, key, told):
    said = refused(capsys, write(recipe, tmp_path), f"data.{key}=nope")
    assert f"data.{key}: " in said
    assert told in said


def test_an_unknown_policy_of_augmentation(recipe, tmp_path, capsys):
    said = refused(capsys, write(recipe, tmp_path), "data.augmentation.auto_augment=trivial", "--plan")
    assert said.startswith("data.augmentation.auto_augment: timm has no policy 'trivial'")


def test_a_folder_that_is_not_a_run_is_left_alone(recipe, tmp_path, capsys):
    fill(tmp_path / "run", {"photos": 1})
    before = contents(tmp_path / "run")
    said = refused(capsys, write(recipe, tmp_path))
    assert f"run: {tmp_path / 'run'} is not empty and not a run folder. Choose another with run=FOLDER." in said
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("place", ["file", "file/run", "file/deep/run"])
def test_an_unwritable_run_folder(recipe, tmp_path, capsys, place):
    """Below a regular file nobody can write, whoever runs this."""
    (tmp_path / "file").write_text("mine")
    said = refused(capsys, write(recipe, tmp_path), f"run={tmp_path / place}")
    assert f"run: the folder {tmp_path / place} cannot be" in said
    assert (tmp_path / "file").read_text() == "mine"
    assert tree(tmp_path) == {"file", "recipe.yaml"}


def test_an_unwritable_zoo_folder(recipe, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    said = refused(capsys, write(recipe, tmp_path), f"zoo.folder={tmp_path / 'file/zoo'}")
    assert f"zoo.folder: {tmp_path / 'file/zoo'} cannot be written" in said
    assert (tmp_path / "file").read_text() == "mine"
