"""Where weights come from: each source gives exactly those weights, and what cannot be had is refused with a reason."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from conftest import refused, write
from helpers.checkpoints import TINY, local_dir, network, random_images
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform
from timm.utils import CheckpointSaver
from torch import nn

from meco_timm.common.errors import UserError
from meco_timm.networks.saving import export
from meco_timm.networks.streams import Stream, student_stream, teacher_stream
from meco_timm.recipe.networks import Network, Teacher
from meco_timm.recipe.recipe import Alignment
from meco_timm.recipe.sections import Data

ALIGNMENT = Alignment(blocks=2, method="grid", length=32)
NAMES = [f"class {i}" for i in range(37)]


def teach(model: str, classes: list[str] | None = None, weightless: bool = False, **options: Any) -> Stream:
    return teacher_stream(Teacher(model=model, **options), ALIGNMENT, classes or NAMES, weightless=weightless).eval()


def why(model: str, **options: Any) -> str:
    """Why a teacher is refused."""
    with pytest.raises(UserError) as caught:
        teach(model, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def resnet() -> Any:
    """A user's own network of 37 classes."""
    return network("test_resnet", 37, seed=3)


def equal(stream: Stream, model: nn.Module) -> bool:
    ours, theirs = stream.model.state_dict(), model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


# Sources


def as_folder(model: Any, folder: Path) -> dict[str, Any]:
    return {"model": local_dir(folder / "mine", model)}


def as_safetensors(model: Any, folder: Path) -> dict[str, Any]:
    save_file(model.state_dict(), folder / "mine.safetensors")
    return {"model": "test_resnet", "weights": str(folder / "mine.safetensors")}


def as_pth(change: Callable[[Any], Any]) -> Callable[[Any, Path], dict[str, Any]]:
    def save(model: Any, folder: Path) -> dict[str, Any]:
        torch.save(change(model.state_dict()), folder / "mine.pth")
        return {"model": "test_resnet", "weights": str(folder / "mine.pth")}

    return save


def as_timms_trainer(model: Any, folder: Path) -> dict[str, Any]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    arguments = argparse.Namespace(model="test_resnet", lr=0.1, crop_pct=None)
    saver = CheckpointSaver(model, optimizer, args=arguments, checkpoint_dir=str(folder))
    saver.save_checkpoint(0, metric=50.0)
    return {"model": "test_resnet", "weights": str(folder / "last.pth.tar")}


def averaged(state: dict[str, Any]) -> dict[str, Any]:
    """What some trainers keep: raw weights, and their average, which is meant."""
    return {"state_dict": {k: torch.zeros_like(v) for k, v in state.items()}, "state_dict_ema": state}


def prefixed(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def in_lightning(state: dict[str, Any]) -> dict[str, Any]:
    return {"state_dict": prefixed("net.timm_model.")(state) | {"criterion.weight": torch.ones(3)}, "epoch": 3}


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(as_folder, id="local-dir"),
        pytest.param(as_safetensors, id="safetensors"),
        pytest.param(as_pth(dict), id="pth"),
        pytest.param(as_pth(lambda state: {"model": state, "epoch": 3}), id="model key"),
        pytest.param(as_pth(averaged), id="ema"),
        pytest.param(as_pth(prefixed("module.")), id="ddp"),
        pytest.param(as_pth(prefixed("module._orig_mod.")), id="compiled"),
        pytest.param(as_pth(prefixed("model.")), id="wrapped"),
        pytest.param(as_pth(in_lightning), id="in a trainer's checkpoint"),
        pytest.param(as_timms_trainer, id="timm's trainer"),
    ],
)
def test_every_source_gives_these_weights_and_their_37_classes(resnet, tmp_path, save):
    """The number of classes is found without being told, with the weights and, for the plan, without them."""
    teacher = save(resnet, tmp_path)
    stream = teach(**teacher)
    assert equal(stream, resnet)
    assert stream.model.num_classes == 37
    assert stream(random_images(32)).logits.shape == (2, 37)
    plan = teach(**teacher, weightless=True)
    assert plan.model.num_classes == 37
    assert next(plan.model.parameters()).is_meta


def test_a_student_starts_from_weights_with_a_head_of_its_own(resnet, tmp_path):
    """The body is theirs; the new head is a function of the seed."""
    sources = [as_folder(resnet, tmp_path), as_safetensors(resnet, tmp_path)]
    for source in sources:
        first, again, other = (student_stream(Network(**source), ALIGNMENT, 3, 32, seed=s) for s in (1, 1, 2))
        body = {k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}
        assert all(torch.equal(first.model.state_dict()[name], tensor) for name, tensor in body.items())
        assert first.model.fc.weight.shape == (3, 96)
        assert torch.equal(first.model.fc.weight, again.model.fc.weight)
        assert not torch.equal(first.model.fc.weight, other.model.fc.weight)


def test_a_student_with_as_many_classes_keeps_its_head(resnet, tmp_path):
    for source in (as_folder(resnet, tmp_path), as_safetensors(resnet, tmp_path)):
        assert equal(student_stream(Network(**source), ALIGNMENT, 37, 32), resnet)


@pytest.mark.parametrize("args", [{}, {"num_classes": 7}])
def test_a_head_that_was_replaced_is_saved_as_what_it_is(resnet, tmp_path, args):
    source = as_folder(resnet, tmp_path) if not args else {"model": "test_resnet", "args": args}
    student = student_stream(Network(**source), ALIGNMENT, 3, 32)
    export(student, tmp_path / "out", ["a", "b", "c"], Data(source="x", image_size=32), {})
    assert equal(teach(f"local-dir:{tmp_path / 'out'}", ["a", "b", "c"]), student.model)


# What is refused


class Trap:
    """A pickle that would run code when it is read."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_pickle_that_could_run_code_is_refused_and_runs_none(resnet, tmp_path):
    torch.save({"state_dict": resnet.state_dict(), "extra": Trap(tmp_path / "ran")}, tmp_path / "trap.pth")
    told = why("test_resnet", weights=str(tmp_path / "trap.pth"))
    assert "holds more than tensors" in told
    assert "loading it could run code. Save its state_dict() alone." in told
    assert not (tmp_path / "ran").exists()


def vit_state() -> dict[str, Any]:
    return network("test_vit", 37).state_dict()


@pytest.mark.parametrize("weightless", [True, False], ids=["plan", "weights"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda model: model, "holds more than tensors (t"),
        (lambda model: [1, 2], "holds no state dict"),
        (lambda model: {"fc.weight": 1}, "holds no state dict"),
        (lambda model: b"junk", "cannot be read: it is damaged, or not a state dict"),
        (lambda model: b"", "cannot be read: it is damaged, or not a state dict (EOFError)"),
        (lambda model: {}, "does not fit: it lacks bn1.bias"),
        (lambda model: vit_state(), "does not fit: it lacks bn1.bias (90 such). Is `model` the right architecture"),
        (lambda model: model.state_dict() | {"extra": torch.zeros(1)}, "it also has extra"),
        (
            lambda model: model.state_dict() | {"conv1.0.weight": torch.zeros(8, 3, 3, 3)},
            "has another shape of conv1.0.weight",
        ),
    ],
    ids=["module", "list", "numbers", "junk", "empty", "no tensors", "another", "more", "misshapen"],
)
def test_weights_that_cannot_be_read_or_do_not_fit(resnet, tmp_path, content, told, weightless):
    file, held = tmp_path / "mine.pth", content(resnet)
    if isinstance(held, bytes):
        file.write_bytes(held)
    else:
        torch.save(held, file)
    found = why("test_resnet", weights=str(file), weightless=weightless)
    assert found.startswith(f"teachers.0.weights: {file} ")
    assert told in found
    assert len(found.splitlines()) == 1


def test_weights_that_are_not_there(tmp_path):
    assert (
        why("test_resnet", weights=f"{tmp_path}/no.pth") == f"teachers.0.weights: there is no file {tmp_path}/no.pth."
    )
    assert "there is no file" in why("test_resnet", weights=str(tmp_path))
    assert why(f"local-dir:{tmp_path}") == f"teachers.0: local-dir:{tmp_path} is not a folder with a timm config.json."


def edited(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (config[section] if section else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"num_classes": 5, "model_args__num_classes": 5},
            "cannot be loaded: Error(s) in loading state_dict",
        ),
        (
            {"model_args__num_classes": 5},
            "the network has 5 classes, its weights 37. Its head would be random.",
        ),
        ({"architecture": "test_vit"}, "its weights cannot be loaded"),
        ({"architecture": "test_efficientnet"}, "its weights cannot be loaded"),
    ],
    ids=["misshapen", "contradiction", "vit", "efficientnet"],
)
def test_a_folder_whose_weights_are_another_networks(resnet, tmp_path, changes, told):
    """timm itself would give the second a random head, and say nothing."""
    local_dir(tmp_path, resnet)
    edited(tmp_path, **changes)
    assert told in why(f"local-dir:{tmp_path}")


def test_a_folder_without_weights(resnet, tmp_path):
    local_dir(tmp_path, resnet)
    (tmp_path / "model.safetensors").unlink()
    assert "its weights cannot be loaded: No suitable checkpoints found" in why(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("weightless", [True, False], ids=["plan", "weights"])
def test_another_number_of_classes_is_refused_never_a_random_head(resnet, tmp_path, weightless):
    """What timm's own distillation does silently."""
    options = {"args": {"num_classes": 5}, "weightless": weightless}
    told = why(as_folder(resnet, tmp_path)["model"], **options)
    assert "teachers.0.args: num_classes 5 would replace the head" in told
    assert "map its classes with teachers.0.classes" in told
    assert "has another shape of fc.bias" in why(**as_safetensors(resnet, tmp_path), **options)
    assert "num_classes 5 would replace" in why("test_resnet.r160_in1k", args={"num_classes": 5}, weightless=True)


def test_an_architecture_without_any_weights_can_only_be_trained(tmp_path):
    told = why("cs3darknet_s", weightless=True)
    assert told == "teachers.0: timm has no weights of cs3darknet_s. Name a file with `weights:`, or `train:` it."


# The Hub


@pytest.mark.parametrize("name", ["hf-hub:owner/name", "hf-hub:owner/name@v2", "resnet18.a1_in1k"])
def test_without_a_connection_it_says_what_to_do(name):
    told = why(name)
    assert told.startswith(f"teachers.0: {name}")
    assert "not in the local cache and the Hub cannot be reached. Run once with a connection" in told
    assert "name a file with `weights:` or a folder with `local-dir:`" in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (GatedRepoError, "accept its terms on https://huggingface.co/{repo}, then `hf auth login`."),
        (RepositoryNotFoundError, "There is no such repository, or it is private"),
    ],
)
@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("hf-hub:owner/name@v2", "owner/name"),
        ("vit_base_patch16_dinov3.lvd1689m", "timm/vit_base_patch16_dinov3.lvd1689m"),
    ],
)
def test_a_repository_that_is_closed_says_what_to_do(monkeypatch, error, told, name, repo):
    def closed(*args: Any, **options: Any) -> None:
        raise error("403 Client Error.\nRequest ID: 1", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(timm, "create_model", closed)
    assert told.format(repo=repo) in why(name)


def test_weights_that_cannot_be_had_are_told_before_anything_is_trained_or_written(recipe, tmp_path, capsys):
    """A tag's network is known without its weights, so the plan has nothing against it; the run has."""
    recipe["teachers"].append({"model": "test_vit.r160_in1k", "gives": "blocks", "size": 32})
    told = refused(capsys, write(recipe, tmp_path))
    assert told.startswith("weights: 1 network(s) need weights that are not here and cannot be downloaded")
    assert "teachers.2: " in told
    assert "test_vit.r160_in1k" in told
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


# Channels


def test_a_network_of_grey_images_sees_what_timm_gives_it(tmp_path):
    """A grey image, which data.py hands over with three equal channels."""
    model = network("test_resnet", 37, in_chans=1)
    name = local_dir(tmp_path, model)
    pixels = random_images(32, 1)[0, 0]
    image = Image.fromarray(pixels.numpy())
    config = timm.data.resolve_model_data_config(model) | {"input_size": (1, 32, 32), "crop_pct": 1.0}
    config |= {"mean": (0.5,), "std": (0.5,)}
    with torch.no_grad():
        expected = model(create_transform(**config)(image)[None])
        torch.testing.assert_close(teach(name, size=32)(pixels.expand(1, 3, 32, 32)).logits, expected)


def test_weights_of_colour_images_can_be_made_grey(resnet, tmp_path):
    """timm sums the first layer over the colours; mean and std are then the colours' mean."""
    name = local_dir(tmp_path, resnet, data_config={"mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)})
    stream = teach(name, args={"in_chans": 1}, size=32)
    assert [*stream.mean.flatten(), *stream.std.flatten()] == pytest.approx([0.5, 0.2])
    summed = resnet.conv1[0].weight.sum(1, keepdim=True)
    torch.testing.assert_close(stream.model.conv1[0].weight, summed)
    image = random_images(32)
    grey = (image / 255 * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(stream(image).logits, stream.model((grey - 0.5) / 0.2), atol=1e-5, rtol=1e-5)


def test_a_student_may_be_grey_and_no_network_may_have_other_channels(tmp_path):
    student = student_stream(Network(model="test_resnet", args={"in_chans": 1}), ALIGNMENT, 3, 32)
    export(student, tmp_path / "out", ["a", "b", "c"], Data(source="x", image_size=32), {})
    again = teach(f"local-dir:{tmp_path / 'out'}", ["a", "b", "c"])
    with torch.no_grad():
        assert torch.equal(again(random_images(32)).logits, student.eval()(random_images(32)).logits)
    with pytest.raises(UserError, match="student: the network takes images of 4 channels; they can have 3, or 1"):
        student_stream(Network(model="test_resnet", args={"in_chans": 4}), ALIGNMENT, 3, 32)


# Networks that cannot be students


@pytest.mark.parametrize("weightless", [True, False], ids=["plan", "weights"])
def test_an_encoder_is_no_student(monkeypatch, weightless):
    name = "qwen3_vit_88m_enc"
    made = timm.create_model

    def on_meta(*args: Any, **options: Any) -> Any:
        with torch.device("meta"):
            return made(*args, **options)

    monkeypatch.setattr(timm, "create_model", on_meta)  # 88 million weights would take seconds
    with pytest.raises(UserError, match="an encoder only, with no place for a head") as caught:
        student_stream(Network(model=name), ALIGNMENT, 3, 224, weightless=weightless)
    assert str(caught.value).startswith(f"student: {name}")


def test_dropped_patches_have_no_place_in_a_map():
    vit = Network(model="test_vit", args={"patch_drop_rate": 0.5})
    with pytest.raises(UserError, match=r"student.args: patch_drop_rate leaves holes .* alignment.blocks=0"):
        student_stream(vit, ALIGNMENT, 3, 32)
    stream = student_stream(vit, Alignment(blocks=0), 3, 32).train()
    assert stream(random_images(32)).logits.shape == (2, 3)


# Weights at another input size


def tiny_vit(folder: Path, size: int) -> dict[str, Any]:
    model = network("deit_tiny_patch16_224", 37, img_size=size, **TINY)
    torch.save(model.state_dict(), folder / "vit.pth")
    return {"model": "deit_tiny_patch16_224", "weights": str(folder / "vit.pth"), "args": dict(TINY)}


@pytest.mark.parametrize("weightless", [True, False], ids=["plan", "weights"])
def test_a_state_dict_is_for_the_size_it_was_saved_at(tmp_path, weightless):
    vit = tiny_vit(tmp_path, 64)
    assert "has another shape of pos_embed (1 such)" in why(**vit, weightless=weightless)
    vit["args"]["img_size"] = [64, 64]
    assert teach(**vit, weightless=weightless).size == 64
    vit["args"]["img_size"] = 64
    assert teach(**vit, weightless=weightless).size == 64


def test_asked_for_another_size_positions_are_resampled_as_timm_does(tmp_path):
    """A state dict and a folder of the same weights, both asked for half their size."""
    vit = tiny_vit(tmp_path, 64)
    vit["args"]["img_size"] = 64
    folder = local_dir(tmp_path / "vit", network("deit_tiny_patch16_224", 37, img_size=64, **TINY))
    of_file, of_folder = teach(**vit, size=32), teach(folder, size=32)
    assert of_file.size == of_folder.size == 32
    assert of_file.model.pos_embed.shape == (1, 5, 32)
    assert equal(of_file, of_folder.model)
    with torch.no_grad():
        assert torch.equal(of_file(random_images(64)).logits, of_folder(random_images(64)).logits)


def test_a_network_that_cannot_change_its_size_says_so(tmp_path):
    model = network("gmlp_ti16_224", 37, img_size=32)
    assert "teachers.0" in why(local_dir(tmp_path / "mlp", model), size=64)
    torch.save(model.state_dict(), tmp_path / "mlp.pth")
    told = why("gmlp_ti16_224", weights=str(tmp_path / "mlp.pth"), args={"img_size": 32}, size=64)
    assert "the weights of gmlp_ti16_224 cannot be adapted to images of 64 × 64" in told


def test_a_wrapper_of_another_network_is_told_with_its_prefix(resnet, tmp_path):
    state = resnet.state_dict()
    gone = next(iter(state))
    del state[gone]
    teacher = as_pth(prefixed("backbone."))(SimpleNamespace(state_dict=lambda: state), tmp_path)
    with pytest.raises(UserError, match=rf"does not fit: it lacks backbone\.{gone} \(1 such\)"):
        teach(**teacher)


def test_a_wrapper_of_two_networks_that_fit_is_refused(resnet, tmp_path):
    both = as_pth(lambda state: prefixed("student.")(state) | prefixed("teacher.")(state))(resnet, tmp_path)
    with pytest.raises(UserError, match=r"holds 2 networks that fit, under student\. and teacher\.\. Save one"):
        teach(**both)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_128s", "levit_conv_128s"])
def test_distilled_networks_of_fixed_size_take_another(name):
    """Their own constructors take anything and hand it on; what they hand it to has img_size."""
    stream = student_stream(Network(model=name), Alignment(blocks=0), 3, 64, weightless=True)
    assert stream.size == 64
