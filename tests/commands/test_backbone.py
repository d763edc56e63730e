"""A backbone: trained without labels from teachers with and without heads, resumed exactly, and loaded with timm."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import timm
import torch
from conftest import backbone_recipe, draw_image, refused, write
from helpers.checkpoints import network, random_images
from helpers.launch import finished, launch
from safetensors.torch import load_file

import train
from meco_timm import distill, fill_store, pipeline
from meco_timm.common import UserError
from meco_timm.networks import student_stream, wrap_student, wrap_teacher
from meco_timm.recipe import Alignment, Network, Teacher
from meco_timm.runs import stages

FAMILIES = ("test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_mambaout", "mobilenetv4_conv_small")

CONFIG = {"input_size": (3, 64, 64)}


@pytest.fixture
def backbone(shapes: Path, tmp_path: Path) -> dict[str, Any]:
    return backbone_recipe(shapes, tmp_path, steps=6)


def weights(recipe: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(Path(recipe["run"], "student", "model.safetensors"))


def lines(recipe: dict[str, Any]) -> list[dict[str, float]]:
    text = Path(recipe["run"], "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if "total" in line]


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []


def test_a_run_ends_in_a_timm_checkpoint_without_a_head(backbone, tmp_path, capsys):
    assert train.main([write(backbone, tmp_path)]) == 0
    assert "num_classes=0" in capsys.readouterr().out
    terms = {name for name in lines(backbone)[-1] if "/" in name}
    assert terms == {"similarity/embedding", "similarity/0", "similarity/1"}
    place = f"local-dir:{backbone['run']}/student"
    model = timm.create_model(place, pretrained=True, num_classes=0).eval()
    stream = student_stream(Network(model=place), Alignment(blocks=0, embedding="linear"), 0, 32).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(stream.prepare(random_images(32))), stream(random_images(32)).embedding)
        assert (
            len(timm.create_model(place, pretrained=True, features_only=True)(stream.prepare(random_images(32)))) == 5
        )
    assert train.main([write(backbone, tmp_path)]) == 0  # finished: shown again


def test_it_learns(backbone):
    backbone["loop"] |= {"steps": 60, "lr": 1e-2}
    distill(backbone)
    losses = [line["similarity/embedding"] for line in lines(backbone)]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def parquet(folder: Path, labels: list[int]) -> Path:
    """48 images for training and 12 for the test, with these labels."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b", "c"]))
    for split, count in (("train", 48), ("test", 12)):
        rows = {"image": [draw_image(i % 3, i) for i in range(count)], "label": labels[:count]}
        folder.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features).to_parquet(str(folder / f"{split}.parquet"))
    return folder


@pytest.mark.parametrize("sampling", ["random", "average"])
def test_labels_change_nothing(backbone, tmp_path, sampling):
    labels = [i % 3 for i in range(48)]
    for name, its in (("true", labels), ("shuffled", [2 - label for label in labels])):
        data = backbone["data"] | {"source": str(parquet(tmp_path / name, its)), "validation": 0.25}
        distill(backbone | {"run": str(tmp_path / f"of {name}"), "data": data, "zoo": {"sampling": sampling}})
    found, wanted = (weights({"run": str(tmp_path / f"of {name}")}) for name in ("shuffled", "true"))
    assert_equal(found, wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": [{"model": "resnet18.a1_in1k", "gives": "logits"}]}, "teachers.0: gives: logits is for"),
        ({"teachers": [{"train": "test_vit"}]}, "teachers.0: train is for classifiers"),
        ({"losses": {"logits": 1.0}}, "losses.logits is for classifiers: a backbone has no head"),
        ({"losses": {"labels": 0.5}}, "losses.labels is for classifiers"),
        ({"publish": {"repo": "a/b", "space": "a/b"}}, "publish.space is for classifiers"),
        ({"losses": {"blocks": 0.0, "embedding": 0.0}}, "both have weight 0, so the backbone learns nothing"),
        ({"student": {"model": "test_vit", "args": {"num_classes": 5}}}, "student: args: num_classes is not free"),
        ({"loop": {"steps": 2, "batch_size": 100}}, "loop.batch_size: 100 × 1 process(es) is more than the 36"),
        ({"alignment": {"embedding": "none"}}, "alignment.embedding is none, but losses.embedding has a weight"),
        ({"discriminators": {"adversary": "minimax", "on": "all"}}, "discriminators.on: all is for classifiers"),
    ],
)
def test_what_a_backbone_cannot_have_is_one_clear_line(backbone, tmp_path, capsys, changes, message):
    said = refused(capsys, write(backbone | changes, tmp_path))
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_labelled_images_and_modules_with_a_head_are_refused(backbone, tmp_path, capsys):
    backbone["data"]["labelled"] = 6
    assert "data.labelled is for classifiers" in refused(capsys, write(backbone, tmp_path))
    del backbone["data"]["labelled"]
    with pytest.raises(UserError, match="student: the network has a head of 5 classes, a backbone none"):
        distill(backbone, student=network("test_vit", 5, img_size=32))


# As classifiers


class Killed(Exception):
    pass


def killed_at(step: int) -> Any:
    def on_step(number: int, losses: dict[str, float]) -> None:
        if number == step:
            raise Killed

    return on_step


@pytest.mark.parametrize("views", [None, 1], ids=["live", "stored"])
def test_a_killed_run_ends_with_the_weights_of_a_whole_one(backbone, tmp_path, views):
    """Killed before its first checkpoint and after its second."""
    backbone["loop"] |= {"checkpoint_steps": 2}
    whole, killed = (backbone | {"run": str(tmp_path / name)} for name in ("whole", "killed"))
    if views:
        for name, recipe in (("of whole", whole), ("of killed", killed)):
            recipe["store"] = {"folder": str(tmp_path / name), "views": views}
    distill(whole)
    for step in (1, 5):
        with pytest.raises(Killed):
            distill(killed, on_step=killed_at(step))
    distill(killed)
    assert_equal(weights(killed), weights(whole))


@pytest.mark.parametrize("sampling", ["random", "average"])
def test_losses_from_a_store_are_those_of_live_teachers(backbone, tmp_path, sampling):
    """Once while it is filled, and once from the full store, for which no teacher runs."""
    backbone |= {"zoo": backbone["zoo"] | {"sampling": sampling}}
    stored = backbone | {"store": {"folder": str(tmp_path / "store"), "views": 1, "precision": "float32"}}
    distill(backbone | {"store": {"views": 1}})
    live = lines(backbone)
    for name in ("filled", "full"):
        distill(stored | {"run": str(tmp_path / name)})
        found = lines({"run": str(tmp_path / name)})
        if name == "filled":
            fill_store(stored)
        for mine, its in zip(found, live, strict=True):
            for key in ("total", "similarity/embedding", "similarity/0", "similarity/1"):
                assert mine[key] == pytest.approx(its[key], rel=1e-4), (name, key)


def test_python_networks_teach_and_learn(backbone, tmp_path):
    """A headless student, of which a copy is trained, and teachers with and without a head; two runs are equal."""
    del backbone["teachers"], backbone["student"]
    student, before = network("test_vit", 0, img_size=32), network("test_vit", 0, img_size=32)
    teachers: Any = [network("test_resnet", 0, 1), {"model": network("test_efficientnet", 5, 2), "size": 48}]
    for name in ("one", "two"):
        distill(backbone | {"run": str(tmp_path / name)}, student=student, teachers=teachers)
    assert_equal(weights({"run": str(tmp_path / "one")}), weights({"run": str(tmp_path / "two")}))
    assert_equal(student.state_dict(), before.state_dict())
    assert not torch.equal(weights({"run": str(tmp_path / "one")})["norm.weight"], before.state_dict()["norm.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {"zoo": {"sampling": "average"}, "alignment": {"blocks": 2, "teachers": "all", "embedding": "mlp"}},
        {"zoo": {"resident": 1}, "alignment": {"blocks": 2, "method": "grid", "standardise": "isotropic"}},
        {"discriminators": {"adversary": "minimax"}, "zoo": {"precision": "bf16"}},
        {"losses": {"blocks": 0.0}, "loop": {"steps": 2, "batch_size": 8, "mixup": 0.2, "ema": 0.9, "accumulation": 2}},
    ],
    ids=["all teachers", "offloaded vectors", "adversary, bf16", "embedding only, mixup, ema"],
)
def test_other_forms_run(backbone, changes):
    zoo = backbone["zoo"] | changes.pop("zoo", {})
    recipe = backbone | {"zoo": zoo} | changes
    distill(recipe)
    assert all(value is not None for line in lines(recipe) for value in line.values())


def test_two_processes_end_with_the_weights_of_one(backbone, tmp_path):
    """With all their images in one batch; a student with layer norm."""
    backbone |= {"student": {"model": "test_vit2", "args": {"img_size": 32}}}
    one, two = (backbone | {"run": str(tmp_path / name)} for name in ("one", "two"))
    two["loop"] = two["loop"] | {"batch_size": 4}
    distill(one)
    finished(launch(write(two, tmp_path), processes=2))
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_a_classifier_starts_from_it(backbone, tmp_path):
    """As the student of a classification recipe, and as a teacher that is trained first: with a new head of its own."""
    distill(backbone)
    place = f"local-dir:{backbone['run']}/student"
    classifier = {
        "run": str(tmp_path / "second run"),
        "data": backbone["data"] | {"validation": 0.25},
        "teachers": [{"train": place}],
        "student": place,
        "zoo": backbone["zoo"] | {"loop": {"steps": 1, "lr": 1e-9}},
        "losses": {"blocks": 0.0},
        "loop": {"steps": 1, "batch_size": 8, "lr": 1e-9, "warmup": 0.0},
    }
    rows = distill(classifier)
    assert {row.name for row in rows} >= {"student", "student alone", "true ensemble"}
    start, end = weights(backbone), weights(classifier)
    assert end.keys() - start.keys() == {"classifier.weight", "classifier.bias"}
    for name in (name for name in start if name.endswith("weight")):
        torch.testing.assert_close(end[name], start[name], rtol=1e-4, atol=1e-6)


def test_it_is_rehearsed_and_planned(backbone, tmp_path, capsys):
    path = write(backbone, tmp_path)
    assert train.main([path, "--limit-steps", "1"]) == 0
    assert not Path(backbone["run"]).exists()
    assert train.main([path, "--plan"]) == 0
    said = capsys.readouterr().out
    assert "no label is used" in said
    assert "student alone" not in said


# Embeddings


@pytest.mark.parametrize("name", FAMILIES)
def test_an_embedding_is_that_of_timm_without_a_head(name):
    """Of the same weights, beside blocks and logits, and alone."""
    classifier = network(name, 7)
    plain = timm.create_model(name, num_classes=0).eval()
    plain.load_state_dict(classifier.state_dict(), strict=False)
    both = wrap_student(classifier, Alignment(blocks=2, embedding="linear"), CONFIG).eval()
    alone = wrap_teacher(plain, Teacher(model=name), Alignment(blocks=0, embedding="linear"), [], config=CONFIG)
    with torch.no_grad():
        wanted = plain(both.prepare(random_images(64)))
        for found in (both(random_images(64)).embedding, alone(random_images(64)).embedding):
            torch.testing.assert_close(found, wanted)
        logits = classifier(both.prepare(random_images(64)))
        torch.testing.assert_close(both(random_images(64)).logits, logits)
    assert both.embedding_size == alone.embedding_size == wanted.shape[1]


def rows_of(recipe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(Path(recipe["run"], "table.json").read_text())["rows"]}


def test_the_table_measures_features_with_labels_and_without(backbone, tmp_path, capsys, monkeypatch):
    """With the source's labels, with those of another folder, and with none."""
    backbone["loop"] |= {"steps": 40, "lr": 1e-2}
    assert train.main([write(backbone, tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "The backbone's k-NN accuracy is" in said
    assert "k-NN %" in said
    rows = rows_of(backbone)
    teachers = [name for name in rows if not name.startswith("student")]
    assert list(rows) == [*teachers, "student before", "student"]
    assert all(0 <= row[key] <= 100 for row in rows.values() for key in ("knn", "probe"))
    assert sum(rows[name]["cka"] - rows[name]["cka_before"] for name in teachers) > 0
    assert all(0 < rows[name]["cosine"] <= 1 for name in teachers)
    short = backbone | {"loop": backbone["loop"] | {"steps": 1}}
    other = parquet(tmp_path / "other", [i % 3 for i in range(48)])
    distill(short | {"run": str(tmp_path / "a"), "evaluation": {"labelled": str(other)}})
    assert rows_of({"run": str(tmp_path / "a")})[teachers[0]]["knn"] is not None
    monkeypatch.setattr(stages, "labelled_images", lambda data: None)
    distill(short | {"run": str(tmp_path / "b")})
    without = rows_of({"run": str(tmp_path / "b")})
    assert without["student"]["knn"] is None
    assert without[teachers[0]]["cka"] is not None


@pytest.mark.parametrize("form", ["flat", "nested", "parquet"])
def test_images_without_labels(backbone, tmp_path, capsys, form):
    """A folder of plain image files, whatever lies deeper, and a table without a column of labels."""
    folder = tmp_path / "plain"
    (folder / "a/b").mkdir(parents=True)
    if form == "parquet":
        rows = {"image": [draw_image(i % 3, i) for i in range(40)]}
        features = datasets.Features(image=datasets.Image())
        datasets.Dataset.from_dict(rows, features).to_parquet(str(folder / "train.parquet"))
    for i in range(0 if form == "parquet" else 40):
        draw_image(i % 3, i).save(folder / ("a/b" if form == "nested" else "") / f"{i}.jpg")
    backbone["data"] |= {"source": str(folder)}
    assert train.main([write(backbone, tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Agreement of the backbone's embeddings with each teacher's (CKA)" in said
    assert "k-NN" not in said
    about = json.loads(Path(backbone["run"], "table.json").read_text())["about"]
    assert about["images"]["train"] == 32
    assert about["images"]["test"] == 8
    assert train.main([write(backbone, tmp_path)]) == 0  # finished: its images are the same
    without = {key: value for key, value in backbone.items() if key not in ("task", "alignment")}
    assert "label" in refused(capsys, write(without | {"teachers": ["test_vit"]}, tmp_path, "classifier.yaml"))


# From backbone to classifier


@pytest.fixture
def classifier(backbone: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a classifier whose student starts from the backbone."""
    loop = {"steps": 4, "lr": 1e-2, "log_every": 1}
    start = {"model": backbone["student"], "backbone": {"teachers": backbone["teachers"], "loop": loop}}
    return recipe | {"student": start, "teachers": recipe["teachers"][:1], "loop": recipe["loop"] | {"steps": 2}}


def backbones(recipe: dict[str, Any]) -> list[Path]:
    return sorted(Path(recipe["zoo"]["folder"]).glob("backbone-*"))


def test_a_classifiers_backbone_is_planned_and_rehearsed(classifier, tmp_path, capsys):
    path = write(classifier, tmp_path)
    assert train.main([path, "--plan"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "train the student's backbone for 4 steps, without labels" in said
    assert "from a few measured steps: backbone " in said
    assert train.main([path, "--limit-steps", "1"]) == 0
    assert not backbones(classifier)


def test_a_classifier_starts_from_its_backbone_which_runs_share(classifier, tmp_path, capsys):
    path = write(classifier, tmp_path)
    assert train.main([path]) == 0
    (folder,) = backbones(classifier)
    assert (folder / "table.json").is_file()
    assert len(lines({"run": str(folder)})) == 4
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    capsys.readouterr()
    assert train.main([path, f"run={tmp_path / 'other'}", "loop.lr=1e-4"]) == 0
    assert backbones(classifier) == [folder]
    assert "student.backbone: already trained, loaded from" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_a_run_killed_within_its_backbone_and_after_it_ends_as_a_whole_one(classifier, tmp_path, monkeypatch):
    classifier["student"]["backbone"]["loop"] |= {"checkpoint_steps": 2}
    whole, killed = (classifier | {"run": f"{tmp_path / n}", "zoo": {"folder": f"{tmp_path / n}-zoo"}} for n in "ab")
    run, made, starts = pipeline._run, pipeline.student_stream, []
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_run", lambda *args: run(*args[:4], killed_at(3)))
        with pytest.raises(Killed):
            distill(killed)
    (folder,) = backbones(killed)
    assert not (folder / "table.json").exists()
    with pytest.raises(Killed):
        distill(killed, on_step=killed_at(1))
    before = weights({"run": str(folder)})
    monkeypatch.setattr(
        pipeline, "student_stream", lambda network, *a, **k: starts.append(network.model) or made(network, *a, **k)
    )
    distill(killed)
    assert starts == [f"local-dir:{folder / 'student'}"]
    distill(whole)
    assert_equal(before, weights({"run": str(backbones(whole)[0])}))
    assert_equal(weights(killed), weights(whole))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "backbone"}, "student.backbone is for classifiers: with task: backbone the student is one"),
        ({"teachers": [{"train": "test_vit"}]}, "student.backbone.teachers.0: train is for classifiers"),
    ],
)
def test_a_backbone_that_cannot_be_is_one_clear_line(classifier, tmp_path, capsys, changes, message):
    if "teachers" in changes:
        classifier["student"]["backbone"]["teachers"] = changes.pop("teachers")
    said = refused(capsys, write(classifier | changes, tmp_path))
    assert message in said
    assert len(said.strip().splitlines()) == 1
