"""Training on labels: teachers and the student alone are trained once, and found again by all that made them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from conftest import CLASSES, contents, fill, tree
from helpers.data import PLAIN, load

from meco_timm.data import MANIFEST
from meco_timm.data.folders import read_folder
from meco_timm.data.loading import DataSource, load_data
from meco_timm.data.manifest import Manifest, manifest_of
from meco_timm.data.verification import verify
from meco_timm.pipeline import assemble_zoo
from meco_timm.recipe.recipe import Recipe
from meco_timm.recipe.sections import Data
from meco_timm.training import labels
from meco_timm.training.labels import LabelTraining, Task, find_trained, train_on_labels, train_student_alone
from meco_timm.zoo.listing import list_teachers


@pytest.fixture
def made(recipe: dict[str, Any]) -> Recipe:
    recipe["loop"]["steps"] = 2
    return Recipe.model_validate(recipe)


@pytest.fixture
def data(made: Recipe) -> DataSource:
    return load_data(made.data, made.seed)


@pytest.fixture
def training(made: Recipe, data: DataSource, accelerator: Accelerator) -> LabelTraining:
    return LabelTraining(data, made.data, made.seed, Path(made.zoo.folder), accelerator)


def test_a_trained_teacher_is_kept_under_a_hash_of_what_made_it(made, data, accelerator, caplog):
    folder = Path(made.zoo.folder)
    assemble_zoo(made, data, accelerator)
    names = sorted(p.name for p in folder.iterdir() if p.name != ".locks")
    assert [name.rpartition("-")[0] for name in names] == ["test_resnet", "test_vit"]
    left = folder / f"{names[0]}.training"  # as a kill leaves it between a network and the end of its training
    (left / "checkpoints").mkdir(parents=True)
    (left / "metrics.jsonl").write_text("{}")
    wanted = {"config.json", "model.safetensors", "made_by.json", "metrics.jsonl", "data.parquet"}
    kept = {f"{name}/{file}" for name in names for file in wanted}
    assert tree(folder) == kept | {f"{left.name}/metrics.jsonl"}
    before = {name: content for name, content in contents(folder).items() if name.split("/")[0] != left.name}
    caplog.clear()
    assemble_zoo(made, data, accelerator)
    assert caplog.text.count("already trained, loaded from") == 2
    assert "step" not in caplog.text
    assert contents(folder) == before


def test_images_without_labels_leave_the_trained_networks_as_they_are(made, data, accelerator, tmp_path, caplog):
    """Only the student learns from them."""
    assemble_zoo(made, data, accelerator)
    before = contents(Path(made.zoo.folder))
    fill(tmp_path / "more", {"other": 3})
    caplog.clear()
    settings = made.data.model_copy(update={"unlabelled": str(tmp_path / "more")})
    more = load_data(settings, made.seed)
    assert len(more.train) == len(data.train) + 3
    assemble_zoo(made.model_copy(update={"data": settings}), more, accelerator)
    assert caplog.text.count("already trained, loaded from") == 2
    assert "step" not in caplog.text
    assert contents(Path(made.zoo.folder)) == before


def test_a_network_that_was_not_moved_into_place_is_not_used(made, data, accelerator, caplog):
    """As a kill leaves it: with all its files, which may not be on the disk yet."""
    folder = Path(made.zoo.folder)
    assemble_zoo(made, data, accelerator)
    (whole,) = folder.glob("test_vit-*")
    before = contents(whole)
    whole.rename(whole.with_name(f"{whole.name}.tmp"))
    assert [Path(network.folder).name.rpartition("-")[0] for network in list_teachers(folder)] == ["test_resnet"]
    caplog.clear()
    assemble_zoo(made, data, accelerator)
    assert caplog.text.count("already trained, loaded from") == 1
    assert [path.name for path in folder.glob("test_vit-*")] == [whole.name]
    weights = "model.safetensors"
    assert contents(whole)[weights] == before[weights]


def test_what_decides_a_teacher_decides_its_hash(made, data, training, monkeypatch, tmp_path):
    """Every change of data, network, loop or seed trains another; a change that decides nothing does not."""

    class Trained(Exception):
        pass

    def stop(*args: Any, **options: Any) -> None:
        raise Trained

    network, loop = made.teachers[0], made.teachers[0].loop
    first = Task("first", {"role": "teacher"}, network, loop, 2, data.labelled)
    train_on_labels(first, training)
    monkeypatch.setattr(labels, "Training", stop)

    def trains(shared: LabelTraining = training, **changes: Any) -> bool:
        try:
            train_on_labels(first._replace(title="again", **changes), shared)
        except Trained:
            return True
        return False

    assert not trains()
    assert not trains(loop=loop.model_copy(update={"log_every": 7}))
    assert trains(steps=3)
    assert trains(loop=loop.model_copy(update={"lr": 0.1}))
    assert trains(loop=loop.model_copy(update={"class_weights": "balanced"}))
    assert trains(network=network.model_copy(update={"model": "test_vit"}))
    assert trains(network=network.model_copy(update={"args": {"drop_rate": 0.1}}))
    assert trains(role={"role": "student"})
    assert trains(training._replace(seed=1))
    flipped = made.data.augmentation.model_copy(update={"hflip": 0.5})
    assert trains(training._replace(settings=made.data.model_copy(update={"augmentation": flipped})))
    weights = tmp_path / "weights.pth"
    started = first._replace(network=network.model_copy(update={"weights": str(weights)}))
    digests = []
    for content in (b"one", b"two"):  # another file under the same name
        weights.write_bytes(content)
        digests.append(labels.training_key(started, training)["starts_from"])
    assert None not in digests
    assert digests[0] != digests[1]


def test_the_student_alone_learns_from_labels_and_is_kept(made, data, training, caplog):
    first, again = (train_student_alone(made.student, made.loop, 2, training) for _ in range(2))
    assert "student alone: already trained, loaded from" in caplog.text
    assert first.model.default_cfg["architecture"] == "test_efficientnet"
    state = again.model.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in first.model.state_dict().items())


def test_a_network_is_found_by_the_images_it_was_trained_on(tmp_path):
    """The same images, or a copy of them; not other images."""

    def of(folder: Path) -> Manifest:
        return manifest_of([read_folder(folder)])

    folder, zoo = fill(tmp_path / "data", dict.fromkeys(CLASSES, 2)), tmp_path / "zoo"
    options = {"test_fraction": 0.5, "validation": 0.0}
    data = load(folder, **options)
    settings = Data.model_validate(PLAIN | {"source": str(folder)} | options)
    verify(data, settings, tmp_path / "state", Accelerator())
    key = {"version": 2, "data": "d", "steps": 3, "files": data.manifest.digest()}
    place, _ = find_trained(zoo, "net[1]", key, data.manifest)
    place.mkdir(parents=True)
    for name, content in (("config.json", b"{}"), ("made_by.json", json.dumps(key).encode())):
        (place / name).write_bytes(content)
    (place / MANIFEST).write_bytes(data.manifest.bytes())
    assert find_trained(zoo, "net[1]", key, data.manifest) == (place, "")
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    copy = of(tmp_path / "copy")
    assert find_trained(zoo, "net[1]", {**key, "files": copy.digest()}, copy) == (place, "")
    assert find_trained(zoo, "net[1]", {**key, "files": copy.digest(), "steps": 4}, copy)[0] != place
    fill(tmp_path / "copy", {"dash": 3})
    other = of(tmp_path / "copy")
    found, note = find_trained(zoo, "net[1]", {**key, "files": other.digest(), "data": "e"}, other)
    assert found != place
    assert "was trained on other images: 1 image is new (dash/002.png)" in note
