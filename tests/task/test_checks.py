"""Bad input to the task: what is wrong, where, and what to write instead."""

import copy
from typing import Any

import pytest
import torch
from helpers.timm_loop import CONFIG, network, recipe
from helpers.zoos import teacher_streams, zoo_of
from torch import Tensor, nn

from meco_timm.common import UserError
from meco_timm.recipe.recipe import Recipe
from meco_timm.task import EnsembleDistillation
from meco_timm.zoo import DeviceContext, Zoo
from meco_timm.zoo.teachers import recipe_entries

INPUT = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 4 - 2
TARGET = torch.tensor([0, 1, 2, 0])
LOGITS = {"alignment": {"blocks": 0}}


def task(teachers: Any = None, student: Any = None, **options: Any) -> EnsembleDistillation:
    teachers = network("test_vit") if teachers is None else teachers
    made = EnsembleDistillation(student or network("test_resnet"), teachers, data_config=CONFIG, **options)
    return made.train()


def settings_of_zoo() -> Recipe:
    return recipe(**LOGITS).model_copy(update={"teachers": recipe(**LOGITS).teachers[:1]})


def zoo(classes: int = 3) -> Zoo:
    entries, live = recipe_entries(network("test_vit", classes=classes))
    settings = settings_of_zoo()
    assert entries == ["test_vit"] or entries[0]["model"] == "test_vit"
    streams = teacher_streams(settings, [str(i) for i in range(classes)], live)
    return zoo_of(streams, settings, DeviceContext(torch.device("cpu")))


class Wrapped(nn.Module):
    """Gives what `wrap` makes of a network's logits."""

    def __init__(self, wrap: Any):
        super().__init__()
        self.inner, self.wrap = network("test_resnet"), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.inner(x))


class TwoHeads(type(network("test_resnet"))):  # type: ignore[misc]
    """A timm network whose head gives two logits in training, as timm's distilled DeiT."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        logits = super().forward_head(x, pre_logits)
        return (logits, logits) if self.training else logits


def two_heads() -> Any:
    model = network("test_resnet")
    model.__class__ = TwoHeads
    return model


def shared() -> EnsembleDistillation:
    student = network("test_resnet")
    return task(student, student)


def with_store() -> EnsembleDistillation:
    made: Any = zoo()
    made.store = object()
    return task(made, recipe=settings_of_zoo())


def of_a_recipe_that_trains() -> EnsembleDistillation:
    settings = recipe(**LOGITS)
    settings.teachers[0].train = True
    return EnsembleDistillation(network("test_resnet"), recipe=settings, data_config=CONFIG)


MAKING = [
    (
        lambda: task(losses={"label": 1.0}),
        "EnsembleDistillation: losses.label: there is no such key. Did you mean 'labels'",
    ),
    (lambda: task(alignment={"method": "grit"}), "alignment.method: 'grit' is not a value of this key"),
    (lambda: task(zoo={"samplng": "average"}), "zoo.samplng: there is no such key. Did you mean 'sampling'?"),
    (lambda: task({"model": network("test_vit"), "givs": "logits"}), "teachers.0.givs: there is no such key."),
    (lambda: task(discriminators={"lr": 1e-3}), "discriminators.lr: not used by a task: the optimizer is yours"),
    (lambda: task(zoo={"loop": {"steps": 3}}), "zoo.loop: not used by a task"),
    (lambda: task(zoo={"calibrate": True}), "a task has no validation images to fit temperatures or weights on"),
    (lambda: task(zoo={"weights": "validation"}), "Write zoo.weights as a list with a number for each teacher"),
    (lambda: task(zoo={"weights": [1.0, 2.0, 3.0]}), "zoo.weights has 3 numbers for 1 teachers"),
    (lambda: task(losses=3), "losses: input should be"),
    (lambda: task([]), "teachers: the list of teachers is empty"),
    (lambda: task([3]), "teachers.0: int is no teacher. Give a timm name, a module, or a dict with model"),
    (lambda: task("resnt50.a1_in1k"), "teachers.0: timm has no model 'resnt50.a1_in1k'. Did you mean"),
    (lambda: EnsembleDistillation(network("test_resnet")), "the list of teachers is empty"),
    (lambda: task(network("test_vit", classes=5)), "teachers.0: the network has 5 classes"),
    (lambda: task(Wrapped(lambda z: (z, z)), **LOGITS), "teachers.0: Wrapped gives a tuple instead of logits"),
    (lambda: task(Wrapped(lambda z: {"out": z}), **LOGITS), "teachers.0: Wrapped gives a dict (out) instead of logits"),
    (lambda: task(student=Wrapped(lambda z: z)), "student: Wrapped is not a timm network"),
    (lambda: task(classes=["a", "b"]), "classes: 2 names, but the student has 3 classes"),
    (shared, "teachers.0: it shares weights with the student. Pass a copy"),
    (lambda: task(zoo(), losses={"labels": 1.0}), "losses: written beside a Zoo, which has its own"),
    (lambda: task(zoo(), classes=["a", "b", "c"]), "classes: written beside a Zoo, which has its own"),
    (lambda: task(recipe=recipe(**LOGITS), seed=1), "seed: written beside a recipe, which has its own"),
    (
        lambda: task(zoo(5), recipe=settings_of_zoo()),
        "has 5 classes, the student 3. Create the student with num_classes=5",
    ),
    (with_store, "teachers: a Zoo with a store finds outputs by image and view"),
    (of_a_recipe_that_trains, "teachers.0: test_vit has to be trained first"),
]


@pytest.mark.parametrize(("make", "message"), MAKING)
def test_what_is_refused_before_the_first_step(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)


STEPS = [
    ({"patches": INPUT}, TARGET, "input: dict, but a task takes images, one tensor B×3×H×W"),
    (INPUT, torch.tensor([0, 1, 7, 0]), "target: class 7, but the student has 3 classes, 0 to 2"),
    (INPUT, torch.rand(4, 5), "target: shares of 5 classes, but the student has 3. Create it with num_classes=5"),
    (INPUT, TARGET[:2], "target: of 2 images, but the input has 4"),
    (torch.rand(4, 3, 48, 48), TARGET, "input: 4 × 3 × 48 × 48, but the student's images are 32 × 32"),
]


@pytest.mark.parametrize(("input", "target", "message"), STEPS)
def test_what_a_step_refuses(input, target, message):
    with pytest.raises(UserError) as error:
        task(**LOGITS)(input, target)
    assert message in str(error.value)


def test_a_student_that_gives_a_tuple_in_training_is_refused():
    with pytest.raises(UserError, match="student: test_resnet gives a tuple instead of logits"):
        task(student=two_heads())(INPUT, TARGET)


@pytest.mark.parametrize(
    ("input", "message"),
    [
        (INPUT * 60 + 120, "its values are"),
        (INPUT / 4 + 0.5, "It looks as if it were not normalised."),
        (INPUT * 2, "but mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225 allow -2.12 to 2.64"),
    ],
)
def test_images_that_are_not_normalised_as_announced_are_a_warning_once(caplog, input, message):
    made = task(**LOGITS)
    for _ in range(3):
        made(input, TARGET)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert message in warnings[0]


def test_a_few_values_of_random_erasing_are_no_warning(caplog):
    made, erased = task(**LOGITS), INPUT.clone()
    erased[0, :, :8, :16] = torch.randn(3, 8, 16) * 3
    made(erased, TARGET)
    assert "WARNING" not in caplog.text


def test_a_teacher_in_train_mode_with_gradients_is_frozen_which_is_said_once(caplog):
    teacher = network("test_vit")
    task(teacher, **LOGITS)(INPUT, TARGET)["loss"].backward()
    assert caplog.text.count("test_vit (in train mode, with gradients, on cpu) is frozen") == 1
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    task(copy.deepcopy(teacher), **LOGITS)
    assert caplog.text.count("with gradients") == 1


def test_teachers_move_with_the_task():
    made = task(network("test_vit"), **LOGITS).to("meta")
    assert {t.device.type for stream in made.teachers.streams.values() for t in stream.parameters()} == {"meta"}


def test_a_checkpoint_of_other_teachers_or_another_method_is_refused():
    state = task(**LOGITS).get_task_state()
    with pytest.raises(UserError, match="teachers: test_vit: others, or with other weights, than in the checkpoint"):
        task(network("test_vit", 9), **LOGITS).load_task_state(state)
    with pytest.raises(UserError, match="alignment, discriminators: others than in the checkpoint"):
        task(alignment={"blocks": 2}).load_task_state(state)
    with pytest.raises(RuntimeError, match="after setup_ema"):
        task(**LOGITS).load_task_state(state, ema=True)


def test_offloaded_teachers_stay_on_their_device():
    teachers = [network("test_vit"), network("test_efficientnet")]
    made = task(teachers, zoo={"resident": 1}, **LOGITS)
    made(INPUT, TARGET)
    with pytest.raises(UserError, match=r"zoo\.resident: teachers are offloaded from cpu and cannot move to meta"):
        made.to("meta")
