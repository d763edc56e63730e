"""How a training computes: what `auto` chooses, compiled networks, and that a resumed run goes on as it began."""

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch._dynamo.utils import counters
from torch.nn.functional import layer_norm

from benchmarks.step import CLASSES, stepping, training_of, zoo_of
from meco_timm.common import UserError
from meco_timm.data import Batch
from meco_timm.distillation import Distiller, Targets, TeacherBlocks
from meco_timm.networks import student_stream
from meco_timm.recipe import Network, Recipe
from meco_timm.recipe.sections import Loop
from meco_timm.training import Training
from meco_timm.training.accelerator import Speed, _use_tensor_cores, choose_speed

B, SIZE = 4, 32
TEACHERS = ("test_resnet", "test_byobnet")
FORMS: dict[str, dict[str, Any]] = {
    "grid": {"alignment": {"blocks": 1, "method": "grid", "length": 32}, "losses": {"labels": 0.5}},
    "projection, another game, on logits too": {
        "alignment": {"blocks": 1},
        "discriminators": {"adversary": "non_saturating", "on": "all"},
    },
    "a backbone": {"task": "backbone", "alignment": {"blocks": 1, "embedding": "mlp"}},
}


@pytest.fixture
def dynamo():
    """Nothing compiled before and after, and no way back to Python where something cannot be compiled."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(suppress_errors=False, cache_size_limit=8, error_on_recompile=False):
        yield torch._dynamo
    torch._dynamo.reset()


def recipe_of(**changes: Any) -> Recipe:
    plain = {
        "data": {"source": "memory", "image_size": SIZE},
        "teachers": [{"model": name} for name in TEACHERS],
        "student": "test_resnet",
        "alignment": {"blocks": 1},
        "zoo": {"sampling": "random"},
        "loop": {"steps": 1000, "batch_size": B, "warmup": 0.0, "optimizer": "sgd", "lr": 0.01, "schedule": "none"},
    }
    return Recipe.model_validate(plain | changes)


def taught(**changes: Any) -> Training:
    """A training with two teachers before its first step, the same each time."""
    recipe = recipe_of(**changes)
    torch.manual_seed(0)
    student, *teachers = (timm.create_model(name, num_classes=CLASSES) for name in ("test_resnet", *TEACHERS))
    return training_of(student, zoo_of(teachers, recipe), recipe)


def batches(count: int) -> list[Batch]:
    images = torch.randint(0, 256, (count, B, 3, SIZE, SIZE), dtype=torch.uint8)
    return [Batch(image, torch.arange(B), torch.arange(B), torch.zeros(B)) for image in images]


def test_compiled_steps_are_the_same_and_drawn_teachers_compile_nothing_again(dynamo):
    data, plain, compiled = batches(3), taught(), taught()
    compiled.compile("eager")
    steps = [stepping(training, data) for training in (plain, compiled)]
    drawn = set()
    for i in range(9):
        with dynamo.config.patch(error_on_recompile=drawn == {"0", "1"}):
            expected, found = (step() for step in steps)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        drawn.add(compiled.teaching.targets.__self__._drawn(i))  # type: ignore[union-attr]
    assert drawn == {"0", "1"}
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1 + 1 + 2 + 2  # a sum, the student, teachers, losses of each
    for (name, p), q in zip(plain.state.module.named_parameters(), compiled.state.module.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-5, msg=name)


def test_steps_in_channels_last_are_the_same():
    data, last = batches(3), recipe_of().loop.model_dump(exclude_none=True) | {"channels_last": True}
    trainings = [taught(), taught(loop=last)]
    assert trainings[1].state.student.model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    steps = [stepping(training, data) for training in trainings]
    for _ in range(3):
        expected, found = (step() for step in steps)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    expected, found = (training.state.module.parameters() for training in trainings)
    for p, q in zip(expected, found, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_distiller_has_no_graph_break_and_the_same_gradients(dynamo, form):
    recipe = recipe_of(**FORMS[form])
    classes = 0 if recipe.is_backbone else CLASSES
    stream = student_stream(Network(model="test_resnet"), recipe.alignment, classes, SIZE)
    distiller = Distiller(stream, recipe.method, classes, [[(6, 2, 2)], [(8, 1, 1)]], [5, 7]).train()
    per_teacher = recipe.alignment.per_teacher
    block = torch.randn(B, *((8, 1, 1) if per_teacher else stream.block_shapes[0]))
    targets = Targets(
        [TeacherBlocks(1 if per_teacher else None, [layer_norm(block, block.shape[1:])])],
        {1: torch.randn(B, 7)} if recipe.is_backbone else {},
        torch.randn(B, classes) if classes else None,
    )
    compiled = torch.compile(distiller.forward, backend="aot_eager", fullgraph=True)
    (image, label, *_), trained = batches(1)[0], list(distiller.parameters())
    (losses, expected), (compiled_losses, found) = (
        (losses, torch.autograd.grad(losses["total"], trained))
        for losses in (forward(image, label, targets) for forward in (distiller, compiled))
    )
    torch.testing.assert_close(compiled_losses, losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_machine_without_a_compiler_computes_as_it_is_or_says_so(caplog):
    training = taught()
    training.compile("no such compiler")
    assert training.state.module.parts is None
    assert "loop.compile: networks are not compiled: " in caplog.text
    with pytest.raises(UserError, match=r"loop\.compile: networks cannot be compiled here: .* Write false"):
        taught(loop={"steps": 2, "compile": True}).compile("no such compiler")


# Choices


@pytest.mark.parametrize(
    ("model", "convolutional"),
    [("test_resnet", True), ("test_convnext", True), ("test_vit", False), ("swin_tiny_patch4_window7_224", False)],
)
def test_auto_is_chosen_by_device_precision_network_and_steps(model, convolutional):
    with torch.device("meta"):
        network = timm.create_model(model)
    auto = Loop()
    assert choose_speed(auto, 10**6, network, "cpu", "bf16") == Speed("cpu", "bf16", False, False)
    assert choose_speed(auto, 10_000, network, "cuda", "bf16") == Speed("cuda", "bf16", convolutional, True)
    assert choose_speed(auto, 9_999, network, "cuda", "no") == Speed("cuda", "no", False, False)
    written = Loop(channels_last=True, compile=True)
    assert choose_speed(written, 1, network, "cpu", "no") == Speed("cpu", "no", True, True)


@pytest.mark.parametrize(("precision", "expected"), [("bf16", ("high", True)), ("no", ("highest", False))])
def test_float32_stays_exact_unless_the_precision_is_mixed(monkeypatch, precision, expected):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not expected[1])
    before = torch.get_float32_matmul_precision()
    try:
        _use_tensor_cores(SimpleNamespace(device=torch.device("cpu"), mixed_precision=precision))  # type: ignore[arg-type]
        assert torch.get_float32_matmul_precision() == before
        _use_tensor_cores(SimpleNamespace(device=torch.device("cuda"), mixed_precision=precision))  # type: ignore[arg-type]
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == expected
    finally:
        torch.set_float32_matmul_precision(before)


# A resumed training


def saved(training: Training, step: int, **changes: Any) -> None:
    """Write a checkpoint as if it were of another device, precision or choice."""
    state = training.state
    state.step = step
    state.speed = state.speed._replace(**changes)
    state.save({})


def resumed(folder: Any, **changes: Any) -> Training:
    training = in_folder(folder, **changes)
    training.state.resume({})
    return training


def in_folder(folder: Any, **changes: Any) -> Training:
    training = taught(loop=recipe_of().loop.model_dump(exclude_none=True) | changes)
    training.state.checkpoints.folder = folder
    return training


def test_a_resumed_training_goes_on_as_it_began_unless_the_recipe_says_otherwise(tmp_path, caplog):
    saved(in_folder(tmp_path), 1, compiled=True)
    assert resumed(tmp_path).state.speed.compiled
    assert not resumed(tmp_path, compile=False).state.speed.compiled
    for step, last in ((2, True), (3, False)):  # where `auto` began with the one, and the recipe now says the other
        saved(in_folder(tmp_path), step, channels_last=last)
        found = resumed(tmp_path, channels_last=not last).state
        assert found.speed.channels_last is last
        assert found.student.model.conv1[0].weight.is_contiguous() is not last
    saved(in_folder(tmp_path), 4, device="cuda", channels_last=True)
    assert resumed(tmp_path).state.speed == Speed("cpu", "no", False, False)
    assert "student: began on cuda and goes on on cpu, with other rounding" in caplog.text
    saved(in_folder(tmp_path), 5, precision="bf16")
    with pytest.raises(UserError, match=r"student began in bf16 and would go on in no.*--mixed_precision bf16"):
        resumed(tmp_path)


def test_an_optimizers_state_has_the_memory_format_of_the_weights_it_belongs_to(tmp_path):
    """torch's fused kernels go through both in the order of their memory."""
    data, last, plain = batches(1), in_folder(tmp_path, channels_last=True), in_folder(tmp_path)
    for training in (last, plain):
        stepping(training, data)()
    saved(last, 1, device="cuda")
    found = resumed(tmp_path)
    for training in (plain, found):
        stepping(training, data)()
    for p, q in zip(plain.state.module.parameters(), found.state.module.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-5)
