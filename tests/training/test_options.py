"""What a timm user expects of a trainer: mixing, repeats, patience, layer decay, precision, trackers, a fresh start."""

import importlib.util
import json
from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import tree, write
from helpers.launch import finished, launch

import train
from meco_timm.common.randomness import reseed
from meco_timm.data.loading import BatchStream
from meco_timm.data.views import Passes, Steps
from meco_timm.distillation import Supervised
from meco_timm.distillation.labels import cross_entropy
from meco_timm.networks.streams import student_stream
from meco_timm.recipe.networks import Network
from meco_timm.recipe.recipe import Alignment
from meco_timm.recipe.sections import Loop
from meco_timm.training.optimizers import make_optimizer
from meco_timm.training.step import Mixing

IMAGE = torch.arange(4 * 3 * 32 * 32).remainder(256).to(torch.uint8).view(4, 3, 32, 32)
LABEL = torch.tensor([0, 1, -1, 2])


def test_nothing_to_mix_leaves_the_batch_as_it_is():
    image, label = Mixing(Loop(), 3, "cpu")(IMAGE, LABEL)
    assert image is IMAGE
    assert label is LABEL


def test_mixup_mixes_an_image_with_its_mirror_in_the_batch_and_their_labels_alike():
    reseed(0)
    image, shares = Mixing(Loop(mixup=1.0), 3, "cpu")(IMAGE, LABEL)
    share = shares[0, 0].item()
    assert 0 < share < 1
    torch.testing.assert_close(image[0], share * IMAGE[0] / 255 + (1 - share) * IMAGE[3] / 255)
    torch.testing.assert_close(shares[0], torch.tensor([share, 0, 1 - share]))
    assert shares[1].sum() == shares[2].sum() == 0  # one of the pair has no label, so neither has


def test_mixing_is_a_function_of_the_seed():
    mix = Mixing(Loop(mixup=0.8, cutmix=1.0, random_erasing=0.5), 3, "cpu")
    drawn = []
    for seed in (1, 1, 2):
        reseed(seed)
        drawn.append(mix(IMAGE, LABEL)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_shares_of_classes_as_labels():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([1, -1, 3])
    shares = torch.nn.functional.one_hot(label.clamp(min=0), 4) * (label >= 0)[:, None]
    torch.testing.assert_close(cross_entropy(logits, shares.float()), cross_entropy(logits, label))
    expected = -(logits.log_softmax(1)[0, 1] + logits.log_softmax(1)[2, 3]) / 3
    torch.testing.assert_close(cross_entropy(logits, label), expected)


def test_repeated_views_stand_in_one_batch_and_differ():
    first, second = list(BatchStream(Passes(6, repeats=3), Steps(6, 0, 0, 2)))
    images = [i for _, i in first]
    assert len(set(images)) == 2
    assert all(images.count(i) == 3 for i in images)
    assert len(set(first)) == 6
    assert sorted({i for _, i in first + second}) == sorted({i for _, i in first} | {i for _, i in second})
    assert len({i for _, i in first + second}) == 4


def test_layer_decay_slows_the_first_layers():
    stream = student_stream(Network(model="test_vit"), Alignment(blocks=0), 3, 32)
    groups = make_optimizer(Supervised(stream), Loop(layer_decay=0.5)).param_groups
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    named = dict(stream.model.named_parameters())
    assert scales[id(named["patch_embed.proj.weight"])] < scales[id(named["blocks.5.mlp.fc1.weight"])] <= 1
    constant = make_optimizer(Supervised(stream), Loop(layer_decay=0.5, schedule="none")).param_groups
    assert [group["lr"] for group in constant] == [1e-3 * group["lr_scale"] for group in groups]


# From end to end


def run(command: list[str], capsys) -> str:
    """The screen: the result, then the log."""
    assert train.main(command) == 0, capsys.readouterr().err
    return "".join(capsys.readouterr())


@pytest.fixture
def new_precision() -> Iterator[None]:
    """Accelerate fixes the precision once per process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_all_options_at_once_and_a_fresh_start(recipe, tmp_path, capsys, new_precision):
    recipe["precision"] = "bf16"
    recipe["loop"] |= {"mixup": 0.2, "cutmix": 1.0, "random_erasing": 0.2, "layer_decay": 0.9, "channels_last": True}
    recipe["loop"] |= {"gradient_checkpointing": False, "ema": 0.5, "best": "nll", "accumulation": 2}
    recipe["data"]["augmentation"] |= {"repeats": 2, "auto_augment": "rand-m3"}
    recipe["losses"] = {"labels": 0.5, "blocks": 0.3}
    path = write(recipe, tmp_path)
    run([path], capsys)
    old = tree(tmp_path / "run")
    assert "nothing is trained again" in run([path], capsys)
    said = run([path, "--fresh"], capsys)
    assert said.count("already trained, loaded from") == 3  # the zoo and the student alone stay
    assert tree(tmp_path / "run") == tree(tmp_path / "run.old-1") == old
    found = [(tmp_path / name / "student/model.safetensors").read_bytes() for name in ("run", "run.old-1")]
    assert found[0] == found[1]


def test_patience_ends_a_run_that_does_not_get_better(recipe, tmp_path, capsys):
    recipe["loop"] |= {"steps": 30, "validations": 30, "patience": 2, "lr": 1e-12, "best": "nll", "optimizer": "sgd"}
    recipe["zoo"]["loop"] = {"steps": 1}
    path = write(recipe, tmp_path)
    run([path], capsys)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    scores = [-line["validation/nll"] for line in lines if "validation/nll" in line]
    best = max(i for i, score in enumerate(scores) if score == max(scores))
    assert len(scores) == min(30, best + 3)


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_tracker_writes_or_its_absence_is_told(recipe, tmp_path, capsys, name):
    recipe["trackers"] = [name]
    path = write(recipe, tmp_path)
    if importlib.util.find_spec(name) is None:
        assert train.main([path]) == 2
        assert f"pip install {name}" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    elif name == "tensorboard":
        run([path], capsys)
        assert any("tfevents" in file for file in tree(tmp_path / "run/trackers"))


def test_a_precision_that_would_silently_be_another_is_told(recipe, tmp_path, capsys, new_precision):
    recipe["precision"] = "fp16"
    assert train.main([write(recipe, tmp_path)]) == 2
    assert "precision: fp16 needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_told(recipe, tmp_path, capsys):
    recipe["trackers"] = ["tensorbord"]
    assert train.main([write(recipe, tmp_path)]) == 2
    assert "trackers" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_two_processes_end_with_the_same_files_as_one(recipe, tmp_path):
    """On the CPU, over gloo."""
    path = write(recipe, tmp_path)
    for options in ([], ["--fresh"]):
        out, err = finished(launch(path, *options, processes=2))
        assert out.count("Load the student") == 1
        assert "nothing is trained again" not in err
        assert err.count("student: ") + err.count("student  step 4/4") == 1
    assert {"table.json", "student/model.safetensors", "recipe.yaml", "plan.txt"} < tree(tmp_path / "run")
    assert tree(tmp_path / "run") == tree(tmp_path / "run.old-1")
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 1, 2, 2, 2, 3, 3, 4, 4, 4]  # losses, shares of the gradient and, every other, a validation


def test_a_folder_whose_making_was_cut_off_is_taken_up_again(recipe, tmp_path, capsys):
    path = write(recipe, tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml.tmp").write_text("run: /hal")
    assert "Load the student" in run([path], capsys)
    assert "recipe.yaml.tmp" not in tree(tmp_path / "run")
