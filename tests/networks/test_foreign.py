"""Teachers of torchvision and transformers: the logits that their own library gives, for images as it prepares them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from meco_timm import UserError, distill
from meco_timm.networks import is_foreign, student_stream, teacher_stream, wrap_teacher
from meco_timm.recipe import Alignment, Network, Teacher

ALIGNMENT = Alignment(blocks=2)
CLASSES = ["circle", "cross", "dash"]
IMAGES = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
NAME = "torchvision:shufflenet_v2_x0_5@IMAGENET1K_V1"


@pytest.fixture(scope="module")
def of_torchvision(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A network with random weights, and its file."""
    torch.manual_seed(0)
    network = models.shufflenet_v2_x0_5(weights=None).eval()
    file = tmp_path_factory.mktemp("torchvision") / "weights.pth"
    torch.save(network.state_dict(), file)
    return network, file


@pytest.fixture(scope="module")
def of_transformers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A classifier with random weights and its image processor, saved as the library saves them."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    labels = dict(enumerate(["dash", "circle", "cross"]))
    config = transformers.ViTConfig(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        **{"image_size": 48, "patch_size": 8, "id2label": labels, "label2id": {name: i for i, name in labels.items()}},
    )
    network = transformers.ViTForImageClassification(config).eval()
    folder = tmp_path_factory.mktemp("transformers") / "vit"
    network.save_pretrained(folder)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    size = {"height": 48, "width": 48}
    transformers.ViTImageProcessor(size=size, image_mean=mean, image_std=std).save_pretrained(folder)
    return network, folder


@torch.no_grad()
def test_torchvisions_weights_see_images_as_their_transforms_make_them(of_torchvision):
    network, file = of_torchvision
    names = [f"class {i}" for i in range(1000)]
    stream = teacher_stream(Teacher(model=NAME, weights=str(file)), ALIGNMENT, names).eval()
    assert stream.size == 224
    assert stream.taps == []
    image = torch.nn.functional.interpolate(IMAGES / 255, (224, 224), mode="bilinear", antialias=True)
    shown = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (shown.mean, shown.std))
    torch.testing.assert_close(stream.logits(IMAGES), network((image - mean) / std))


def test_torchvisions_classes_are_imagenets(of_torchvision):
    teacher = Teacher(model=NAME, weights=str(of_torchvision[1]))
    stream = teacher_stream(teacher, ALIGNMENT, ["n01443537", "n01440764"])  # goldfish, tench
    assert stream.class_map.tolist() == [1, 0]


@torch.no_grad()
def test_a_classifier_of_transformers_is_what_its_own_library_gives(of_transformers):
    network, folder = of_transformers
    stream = teacher_stream(Teacher(model=f"transformers:{folder}"), ALIGNMENT, CLASSES).eval()
    from torchvision.transforms.functional import to_pil_image
    from transformers import AutoImageProcessor

    images = list(IMAGES[:, :, :48, :48])
    pixels = AutoImageProcessor.from_pretrained(folder)([to_pil_image(i) for i in images], return_tensors="pt")
    own = network(**pixels).logits
    torch.testing.assert_close(stream.logits(torch.stack(images)), own[:, [1, 2, 0]], rtol=1e-4, atol=1e-5)
    assert (stream.size, stream.taps) == (48, [])


@torch.no_grad()
def test_a_live_classifier_of_transformers_is_the_same(of_transformers, caplog):
    import transformers

    _, folder = of_transformers
    live = transformers.AutoModelForImageClassification.from_pretrained(folder)
    named = teacher_stream(Teacher(model=f"transformers:{folder}"), ALIGNMENT, CLASSES).eval()
    torch.testing.assert_close(
        wrap_teacher(live, Teacher(model="mine"), ALIGNMENT, CLASSES).logits(IMAGES), named.logits(IMAGES)
    )
    assert "ImageNet's" not in caplog.text  # its image processor was found beside its weights


def test_a_classifier_without_image_processor_is_normalised_as_imagenet_which_is_a_warning(of_transformers, caplog):
    network, _ = of_transformers
    assert not network.name_or_path
    wrap_teacher(network, Teacher(model="mine", size=48), ALIGNMENT, CLASSES)
    assert "mine has no pretrained_cfg: its images get ImageNet's mean and std" in caplog.text


@torch.no_grad()
def test_a_timm_checkpoint_in_transformers_gives_blocks_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(architecture="test_resnet", num_labels=3, id2label=dict(enumerate(CLASSES)))
    live = transformers.TimmWrapperForImageClassification(config).eval()
    stream = wrap_teacher(live, Teacher(model="mine", size=64), ALIGNMENT, CLASSES).eval()
    blocks, _, logits = stream(IMAGES)
    assert len(blocks) == 2
    torch.testing.assert_close(logits, live(stream.prepare(IMAGES)).logits)


REFUSED = {
    "torchvision:resnet5@IMAGENET1K_V1": "torchvision has no classifier 'resnet5'. Did you mean 'resnet50'",
    "torchvision:resnet50": "torchvision's resnet50 is named without its weights. Write torchvision:resnet50@IMAGENET1",
    "torchvision:resnet50@IMAGENET1K_V3": "torchvision's resnet50 has no weights 'IMAGENET1K_V3'. Did you mean",
    "transformers:nobody/none": "transformers:nobody/none cannot be loaded: We couldn't connect to",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_is_not_there(name):
    if name.startswith("transformers:"):
        pytest.importorskip("transformers")
    assert is_foreign(name)
    with pytest.raises(UserError) as error:
        teacher_stream(Teacher(model=name), ALIGNMENT, CLASSES, weightless=True)
    assert f"teachers.0: {REFUSED[name]}" in str(error.value)


def test_they_only_teach_and_give_logits_only(of_torchvision):
    with pytest.raises(
        UserError, match=r"student: torchvision:\S+ is not a timm network, so it cannot be trained here"
    ):
        student_stream(Network(model=NAME), ALIGNMENT, 3, 64, weightless=True)
    with pytest.raises(UserError, match=r"teachers.0: \S+ has no forward_intermediates, so it gives logits only"):
        teacher_stream(Teacher(model=NAME, gives="blocks"), ALIGNMENT, CLASSES, weightless=True)


def test_weights_of_another_network_are_refused(of_torchvision):
    other = Teacher(model="torchvision:squeezenet1_1@IMAGENET1K_V1", weights=str(of_torchvision[1]))
    with pytest.raises(UserError, match=r"teachers.0.weights: \S+ does not fit: Error"):
        teacher_stream(other, ALIGNMENT, CLASSES)


def test_without_the_library_its_name_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs a library that is not installed: pip install transformers"):
        teacher_stream(Teacher(model="transformers:a/b"), ALIGNMENT, CLASSES)


def test_an_ensemble_of_three_libraries_is_rehearsed(of_torchvision, of_transformers, recipe, tmp_path, monkeypatch):
    """All parts of a run, with random weights in place of torchvision's own."""
    monkeypatch.setattr("meco_timm.reporting.drawing.Chart.svg", lambda self: "")
    monkeypatch.setattr("meco_timm.reporting.drawing.Chart.png", lambda self: b"")
    others = [{"model": NAME, "classes": [7, 8, 9], "size": 64}, f"transformers:{of_transformers[1]}"]
    rows = distill(recipe, limit_steps=1, teachers=[{"train": "test_vit"}, *others])
    assert [row.name for row in rows][:3] == ["test_vit", NAME.removeprefix("torchvision:"), "vit"]
    assert rows[1].parameters == sum(p.numel() for p in of_torchvision[0].parameters())
