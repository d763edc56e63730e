"""What `evaluate` measured: which images, how many of them its run trained on, among which classes."""

import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from conftest import CLASSES, base_recipe, fill, write

import train
from meco_timm import evaluate, load_recipe, predict
from meco_timm.cli import main
from meco_timm.data import load_data
from meco_timm.networks import export
from meco_timm.networks.streams import student_stream
from meco_timm.recipe import Alignment, Data, Network


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on images without folders of splits, 20 of each class."""
    folder = tmp_path_factory.mktemp("flat")
    fill(folder / "images", dict.fromkeys(CLASSES, 20))
    recipe = base_recipe(folder / "images", folder) | {"teachers": [{"train": "test_resnet"}]}
    recipe["loop"] |= {"steps": 2}
    assert train.main([write(recipe, folder)]) == 0
    return folder


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("model", ["run", "run/student", "local-dir:run", "local-dir:run/student"])
def test_beside_a_run_its_own_test_images(flat, capsys, monkeypatch, model):
    monkeypatch.chdir(flat)
    recipe = load_recipe(flat / "recipe.yaml")
    data = load_data(recipe.data, recipe.seed)
    text = output(capsys, "evaluate", model, "--data", "images")
    count = len(data.test)
    assert 0 < count < 60
    assert text.startswith(f"The test images of its run, of {flat}/images: {count} images, none of which it trained on")
    assert evaluate(model, "images").top1 == pytest.approx(evaluate("run/student", data).top1)
    assert predict(model, "images", top=1)[0].classes == predict("local-dir:run/student", "images", top=1)[0].classes


def test_how_many_images_the_run_trained_on(flat, tmp_path, capsys):
    """All of its folder; a copy under other names, with some that are new; and a folder of strangers."""
    recipe = load_recipe(flat / "recipe.yaml")
    trained = len(load_data(recipe.data, recipe.seed).train)
    text = output(capsys, "evaluate", flat / "run", "--data", flat / "images", "--split", "train")
    assert text.startswith(f"Train split of {flat}/images: 60 images, of which its run trained on {trained}\n")
    for name in CLASSES:
        (tmp_path / "copy/test" / name).mkdir(parents=True)
        for i, file in enumerate(sorted((flat / "images" / name).iterdir())):
            shutil.copy(file, tmp_path / "copy/test" / name / f"{i}{file.suffix}")
    fill(tmp_path / "copy/test", dict.fromkeys(CLASSES, 2), first_seed=900)
    fill(tmp_path / "copy/train", dict.fromkeys(CLASSES, 1), first_seed=950)
    text = output(capsys, "evaluate", flat / "run", "--data", tmp_path / "copy")
    total = len([*(tmp_path / "copy/test").rglob("*.png")])
    assert text.startswith(f"Test split of {tmp_path}/copy: {total} images, of which its run trained on {trained}\n")
    text = output(capsys, "evaluate", flat / "run", "--data", tmp_path / "copy", "--split", "train")
    assert "3 images, of which its run trained on none\n" in text


def test_a_run_whose_data_have_changed_or_gone_knows_no_number(flat, tmp_path, capsys):
    shutil.copytree(flat, tmp_path / "moved")
    run = tmp_path / "moved/run"
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace(f"{flat}/images", f"{tmp_path}/moved/images"))
    fill(tmp_path / "moved/images", {"circle": 1}, first_seed=999)
    said = output(capsys, "evaluate", run, "--data", tmp_path / "moved/images", "--split", "train")
    assert "how many of them its run trained on is not known (the run's data have changed since: 1 image" in said
    shutil.rmtree(tmp_path / "moved/images")
    said = output(capsys, "evaluate", run, "--data", flat / "images", "--split", "train")
    assert "is not known (data.source: there is no folder" in said


def test_a_run_without_a_student(flat, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("seed: 0")
    for command in (["evaluate", tmp_path, "--data", flat / "images"], ["predict", tmp_path, flat / "images"]):
        assert main(list(map(str, command))) == 2
        assert f"{command[0]}: the run in {tmp_path} has not finished" in capsys.readouterr().err


def test_a_split_is_called_what_it_is(flat, capsys):
    name = f"local-dir:{shutil.copytree(flat / 'run/student', flat / 'alone', dirs_exist_ok=True)}"
    text = output(capsys, "evaluate", name, "--data", flat / "images")
    assert text.startswith(f"Train split of {flat}/images: 60 images\n")  # it has no other


@pytest.fixture(scope="module")
def five_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the classes of the data, in another order, and two more."""
    folder = tmp_path_factory.mktemp("five") / "net"
    stream = student_stream(Network(model="test_resnet"), Alignment(blocks=0), 5, 32, seed=4)
    torch.nn.init.normal_(stream.model.get_classifier().weight, generator=torch.Generator().manual_seed(1))
    data = Data(source=".", image_size=32, crop_pct=1.0)
    export(stream, folder, ["dash", "star", "circle", "moon", "cross"], data, {})
    return folder


def test_of_fewer_classes_both_figures(five_classes, shapes, capsys, monkeypatch):
    """Against plain timm: the classes of the data are columns 2, 4 and 0 of the network's five."""
    monkeypatch.chdir(five_classes.parent)
    text = output(capsys, "evaluate", "net", "--data", shapes)
    data = load_data(Data(source=str(shapes), image_size=32, crop_pct=1.0, workers=0), 0)
    network = timm.create_model(f"local-dir:{five_classes}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    mean, std = transform.transforms[-1].mean.view(3, 1, 1), transform.transforms[-1].std.view(3, 1, 1)
    images = torch.stack([image for image, *_ in data.test.__getitems__(list(range(len(data.test))))])
    logits = network((images / 255 - mean) / std).detach()
    label = torch.tensor(data.test.labels)
    columns = torch.tensor([2, 4, 0])  # of circle, cross, dash
    among_all = 100 * (logits.argmax(1) == columns[label]).double().mean()
    present = 100 * (logits[:, columns].argmax(1) == label).double().mean()
    assert among_all < present
    assert re.search(rf"net, among its 5 classes +{among_all:.2f} ", text)
    assert re.search(rf"net, among the 3 of the data +{present:.2f} ", text)
    row = evaluate("net", str(shapes))
    assert row.top1 == pytest.approx(present)
    assert row.nll == pytest.approx(torch.nn.functional.cross_entropy(logits[:, columns], label).item(), rel=1e-4)
    assert text.startswith(f"Test split of {shapes}: 12 images\n")


def test_classes_of_other_names_that_are_taken_to_be_the_same_are_warned_of(flat, tmp_path, capsys):
    """star stands where the network has dash; names that differ in case only are the same."""
    for names, warned in (("circle cross star", True), ("Circle Cross Dash", False)):
        folder = fill(tmp_path / names, dict.fromkeys(names.split(), 4))
        assert main(["evaluate", str(flat / "run"), "--data", str(folder), "--quiet"]) == 0
        said = capsys.readouterr().err
        assert ("classes of other names are taken to be the same: dash = star. If they are not: --m" in said) is warned
    assert main(["evaluate", str(flat / "run"), "--data", str(tmp_path / "circle cross star"), "--mask", "-q"]) == 0
    assert "taken to be the same" not in capsys.readouterr().err
