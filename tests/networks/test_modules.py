"""Streams around networks that the caller already has: timm's give logits and blocks, any other module logits."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from meco_timm.common import UserError
from meco_timm.networks import Stream, student_stream, teacher_stream, wrap_student, wrap_teacher
from meco_timm.recipe import Alignment, Network, Teacher

ALIGNMENT = Alignment(blocks=2)
CLASSES = ["circle", "cross", "dash"]
CONFIG = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "input_size": (3, 32, 32)}


class Small(nn.Module):
    """A network of no library: only `forward`. `wrap` makes what it gives out of its logits."""

    def __init__(self, wrap: Any = None):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.body(x)) if self.wrap else self.body(x)


def timm_model(name: str, **args: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **args)


def images(size: int = 32) -> Tensor:
    return torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def teacher(module: nn.Module, config: dict[str, Any] | None = None, **settings: Any) -> Stream:
    return wrap_teacher(module, Teacher(model="mine", **settings), ALIGNMENT, CLASSES, config=config)


@torch.no_grad()
def assert_equal(found: Stream, wanted: Stream) -> None:
    a, b = found.eval()(images()), wanted.eval()(images())
    torch.testing.assert_close(a.logits, b.logits)
    assert len(a.blocks) == len(b.blocks) == 2
    for mine, other in zip(a.blocks, b.blocks, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_live_timm_network_is_the_stream_that_its_name_would_be(name):
    by_name = student_stream(Network(model=name), ALIGNMENT, 3, 32)
    live = timm_model(name, **({"img_size": 32} if name == "test_vit" else {}))
    live.load_state_dict(by_name.model.state_dict())
    assert_equal(wrap_student(live, ALIGNMENT, {"input_size": (3, 32, 32)}), by_name)
    assert wrap_student(live.train(), ALIGNMENT).training
    assert wrap_student(live, ALIGNMENT).size == (32 if name == "test_vit" else 160)  # its own


def test_a_live_teacher_is_the_stream_that_its_folder_would_be(tmp_path):
    live = timm_model("test_resnet")
    timm.models.save_for_hf(live, tmp_path, safe_serialization=True)
    folder = Teacher(model=f"local-dir:{tmp_path}", size=32)
    assert_equal(teacher(live, size=32), teacher_stream(folder, ALIGNMENT, CLASSES))


def test_a_module_with_only_forward_gives_logits_of_images_normalised_as_it_says(caplog):
    module = Small().eval()
    stream = teacher(module, CONFIG)
    blocks, _, logits = stream(images())
    mean, std = (torch.tensor(CONFIG[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(logits, module((images() / 255 - mean) / std))
    assert blocks == []
    assert stream.model.num_classes == 3
    assert "so it gives logits only" in caplog.text
    assert "ImageNet's" not in caplog.text


def test_a_module_without_pretrained_cfg_is_normalised_as_imagenet_and_this_is_a_warning(caplog):
    stream = teacher(Small(), size=32)
    torch.testing.assert_close(stream.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    assert "ImageNet's mean and std" in caplog.text


def test_a_teacher_in_train_mode_with_gradients_is_frozen_which_is_said_once(caplog):
    module = Small()
    teacher(module, CONFIG)
    assert caplog.text.count("(in train mode, with gradients, on cpu) is frozen") == 1
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    caplog.clear()
    teacher(module, CONFIG)
    assert "is frozen" not in caplog.text


def test_wrappers_of_torch_are_looked_through_and_others_are_kept():
    inner = timm_model("test_resnet")
    assert teacher(torch.nn.DataParallel(inner), size=32).model is inner
    assert teacher(torch.compile(inner), size=32).model is inner

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module):
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.module(x)

    with torch.no_grad():
        doubled = teacher(Wrapper(inner), CONFIG)(images())
        torch.testing.assert_close(doubled.logits, 2 * teacher(inner, CONFIG)(images()).logits)


def test_a_network_in_bfloat16_sees_images_in_it():
    stream = wrap_student(timm_model("test_resnet").bfloat16(), ALIGNMENT, {"input_size": (3, 32, 32)})
    assert stream(images()).logits.dtype == torch.bfloat16


REFUSED = [
    (lambda: teacher(Small(lambda z: (z, z)), CONFIG), "teachers.0: mine gives a tuple instead of logits, one tensor"),
    (lambda: teacher(Small(lambda z: {"logits": z}), CONFIG), "mine gives a dict (logits) instead of logits"),
    (lambda: teacher(Small(lambda z: z[:, :, None]), CONFIG), "mine gives a tensor of 3 dimensions"),
    (lambda: teacher(Small(), CONFIG, gives="blocks"), "mine has no forward_intermediates, so it gives logits only"),
    (lambda: teacher(nn.Linear(7, 3), CONFIG), "teachers.0.size: mine cannot take images of 32 × 32"),
    (lambda: teacher(Small(), CONFIG | {"input_size": (3, 32, 48)}), "images of 32 × 48 are not square"),
    (lambda: teacher(timm.create_model("test_resnet", num_classes=5)), "the network has 5 classes"),
    (lambda: wrap_student(Small(), ALIGNMENT), "student: Small is not a timm network: it has no forward_intermediates"),
    (lambda: wrap_student(timm.create_model("test_resnet", num_classes=0), ALIGNMENT), "has no head to classify with"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_is_refused(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)
