"""The task inside timm's loop: its losses are those of our own loop, and it keeps the contract of timm's tasks."""

import copy
from typing import Any

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT
from helpers import task_processes
from helpers.launch import finished, launch
from helpers.timm_loop import (
    CLASSES,
    CONFIG,
    LR,
    OPTIMIZER,
    accelerator,
    batches_of,
    image_of,
    network,
    own_loop,
    own_training,
    recipe,
    recorded,
    timm_loop,
)
from helpers.zoos import teacher_streams, zoo_of
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.task import resume_task_checkpoint
from timm.utils import CheckpointSaver

from meco_timm import load_recipe
from meco_timm.common import UserError, batch_seed, reseed, student_seed
from meco_timm.data import Steps, load_data
from meco_timm.distillation import Distiller
from meco_timm.networks import student_stream, wrap_student
from meco_timm.recipe import Teacher
from meco_timm.runs import as_recipe
from meco_timm.task import EnsembleDistillation
from meco_timm.training import Job, Teaching, Training
from meco_timm.zoo import DeviceContext
from meco_timm.zoo.teachers import recipe_entries

FULL = {
    "alignment": {"blocks": 2, "teachers": "all"},
    "losses": {"labels": 0.5},
    "discriminators": {"adversary": "minimax", "on": "all"},
}
CNN, VIT = "test_resnet", "test_vit"


@pytest.fixture(autouse=True)
def _new_accelerators():
    yield
    AcceleratorState._reset_state(True)


def task_of(student: Any, teachers: Any, **options: Any) -> EnsembleDistillation:
    return EnsembleDistillation(student, teachers, data_config=CONFIG, **options)


def twin(task: EnsembleDistillation, name: str, teachers: list[Any], amp: bool = False, **sections: Any) -> Any:
    """Our own loop with the same networks and the same initial projections and discriminators."""
    settings = recipe(**sections)
    entries, live = recipe_entries(teachers)
    settings = settings.model_copy(update={"teachers": [Teacher.model_validate(entry) for entry in entries]})
    device = accelerator(amp)
    zoo = zoo_of(teacher_streams(settings, ["0", "1", "2"], live), settings, device)
    student = wrap_student(network(name, 1), settings.alignment, CONFIG)
    return own_training(student, zoo, settings, device, task.trainable_module)


def assert_equal(found: list[dict[str, float]], wanted: list[dict[str, float]], limit: float = 1e-5) -> None:
    assert len(found) == len(wanted) > 0
    for step, (mine, other) in enumerate(zip(found, wanted, strict=True)):
        assert mine.keys() == other.keys()
        for name, value in other.items():
            assert mine[name] == pytest.approx(value, rel=limit, abs=limit), (step, name)


# The losses are those of our own loop


@pytest.mark.parametrize(("student", "teacher"), [(CNN, VIT), (VIT, CNN)])
@pytest.mark.parametrize("sampling", ["random", "average"])
def test_losses_of_a_step_are_those_of_our_own_loop(shapes, student, teacher, sampling):
    """On images of timm's loader, normalised with other numbers than the teachers'; ours gets their bytes."""
    batches = batches_of(shapes / "train", 3)
    zoo = {"sampling": sampling}
    task = task_of(network(student, 1), [network(teacher), network(student, 2)], zoo=zoo, **FULL)
    own = twin(task, student, [network(teacher), network(student, 2)], zoo=zoo, **FULL)
    found = timm_loop(task, batches)
    images = [((image_of(input) * 255).round().to(torch.uint8), target) for input, target in batches]
    assert_equal(found[:1], own_loop(own, images)[:1])
    assert task.step == 3
    assert {"similarity/logits", "similarity/1", "labels", "adversary/0", "adversary/logits"} < found[0].keys()


@pytest.mark.parametrize(("student", "teacher"), [(CNN, VIT), (VIT, CNN)])
def test_a_whole_training_is_that_of_our_own_loop(shapes, student, teacher):
    """timm's documented loop: mixup, AMP in bfloat16, accumulated gradients, moving average."""
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=CLASSES, label_smoothing=0.1)
    batches = batches_of(shapes / "train", 8, mixup)
    zoo = {"sampling": "average"}  # the parts of a step draw their own teachers in the task
    task = task_of(network(student, 1), [network(teacher), network(student, 2)], zoo=zoo, **FULL)
    loop = {"accumulation": 2, "ema": 0.9}
    own = twin(task, student, [network(teacher), network(student, 2)], amp=True, zoo=zoo, loop=loop, **FULL)
    task.setup_ema(decay=0.9)
    found = timm_loop(task, batches, accumulation=2, amp=True)
    wanted = own_loop(own, [(image_of(input), target) for input, target in batches])
    assert_equal(found, wanted)
    for mine, other in (
        (task.get_eval_model(), own.state.student.model),
        (task.get_eval_model(ema=True), own.state.ema.module.model),
    ):
        for name, value in other.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_on_the_digits_both_loops_reach_the_same_student(tmp_path):
    """50 steps of the quickstart with the same seeds, from the images as timm normalises them and as bytes."""
    plain = {"steps": 50, "batch_size": 32, "validations": 1, "lr": LR, "schedule": "none", "clip_grad": "null"}
    overrides = [f"loop.{key}={value}" for key, value in plain.items()] + ["data.workers=0"]
    settings = load_recipe(ROOT / "recipes/quickstart.yaml", [*overrides, f"discriminators.lr={LR}"])
    names, seed = ["test_resnet", "test_efficientnet", "test_vit"], student_seed(settings.seed)
    data = load_data(settings.data, settings.seed)
    student = student_stream(settings.student, settings.alignment, 10, 32, seed=seed)
    model, config = copy.deepcopy(student.model), {"input_size": (3, 32, 32)}
    task = EnsembleDistillation(model, teachers_of(names), recipe=settings, data_config=config)
    device = accelerator()
    reseed(seed, "discriminators")
    objective = Distiller(student, settings.method, 10, task.teachers.block_shapes)
    job = Job("student", tmp_path, settings.loop, data, data.train, 50, seed)
    own = Training(objective, job, device, Teaching(task.teachers.targets))
    wanted = recorded(own)
    final = own.run()
    batches = data.batches(data.train, Steps(32, batch_seed(settings.seed), 0, 50))
    normalised = [((batch.image / 255 - student.mean) / student.std, batch.label) for batch in batches]
    found = timm_loop(task, normalised)
    assert_equal(found, wanted, 5e-5)  # rounding differences grow with AdamW
    for name, value in final.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-4, msg=name)


def teachers_of(names: list[str]) -> list[Any]:
    return [network(name, i, 10) for i, name in enumerate(names)]


def test_a_teacher_sees_images_in_its_own_normalisation(shapes):
    """The teacher alone, fed by hand with its own mean and std; the student's images have others."""
    (input, target), teacher = batches_of(shapes / "train", 1)[0], network(VIT)
    assert teacher.pretrained_cfg["mean"] != CONFIG["mean"]
    task = task_of(network(CNN, 1), teacher, alignment={"blocks": 0}, losses={"similarity": "kl", "temperature": 1.0})
    result = task.train()(input, target)
    with torch.no_grad():
        p = teacher.eval()(image_of(input) * 2 - 1).log_softmax(1)
    wanted = (p.exp() * (p - result["output"].log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(result["loss"], wanted, rtol=1e-5, atol=1e-5)


def test_a_recipe_with_objects_keeps_them(shapes):
    """Its teachers are modules, its similarity a function."""
    (batch,) = batches_of(shapes / "train", 1)
    teacher = network(CNN, 2)

    def zero(of_teacher: torch.Tensor, of_student: torch.Tensor) -> torch.Tensor:
        return 0 * of_student.sum()

    settings = as_recipe(recipe(alignment={"blocks": 0}), teachers=[teacher], similarity=zero)
    task = EnsembleDistillation(network(VIT, 1), recipe=settings, data_config=CONFIG).train()
    assert task(*batch)["loss"] == 0
    assert not teacher.training


def test_a_teacher_with_other_classes_is_mapped_by_name_or_by_number(shapes):
    (batch,) = batches_of(shapes / "train", 1)
    names, order = ["dash", "circle", "ring", "cross", "dot"], [1, 3, 0]

    def loss(**settings: Any) -> float:
        teacher = network(CNN, 2, classes=5)
        teacher.pretrained_cfg |= {"label_names": names}
        given = {"model": teacher, **settings.pop("teacher", {})}
        task = task_of(network(VIT, 1), given, alignment={"blocks": 0}, losses={"similarity": "kl"}, **settings)
        return task.train()(*batch)["loss"].item()

    class Chosen(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(CNN, 2, classes=5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)[:, order]

    config = {key: network(CNN).pretrained_cfg[key] for key in ("mean", "std", "interpolation")}
    by_hand = {"model": Chosen(), "size": 160, **config}
    wanted = task_of(network(VIT, 1), by_hand, alignment={"blocks": 0}, losses={"similarity": "kl"}).train()(*batch)
    assert loss(classes=["circle", "cross", "dash"]) == pytest.approx(wanted["loss"].item(), rel=1e-5)
    assert loss(teacher={"classes": order}) == pytest.approx(wanted["loss"].item(), rel=1e-5)


def test_a_zoo_and_a_recipe_give_the_same_losses(shapes):
    batches, settings = batches_of(shapes / "train", 3), recipe(**FULL)
    teachers = [network(VIT), network(CNN, 2)]
    entries, live = recipe_entries(teachers)
    settings = settings.model_copy(update={"teachers": [Teacher.model_validate(entry) for entry in entries]})
    zoo = zoo_of(teacher_streams(settings, ["0", "1", "2"], live), settings, DeviceContext(torch.device("cpu")))
    by_sections = timm_loop(task_of(network(CNN, 1), [network(VIT), network(CNN, 2)], **FULL), batches)
    assert timm_loop(task_of(network(CNN, 1), zoo, recipe=settings), batches) == by_sections
    by_recipe = task_of(network(CNN, 1), [network(VIT), network(CNN, 2)], recipe=settings)
    assert timm_loop(by_recipe, batches) == by_sections


# timm's contract


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(shapes, tmp_path):
    """Checkpoint by timm's saver, resumed by timm's function: the same losses, so also the same drawn teachers."""
    batches = batches_of(shapes / "train", 6)
    torch.save(network(CNN, 1).state_dict(), tmp_path / "start.pt")

    def start() -> tuple[EnsembleDistillation, torch.optim.Optimizer]:
        task = task_of(network(CNN, 1), [network(VIT), network(CNN, 2), network("test_efficientnet")], seed=3, **FULL)
        return task, create_optimizer_v2(task, **OPTIMIZER)

    task, optimizer = start()
    wanted = timm_loop(task, batches, optimizer)
    task, optimizer = start()
    timm_loop(task, batches[:3], optimizer)
    saver = CheckpointSaver(task.student.model, optimizer, task=task, checkpoint_dir=tmp_path, recovery_dir=tmp_path)
    saver.save_checkpoint(0, metric=1.0)
    task, optimizer = start()
    resume_task_checkpoint(task, tmp_path / "last.pth.tar", optimizer)
    assert task.step == 3
    assert timm_loop(task, batches[3:], optimizer) == wanted[3:]


def test_the_checkpoint_is_the_students_alone_and_loads_into_plain_timm(shapes):
    task = task_of(network(CNN, 1), network(VIT), **FULL)
    task.setup_ema(decay=0.5)
    timm_loop(task, batches_of(shapes / "train", 2))
    for ema, key in ((False, "state_dict"), (True, "state_dict_ema")):
        state = task.get_checkpoint_state(ema=ema)
        network(CNN).load_state_dict(state[key])  # strict
        assert state[key].keys() == network(CNN).state_dict().keys()
    assert not any(name.startswith("teachers") for name in task.state_dict())
    other = task_of(network(CNN, 5), network(VIT), **FULL)
    other.setup_ema()
    other.load_task_state(task.get_task_state(ema=True), ema=True)
    first, second = (t.get_trainable_module(ema=True).module.projections.state_dict() for t in (task, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert other.step == 0
    other.load_task_state(None)  # of a checkpoint without one


def test_the_optimizer_has_all_that_is_trained_and_no_teacher():
    task = task_of(network(VIT, 1), network(CNN), **FULL)
    (free, decayed) = create_optimizer_v2(task, **OPTIMIZER).param_groups
    names = {id(p): name for name, p in task.named_parameters()}
    assert len(names) == len(free["params"]) + len(decayed["params"])
    assert all(names[id(p)].startswith("trainable_module.student.model.") for p in decayed["params"])
    exempt = {names[id(p)] for p in free["params"]}
    assert {f"trainable_module.student.model.{name}" for name in network(VIT).no_weight_decay()} & exempt
    assert {name for name in names.values() if ".projections." in name or ".discriminators." in name} <= exempt
    module = task.get_trainable_module()
    groups = create_optimizer_v2(module, **OPTIMIZER).param_groups
    assert [[id(p) for p in group["params"]] for group in groups] == [
        [id(p) for p in group["params"]] for group in (free, decayed)
    ]


def test_layer_wise_rates_are_the_students_and_the_rest_has_the_highest():
    task, plain = task_of(network(VIT, 1), network(CNN), **FULL), network(VIT, 1)

    def scales(module: Any) -> dict[str, float]:
        groups = create_optimizer_v2(module, "sgd", lr=0.1, layer_decay=0.5).param_groups
        names = {id(p): name for name, p in module.named_parameters()}
        return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}

    found, prefix = scales(task), "trainable_module.student.model."
    assert {name.removeprefix(prefix): s for name, s in found.items() if name.startswith(prefix)} == scales(plain)
    assert {s for name, s in found.items() if not name.startswith(prefix)} == {1.0}


def test_clipping_sees_all_that_is_trained():
    task = task_of(network(CNN, 1), network(VIT), **FULL)
    everything = {id(p) for p in task.parameters()}
    assert {id(p) for p in task.get_clip_parameters()} == everything
    head = network(CNN).get_classifier()
    assert len(task.get_clip_parameters(exclude_head=True)) == len(everything) - len(list(head.parameters()))


def test_train_and_eval_leave_the_teachers_frozen_and_only_training_counts_steps(shapes):
    teacher = network(CNN)
    task = task_of(network(VIT, 1), teacher)
    (batch,) = batches_of(shapes / "train", 1)
    task.train()
    assert task.student.training
    assert not any(module.training for stream in task.teachers.streams.values() for module in stream.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    task(*batch)["loss"].backward()
    assert task.eval()(*batch)["output"].shape == (8, CLASSES)
    assert task.step == 1


def test_unused_parts_have_a_gradient(shapes, tmp_path):
    """DistributedDataParallel, which wants a gradient of every parameter; here with one process."""
    batches = batches_of(shapes / "train", 4)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        made = [task_of(network(CNN, 1), [network(VIT), network(CNN, 2)], **FULL) for _ in range(2)]
        optimizers = [create_optimizer_v2(task, **OPTIMIZER) for task in made]
        assert made[1].prepare_distributed() is made[1]
        with made[1].no_sync():
            pass
        plain, distributed = (timm_loop(task, batches, o) for task, o in zip(made, optimizers, strict=True))
        assert distributed == plain
        assert made[1].get_checkpoint_state()["state_dict"].keys() == network(CNN).state_dict().keys()
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_take_the_steps_of_one(shapes, tmp_path):
    """Halves of the same batches: the same drawn teachers, mean losses and student."""
    out = tmp_path / "two.pt"
    task_processes.main(str(shapes / "train"), str(tmp_path / "one.pt"))
    finished(launch(str(shapes / "train"), str(out), processes=2, program="task"))
    two, one = (torch.load(tmp_path / name, weights_only=True) for name in ("two.pt", "one.pt"))
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-5, atol=2e-5)
    for name, value in one["student"].items():
        torch.testing.assert_close(two["student"][name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.filterwarnings("error:Dynamo detected a call to a `functools.lru_cache`")
def test_compiled_networks_give_the_same_losses_and_a_clean_checkpoint(shapes):
    batches = batches_of(shapes / "train", 2)
    plain, compiled = (task_of(network(CNN, 1), [network(VIT), network(CNN, 2)], **FULL) for _ in range(2))
    student = compiled.compile(backend="aot_eager")
    assert student is compiled.get_eval_model()
    assert_equal(timm_loop(compiled, batches), timm_loop(plain, batches))
    assert compiled.get_checkpoint_state()["state_dict"].keys() == network(CNN).state_dict().keys()


def test_a_conversion_moves_the_student_and_its_images(shapes):
    task = task_of(network(CNN, 1), network(VIT), **FULL).train().to(torch.bfloat16)
    (batch,) = batches_of(shapes / "train", 1)
    assert task(*batch)["output"].dtype == torch.bfloat16
    assert task.dtype == torch.bfloat16


def test_making_a_task_leaves_the_callers_random_numbers_alone():
    student, teacher = network(CNN, 1), network(VIT)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    task_of(student, teacher, **FULL)
    assert torch.equal(torch.rand(3), wanted)


def test_a_grey_student_gives_its_teachers_three_equal_channels(shapes):
    input, target = batches_of(shapes / "train", 1)[0]
    student = timm.create_model(CNN, num_classes=CLASSES, in_chans=1)
    config = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}
    task = EnsembleDistillation(student, network(CNN), data_config=config)
    grey = image_of(input).mean(1, keepdim=True) * 2 - 1
    assert task.train()(grey, target)["loss"].isfinite()


def test_a_headless_student_becomes_a_backbone(shapes):
    """By blocks and embeddings of teachers with and without a head; targets are not looked at."""
    teachers = [timm.create_model("test_vit", num_classes=0, img_size=32), network("test_resnet", 2)]
    task = EnsembleDistillation(
        timm.create_model("test_efficientnet", num_classes=0), teachers, alignment={"blocks": 2}, data_config=CONFIG
    ).train()
    image, wrong = torch.randn(6, 3, *CONFIG["input_size"][1:]), torch.full((6,), 1000)
    optimizer = create_optimizer_v2(task, "adamw", lr=1e-2)
    losses = []
    for _ in range(12):
        found = task(image, wrong)
        found["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(found["loss"].item())
    assert found["output"].shape == (6, 256)
    assert {"similarity/embedding", "similarity/0", "similarity/1"} < found.keys()
    assert sum(losses[-3:]) < sum(losses[:3])
    kept = task.get_task_state()["embedding_projections"]
    assert kept["0.deviation"].std() > 0
    with pytest.raises(UserError, match=r"losses\.logits is for classifiers"):
        EnsembleDistillation(timm.create_model("test_vit", num_classes=0), teachers, losses={"logits": 1.0})
