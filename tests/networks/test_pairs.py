"""Any two networks: each sees its images as timm would show them, and one learns from the other."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import CLASSES, draw_image, refused, write
from helpers.checkpoints import TINY, local_dir, network, random_images
from helpers.zoos import zoo_of
from PIL import Image
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, create_transform, resolve_model_data_config
from torch import Tensor

import train
from meco_timm import load_recipe, pipeline
from meco_timm.data.loading import Batch, load_data
from meco_timm.distillation import Distiller, Targets
from meco_timm.networks.streams import Outputs, Stream, student_stream, teacher_stream
from meco_timm.recipe import named_teachers
from meco_timm.recipe.networks import Network, Teacher
from meco_timm.recipe.recipe import Alignment, Recipe
from meco_timm.zoo import load_teachers

ALIGNMENT = Alignment(blocks=2, method="grid", length=32)
NAMES = [f"class {i}" for i in range(7)]
CLIP = {"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}


def teach(model: str, classes: list[str] = NAMES, **options: Any) -> Stream:
    return teacher_stream(Teacher(model=model, **options), ALIGNMENT, classes).eval()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images per second are not measured, which takes longer than all else here."""


# timm's own pipeline

FAMILIES: dict[str, dict[str, Any]] = {  # name → what makes it small
    "test_byobnet": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_mambaout": {},
    "test_coatnet": {"img_size": 64},
    "test_nfnet": {},
    "test_resnet": {},
    "test_vit": {},
    "test_vit_relpos": {"img_size": 32},
    "deit_tiny_distilled_patch16_224": {"img_size": 32, **TINY},
    "cait_xxs24_224": {"img_size": 32, "depth": 2, "embed_dim": 48},
    "xcit_nano_12_p16_224": {"img_size": 32, "depth": 2},
    "beit_base_patch16_224": {"img_size": 32, **TINY},
    "eva02_tiny_patch14_224": {"img_size": 28, **TINY},
    "gmlp_ti16_224": {"img_size": 32},
    "mobilenetv3_small_050": {},
    "ghostnet_050": {},
    "regnetx_002": {},
    "mobilevit_xxs": {},
    "edgenext_xx_small": {"depths": (1, 1, 1, 1)},
    "levit_128s": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 1, 1)},
    "efficientvit_b0": {},
    "repvit_m0_9": {},
    "densenet121": {"block_config": (1, 1, 1, 1), "growth_rate": 8},
    "starnet_s050": {},
}


def pixels(size: int, tmp_path: Path, count: int = 2) -> list[Image.Image]:
    """Images as they come out of PNG files, already at the network's size."""
    images = []
    for i in range(count):
        draw_image(i, seed=i).resize((size, size), Image.Resampling.BICUBIC).save(tmp_path / f"{i}.png")
        images.append(Image.open(tmp_path / f"{i}.png").convert("RGB"))
    return images


def as_bytes(images: list[Image.Image]) -> Tensor:
    """uint8 B×3×H×W, what data.py hands to a stream."""
    return torch.stack([torch.tensor(list(image.getdata()), dtype=torch.uint8) for image in images]).view(
        len(images), images[0].height, images[0].width, 3
    ).permute(0, 3, 1, 2)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_teacher_says_what_timms_own_pipeline_says(name, tmp_path):
    """timm alone, from the checkpoint and the files of images, against the stream."""
    args = FAMILIES[name]
    size = args.get("img_size", 32)
    made = network(name, 7, **args)
    checkpoint = local_dir(tmp_path / "teacher", made, NAMES, {"input_size": (3, size, size), "crop_pct": 1.0})
    images = pixels(size, tmp_path)
    model = timm.create_model(checkpoint, pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    stream = teach(checkpoint)
    assert stream.size == size
    with torch.no_grad():
        expected = model(torch.stack([transform(image) for image in images]))
        logits = stream(as_bytes(images)).logits
    assert (expected[0] - expected[1]).abs().max() > 1e-2  # so that equality says something
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_families_are_many():
    assert len({timm.model_entrypoint(name).__module__ for name in FAMILIES}) >= 20


@pytest.mark.parametrize("normalised", [CLIP, {"mean": (0.0,) * 3, "std": (1.0,) * 3}], ids=["clip", "none"])
def test_the_checkpoints_own_normalisation_is_used(tmp_path, normalised):
    made = network("test_resnet", 7)
    config = {"input_size": (3, 32, 32), "crop_pct": 1.0, **normalised}
    checkpoint = local_dir(tmp_path / "teacher", made, NAMES, config)
    images = pixels(32, tmp_path)
    transform = create_transform(**resolve_model_data_config(timm.create_model(checkpoint)), is_training=False)
    with torch.no_grad():
        expected = made(torch.stack([transform(image) for image in images]))
        torch.testing.assert_close(teach(checkpoint)(as_bytes(images)).logits, expected, atol=1e-5, rtol=1e-5)


# Other resolutions


def test_a_transformer_of_one_size_takes_a_batch_of_another(tmp_path):
    """timm's own distillation hands its teacher the student's batch, and this one crashes on it."""
    made = network("deit_tiny_patch16_224", 7, img_size=64, **TINY)
    checkpoint = local_dir(tmp_path, made, NAMES, {"input_size": (3, 64, 64)})
    batch = random_images(32)
    with pytest.raises(AssertionError, match="doesn't match model"):
        made(batch / 255)
    stream = teach(checkpoint)
    assert stream.size == 64
    larger = torch.nn.functional.interpolate(batch / 255, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        outputs = stream(batch)
        expected = made((larger - stream.mean) / stream.std)
    torch.testing.assert_close(outputs.logits, expected, atol=1e-5, rtol=1e-5)
    assert [block.shape for block in outputs.blocks] == [(2, 32), (2, 32)]


@pytest.mark.parametrize(("size", "tokens"), [(32, 4), (96, 36)])
def test_a_transformer_of_one_size_is_made_for_the_size_asked_for(tmp_path, size, tokens):
    made = network("deit_tiny_patch16_224", 7, img_size=64, **TINY)
    stream = teach(local_dir(tmp_path, made, NAMES), size=size)
    assert stream.model.pos_embed.shape[1] == tokens + 1
    with torch.no_grad():
        assert stream(random_images(64)).logits.shape == (2, 7)


# Pairs that learn

PAIRS = {
    "CNN → ViT": ("test_resnet", "test_vit"),
    "ViT → CNN": ("test_vit", "test_efficientnet"),
    "hybrid → CNN": ("test_coatnet", "test_byobnet"),
    "CNN → hybrid": ("test_convnext", "test_coatnet"),
    "MLP → CNN": ("gmlp_ti16_224", "test_nfnet"),
    "ViT → MLP": ("test_vit", "gmlp_ti16_224"),
    "gated CNN → ViT with relative positions": ("test_mambaout", "test_vit_relpos"),
}
SIZES = {"test_coatnet": 64}
FLATTEN = Alignment(blocks=2, method="flatten", length=32)  # at 32 pixels the last maps of CNNs are 1×1


def pair_recipe(**changes: Any) -> Recipe:
    tree = {
        "data": {"source": "x", "image_size": 32},
        "teachers": ["resnet18.a1_in1k"],
        "student": "test_resnet",
        "alignment": FLATTEN.model_dump(),
        "losses": {"blocks": 1.0, "similarity": "kl"},
        "discriminators": {"adversary": "none"},
    }
    return Recipe.model_validate(tree | changes)


def learn(teacher: Outputs, student: Stream, images: Tensor, recipe: Recipe, steps: int = 8) -> list[dict[str, float]]:
    """The losses of `steps` steps on one batch."""
    torch.manual_seed(0)
    distiller = Distiller(student, recipe.method, 3).train()
    optimizer = torch.optim.AdamW(distiller.parameters(), 2e-3)
    seen = []
    for _ in range(steps):
        named = distiller(images, torch.zeros(len(images), dtype=torch.long), Targets.of(teacher))
        optimizer.zero_grad()
        named["total"].backward()
        optimizer.step()
        seen.append({name: loss.item() for name, loss in named.items()})
    return seen


@pytest.mark.parametrize("pair", PAIRS)
def test_one_learns_from_the_other(pair):
    """The total falls, and so does each similarity: of the logits and of both blocks."""
    recipe = pair_recipe()
    first, second = (
        student_stream(Network(model=name), FLATTEN, 3, SIZES.get(name, 32), seed=seed)
        for seed, name in enumerate(PAIRS[pair])
    )
    images = random_images(32, 8)
    with torch.no_grad():
        teacher = first.eval()(images)
    teacher = Outputs(teacher.blocks, None, 5 * torch.randn(8, 3, generator=torch.Generator().manual_seed(1)))
    losses = learn(teacher, second, images, recipe)
    assert set(losses[0]) == {"total", "similarity/logits", "similarity/0", "similarity/1"}
    for name in losses[0]:
        assert min(loss[name] for loss in losses[-3:]) < losses[0][name], name
    assert losses[-1]["total"] < 0.9 * losses[0]["total"]
    assert sum(b["total"] < a["total"] for a, b in pairwise(losses)) > len(losses) / 2


# Teachers without a head


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("headless")
    return local_dir(folder, network("test_vit", 0, img_size=32), data_config={"input_size": (3, 32, 32)})


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("normal")
    model = network("test_resnet", 3)
    return local_dir(folder, model, list(CLASSES), {"input_size": (3, 32, 32)})


def test_a_network_without_a_head_gives_its_blocks(headless):
    stream = teach(headless)
    assert stream.model.num_classes == 0
    with torch.no_grad():
        outputs = stream(random_images(32))
        assert outputs.logits is None
        assert [block.shape for block in outputs.blocks] == [(2, 32), (2, 32)]
        told = teach(headless, gives="blocks")(random_images(32))
    assert all(torch.equal(a, b) for a, b in zip(outputs.blocks, told.blocks, strict=True))


def test_a_teacher_gives_what_the_recipe_lets_it_give(normal):
    """Blocks only needs no class map, logits only no blocks."""
    with torch.no_grad():
        blocks = teach(normal, gives="blocks")(random_images(32))
        logits = teach(normal, list(CLASSES), gives="logits")(random_images(32))
        both = teach(normal, list(CLASSES))(random_images(32))
    assert blocks.logits is None
    assert logits.blocks == []
    torch.testing.assert_close(logits.logits, both.logits)
    assert all(torch.equal(a, b) for a, b in zip(blocks.blocks, both.blocks, strict=True))


@pytest.mark.parametrize("word", ["minimax", "non_saturating", "cooperative"])
def test_what_a_teacher_does_not_give_is_not_compared(headless, normal, word):
    """Nor has it an adversary; and every parameter still has a gradient, as many devices at once need."""
    recipe = pair_recipe(discriminators={"adversary": word, "on": "all"})
    images = random_images(32, 4)
    cases = {
        "blocks": (teach(headless), {"0", "1"}),
        "logits": (teach(normal, list(CLASSES), gives="logits"), {"logits"}),
        "all": (teach(normal, list(CLASSES)), {"0", "1", "logits"}),
    }
    for stream, given in cases.values():
        student = student_stream(Network(model="test_efficientnet"), ALIGNMENT, 3, 32)
        distiller = Distiller(student, recipe.method, 3).train()
        with torch.no_grad():
            outputs = stream(images)
        named = distiller(images, torch.zeros(4, dtype=torch.long), Targets.of(outputs))
        assert {name.partition("/")[2] for name in named if name.startswith("similarity")} == given
        assert {name.partition("/")[2] for name in named if name.startswith("adversary")} == given
        named["total"].backward()
        assert all(p.grad is not None for p in distiller.parameters())


@pytest.mark.parametrize("sampling", ["random", "average"])
def test_with_another_teacher_a_headless_one_helps(headless, normal, recipe, accelerator, sampling):
    recipe["teachers"], recipe["zoo"]["sampling"] = [headless, normal], sampling
    made = Recipe.model_validate(recipe)
    data = load_data(made.data, made.seed)
    zoo = zoo_of(load_teachers(named_teachers(made.teachers), made.alignment, data.classes), made, accelerator)
    images = random_images(32)
    rows = torch.arange(len(images))
    outputs = [zoo.targets(Batch(images, rows, rows, rows), images, step) for step in range(8)]
    blind, seeing = (stream(images) for stream in zoo.streams.values())
    if sampling == "random":
        assert {o.logits is None for o in outputs} == {True, False}
    for found in outputs:
        expected = blind.blocks if found.logits is None else seeing.blocks
        if sampling == "average":
            expected = [(a + b) / 2 for a, b in zip(blind.blocks, seeing.blocks, strict=True)]
        if found.logits is not None:
            torch.testing.assert_close(found.logits.softmax(1), seeing.logits.softmax(1))
        for block, wanted in zip(found.blocks[0].blocks, expected, strict=True):
            torch.testing.assert_close(block, wanted)


def test_only_headless_teachers_need_labels(headless, recipe, tmp_path, capsys, quick):
    recipe["teachers"] = [headless]
    path = write(recipe, tmp_path)
    told = refused(capsys, path)
    assert "teachers: all of them give blocks only, so nothing would train the student's head." in told
    assert "losses.labels=1" in told
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]
    rows = pipeline.distill(load_recipe(path, ["losses.labels=1", "loop.steps=2"]))
    assert [row.name for row in rows] == ["student alone", "student"]


def test_a_teacher_that_would_teach_nothing_is_refused(headless, normal, recipe, tmp_path, capsys):
    recipe["alignment"]["blocks"] = 0
    recipe["teachers"] = [normal, headless]
    assert "teachers.1:" in refused(capsys, write(recipe, tmp_path))
    recipe["teachers"] = [normal, {"model": normal, "gives": "blocks"}]
    assert "gives blocks only, but alignment.blocks is 0" in refused(capsys, write(recipe, tmp_path))
    recipe["alignment"]["blocks"], recipe["losses"], recipe["discriminators"] = 2, {"blocks": 0}, {}
    recipe["teachers"] = [normal, headless]
    told = refused(capsys, write(recipe, tmp_path))
    assert "gives blocks only, but no loss compares blocks" in told
    assert "losses.blocks=3" in told
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


# All at once


def test_three_teachers_of_three_sizes_and_three_normalisations(recipe, tmp_path, capsys, quick):
    """32, 64 and 224 pixels; a CNN, a transformer of one size, and a network normalised as CLIP; the class order of
    one is another."""
    vit = network("deit_tiny_patch16_224", 3, img_size=64, **TINY)
    cnn = network("test_efficientnet", 3)
    large = {"input_size": (3, 224, 224), **CLIP}
    recipe["teachers"] = [
        {"train": "test_resnet", "loop": {"steps": 2}},
        {"model": local_dir(tmp_path / "vit", vit, list(CLASSES[::-1])), "trust": True},
        {"model": local_dir(tmp_path / "cnn", cnn, list(CLASSES), large), "trust": True},
    ]
    recipe["zoo"]["sampling"] = "average"
    recipe["loop"] |= {"steps": 2}
    recipe["student"] = "test_mambaout"
    assert train.main([write(recipe, tmp_path)]) == 0
    told = capsys.readouterr().out
    rows = [line.split() for line in (tmp_path / "run/plan.txt").read_text().splitlines() if line]
    streams = {"test_resnet": ["32", "0.5", "3"], "vit": ["64", "ImageNet", "3"], "cnn": ["224", "CLIP", "3"]}
    for name, wanted in streams.items():
        row = next(row for row in rows if row[0] == name)
        assert row[4:7] == wanted
        assert (row[7:10] == ["mapped", "to", "3"]) == (name == "vit")
    for name in (*streams, "true ensemble", "student alone", "student"):
        assert f"{name}  " in told
    assert (tmp_path / "run/student/model.safetensors").exists()
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for line in metrics for value in line.values())
