"""Training: equal to a loop written out, the same after an interruption, and with the best weights at the end."""

import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import tree
from torch import Tensor, nn

from meco_timm.common.errors import UserError
from meco_timm.common.randomness import derive
from meco_timm.data.loading import Batch, DataSource, load_data
from meco_timm.data.views import Steps
from meco_timm.distillation import Distiller, Supervised, Targets, TeacherBlocks
from meco_timm.networks.streams import Stream, student_stream
from meco_timm.recipe.networks import Network
from meco_timm.recipe.recipe import Alignment, Recipe
from meco_timm.recipe.sections import Data, Loop
from meco_timm.training import Job, Teaching, Training, total_steps
from meco_timm.training.metrics import MetricLines
from meco_timm.training.optimizers import make_optimizer, make_schedule
from meco_timm.training.step import TrainingStep

LOGITS = Alignment(blocks=0)
CHANNELS_LAST = torch.channels_last
PLAIN = {"optimizer": "momentum", "momentum": 0.0, "weight_decay": 0.0, "schedule": "none", "clip_grad": None}


@pytest.fixture(scope="module")
def data(shapes: Path) -> DataSource:
    augmentation: Any = {"scale": [0.5, 1.0], "hflip": 0.5}
    settings = {"source": str(shapes), "image_size": 32, "workers": 0, "validation": 0.25, "augmentation": augmentation}
    return load_data(Data.model_validate(settings), 0)


def loop(**changes: Any) -> Loop:
    return Loop.model_validate({"steps": 4, "batch_size": 8, "lr": 0.01, "validations": 4, "log_every": 1} | changes)


def stream(name: str = "test_resnet", alignment: Alignment = LOGITS) -> Stream:
    return student_stream(Network(model=name), alignment, 3, 32, seed=1)


def training(folder: Path, data: DataSource, settings: Loop, name: str = "test_resnet", **options: Any) -> Training:
    folder.mkdir(parents=True, exist_ok=True)
    objective = options.pop("objective", None) or Supervised(stream(name), settings.label_smoothing)
    job = Job("test", folder, settings, data, data.train, settings.steps or 0, seed=7)
    teach = options.pop("teach", None)
    return Training(objective, job._replace(**options), Accelerator(), Teaching(teach) if teach else None)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the measured speed."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("images_per_s", "data_wait")} for line in lines]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# What a step does


def test_a_run_is_the_loop_written_out(tmp_path, data):
    """Plain gradient descent on cross-entropy over the same batches, by hand."""
    settings = loop(**PLAIN, steps=3, validations=1)
    found = state(training(tmp_path, data, settings).run().model)
    by_hand = stream()
    by_hand.train()
    for batch in data.batches(data.train, Steps(8, derive(7, "batches"), 0, 3)):
        loss = nn.functional.cross_entropy(by_hand.model((batch.image / 255 - by_hand.mean) / by_hand.std), batch.label)
        for p, g in zip(by_hand.parameters(), torch.autograd.grad(loss, list(by_hand.parameters())), strict=True):
            p.data -= 0.01 * g
    for name, tensor in state(by_hand.model).items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_are_one_larger_batch(tmp_path, data, parts):
    """Whatever the accelerator was made for: a teacher's loop may accumulate where the student's does not."""
    whole = training(tmp_path / "whole", data, loop(**PLAIN), "test_vit").run()
    split = loop(**PLAIN, accumulation=parts, batch_size=8 // parts)
    in_parts = training(tmp_path / "parts", data, split, "test_vit").run()
    for name, tensor in state(whole.model).items():
        torch.testing.assert_close(state(in_parts.model)[name], tensor, atol=1e-5, rtol=1e-3, msg=name)


def test_gradients_are_clipped_to_the_norm(tmp_path, data):
    settings = loop(**(PLAIN | {"clip_grad": 1e-3}), steps=1, lr=1.0)
    before = dict(stream("test_vit").model.named_parameters())
    after = training(tmp_path, data, settings, "test_vit").run().model
    norm = math.sqrt(sum((p - before[name]).square().sum().item() for name, p in after.named_parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_every_trainable_parameter_moves(tmp_path, data):
    tree_ = {
        "data": {"source": "x", "image_size": 32},
        "teachers": ["resnet18.a1_in1k"],
        "student": "test_resnet",
        "alignment": {"blocks": 2},
        "discriminators": {"adversary": "minimax", "on": "all", "lr": 0.01},
    }
    recipe = Recipe.model_validate(tree_)
    own = stream(alignment=recipe.alignment)
    distiller = Distiller(own, recipe.method, 3, [own.block_shapes])
    before = {name: p.detach().clone() for name, p in distiller.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(8, *shape, generator=generator) for shape in own.block_shapes]
    targets = Targets([TeacherBlocks(0, blocks)], {}, torch.randn(8, 3))
    run = training(tmp_path, data, loop(), objective=distiller, teach=lambda batch, image, step: targets)
    run.run()
    assert {name.split(".")[0] for name in before} == {"student", "projections", "discriminators"}
    assert [name for name, p in distiller.named_parameters() if torch.equal(p, before[name])] == []


def test_dropout_is_a_function_of_the_step(tmp_path, data):
    network = Network(model="test_vit", args={"drop_rate": 0.5})
    losses = []
    for name, start in (("first", 0), ("again", 123)):
        torch.manual_seed(start)
        objective = Supervised(student_stream(network, LOGITS, 3, 32, seed=1))
        torch.rand(start)
        training(tmp_path / name, data, loop(), objective=objective).run()
        losses.append(metrics(tmp_path / name))
    assert losses[0] == losses[1]


# Interruption


class Interrupted(Exception):
    pass


def interrupt_after(run: Training, checkpoints: int) -> None:
    """Run it until so many checkpoints are written, then stop as a killed process does."""
    written = 0
    write = run.state.save

    def stop(teachers: dict[str, str]) -> None:
        nonlocal written
        write(teachers)
        written += 1
        if written == checkpoints:
            raise Interrupted

    run.state.save = stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        run.run()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("test_resnet", {"optimizer": "adamw"}),
        ("test_vit", {"optimizer": "sgd", "schedule": "multistep", "accumulation": 2, "batch_size": 4}),
        ("test_resnet", {"optimizer": "adamw", "ema": 0.9, "schedule": "none"}),
    ],
    ids=["adamw", "sgd", "ema"],
)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, data, name, changes):
    settings = loop(steps=4, validations=4, checkpoint_steps=1, **changes)
    whole = training(tmp_path / "whole", data, settings, name)
    expected = state(whole.run().model)
    for checkpoints in (1, 2):
        interrupt_after(training(tmp_path / "cut", data, settings, name), checkpoints)
        assert {name.split("/")[0] for name in tree(tmp_path / "cut")} == {"checkpoints", "metrics.jsonl"}
    resumed = training(tmp_path / "cut", data, settings, name)
    found = state(resumed.run().model)
    assert same(found, expected)
    assert same(state(resumed.state.objective), state(whole.state.objective))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_resumed_with_other_loaders_and_all_that_draws_random_numbers(tmp_path, shapes):
    """Found by benchmarks/resume.py: dropout and mixing took up where reading a batch had left the generators."""
    settings = loop(
        steps=4, checkpoint_steps=1, mixup=0.5, cutmix=0.5, random_erasing=0.5, accumulation=2, batch_size=4
    )
    network = Network(model="test_vit", args={"drop_rate": 0.3, "drop_path_rate": 0.2})

    def run(folder: str, workers: int) -> Training:
        views = {"scale": [0.7, 1.0], "auto_augment": "rand-m5", "color_jitter": 0.3}
        settings_of_data = {"source": str(shapes), "image_size": 32, "crop_pct": 1.0, "workers": workers}
        data = load_data(Data.model_validate(settings_of_data | {"augmentation": views, "validation": 0.25}), seed=0)
        objective = Supervised(student_stream(network, LOGITS, 3, 32, seed=1))
        return training(tmp_path / folder, data, settings, objective=objective)

    expected = state(run("whole", workers=0).run().model)
    interrupt_after(run("cut", workers=0), checkpoints=1)
    interrupt_after(run("cut", workers=2), checkpoints=2)
    assert same(state(run("cut", workers=1).run().model), expected)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_run_interrupted_between_checkpoints_repeats_the_steps_since(tmp_path, data, monkeypatch):
    settings = loop(steps=6, validations=2, checkpoint_steps=3)
    expected = state(training(tmp_path / "whole", data, settings).run().model)
    run = training(tmp_path / "cut", data, settings)
    step = TrainingStep.__call__

    def stop(self: TrainingStep, batches: Any) -> dict[str, Tensor]:
        if run.state.step == 5:
            raise Interrupted
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", stop)
        with pytest.raises(Interrupted):
            run.run()
    assert [line["step"] for line in metrics(tmp_path / "cut")] == [1, 2, 3, 3, 4, 5]
    assert same(state(training(tmp_path / "cut", data, settings).run().model), expected)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_finished_run_resumed_trains_nothing(tmp_path, data):
    first = state(training(tmp_path, data, loop()).run().model)
    again = training(tmp_path, data, loop())
    lines = metrics(tmp_path)
    assert same(state(again.run().model), first)
    assert again.state.step == 4
    assert metrics(tmp_path) == lines


# What comes out


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_weights_with_the_best_validation_are_kept(tmp_path, data, ema, monkeypatch):
    """Of equals the later; with a moving average its weights. The scores are given, the weights are real."""
    scores, seen = iter([10.0, 30.0, 20.0, 30.0, 25.0]), []

    def scored(validated: Stream, *_: Any) -> dict[str, float]:
        seen.append(state(validated.model))
        return {"top1": next(scores), "nll": 1.0}

    monkeypatch.setattr("meco_timm.training.loop.validate", scored)
    run = training(tmp_path, data, loop(steps=5, validations=5, lr=0.05, ema=ema), "test_vit")
    kept = run.run()
    assert [same(state(kept.model), weights) for weights in seen] == [False, False, False, True, False]
    assert [line["validation/top1"] for line in metrics(tmp_path) if "validation/top1" in line] == [10, 30, 20, 30, 25]
    assert not kept.training


def test_without_a_validation_split_the_last_weights_are_kept(tmp_path, shapes):
    settings = {"source": str(shapes), "image_size": 32, "workers": 0, "validation": 0.0}
    every = load_data(Data.model_validate(settings), 0)
    run = training(tmp_path, every, loop())
    assert same(state(run.run().model), state(run.state.student.model))
    assert run.state.best is not None
    assert run.state.best.step == 4


def test_metric_lines(tmp_path, data):
    training(tmp_path, data, loop(steps=5, log_every=2, validations=1)).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5, 5]
    assert all(
        line.keys() == {"step", "lr", "images_per_s", "data_wait", "skipped_steps", "total", "labels"}
        for line in lines[:3]
    )
    assert lines[3].keys() == {"step", "validation/top1", "validation/nll"}
    assert all(line["images_per_s"] > 0 for line in lines[:3])


def test_the_share_of_time_that_goes_by_waiting_for_data(tmp_path, data, monkeypatch, caplog):
    """A loader that takes half a second per batch starves any network of these."""
    batches = data.batches

    def slow(*args: Any) -> Iterator[Batch]:
        for batch in batches(*args):
            time.sleep(0.5)
            yield batch

    training(tmp_path / "fast", data, loop()).run()
    monkeypatch.setattr(data, "batches", slow)
    training(tmp_path / "slow", data, loop()).run()
    shares = [
        [line["data_wait"] for line in map(json.loads, (tmp_path / name / "metrics.jsonl").open()) if "total" in line]
        for name in ("fast", "slow")
    ]
    assert max(shares[0]) < 0.6 < min(shares[1]) <= 1
    assert re.search(r"step 4/4 .*images/s .*waiting for data [6-9]\d%", caplog.messages[-1])


@pytest.mark.parametrize(("wanted", "steps", "at"), [(2, 6, [3, 6]), (4, 6, [1, 2, 3, 4, 5, 6]), (20, 3, [1, 2, 3])])
def test_validations_are_spread_evenly_and_the_last_step_has_one(tmp_path, data, wanted, steps, at):
    training(tmp_path, data, loop(steps=steps, validations=wanted)).run()
    assert [line["step"] for line in metrics(tmp_path) if "validation/top1" in line] == at


def spoilt(objective: nn.Module, steps: range) -> nn.Module:
    """The objective with a loss that is not a number in some of its calls."""
    forward, calls = objective.forward, iter(range(10**6))

    def spoil(*args: Any) -> dict[str, Tensor]:
        losses = forward(*args)
        return {
            name: loss * (math.nan if step in steps else 1) for step in [next(calls)] for name, loss in losses.items()
        }

    objective.forward = spoil  # type: ignore[method-assign]
    return objective


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_a_step_without_a_finite_gradient_leaves_no_trace_and_is_counted(tmp_path, data, optimizer):
    stream = student_stream(Network(model="test_vit"), LOGITS, 3, 32, seed=1)
    settings = loop(steps=1, log_every=1, validations=1, optimizer=optimizer, schedule="none")
    before = state(stream.model)
    training(tmp_path, data, settings, objective=spoilt(Supervised(stream), range(1))).run()
    assert metrics(tmp_path)[0]["skipped_steps"] == 1
    after = state(stream.model)
    if optimizer == "lamb":  # not fused: its gradient is zero, weight decay and momentum go on
        assert all(torch.isfinite(tensor).all() for tensor in after.values())
    else:
        assert same(after, before)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("test_vit", {"gradient_checkpointing": True}), ("test_resnet", {"channels_last": True})],
    ids=["gradient_checkpointing", "channels_last"],
)
def test_settings_of_memory_change_no_result(tmp_path, data, name, changes):
    plain = training(tmp_path / "plain", data, loop(**PLAIN), name).run()
    changed = training(tmp_path / "changed", data, loop(**PLAIN, **changes), name)
    assert "gradient_checkpointing" not in changes or changed.state.student.model.grad_checkpointing
    found = changed.run()
    assert "channels_last" not in changes or found.model.conv1[0].weight.is_contiguous(memory_format=CHANNELS_LAST)
    for key, tensor in state(plain.model).items():
        torch.testing.assert_close(state(found.model)[key], tensor, atol=1e-5, rtol=1e-4, msg=key)


def test_a_network_without_gradient_checkpointing_is_told(tmp_path, data):
    with pytest.raises(UserError, match=r"loop.gradient_checkpointing: timm has none for DLA"):
        training(tmp_path, data, loop(gradient_checkpointing=True), "dla46x_c")


def test_compiled_it_ends_alike_and_is_saved_alike(tmp_path, data, monkeypatch):
    """As `accelerate launch --dynamo_backend` has it; the compiler of this test gives back what it was given."""
    settings = loop(**PLAIN, checkpoint_steps=2)
    plain = training(tmp_path / "plain", data, settings, "test_vit")
    expected = state(plain.run().model)
    AcceleratorState._reset_state()
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    try:
        interrupt_after(training(tmp_path / "cut", data, settings, "test_vit"), checkpoints=1)
        compiled = training(tmp_path / "cut", data, settings, "test_vit")
        assert isinstance(compiled.state.objective, torch._dynamo.OptimizedModule)
        found = state(compiled.run().model)
    finally:
        AcceleratorState._reset_state()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-5, rtol=1e-4, msg=key)


def test_steps_without_a_finite_gradient_in_a_row_stop_the_run_and_keep_the_good_checkpoint(tmp_path, data):
    stream = student_stream(Network(model="test_vit"), LOGITS, 3, 32, seed=1)
    settings = loop(steps=40, log_every=1, validations=1, checkpoint_steps=2)
    with pytest.raises(UserError, match=r"at step 24 labels is not finite, for 20 steps in a row. Lower loop.lr"):
        training(tmp_path, data, settings, objective=spoilt(Supervised(stream), range(4, 40))).run()
    assert [name.split("-")[1] for name in sorted(tree(tmp_path / "checkpoints"))] == ["000000002", "000000004"]


# Budget, optimizer, schedule


def test_the_number_of_steps():
    assert total_steps(Loop(steps=7), 1000, 4) == 7
    assert total_steps(Loop(epochs=2, batch_size=10), 100, 1) == 20
    assert total_steps(Loop(epochs=2, batch_size=10), 101, 1) == 21
    assert total_steps(Loop(epochs=2, batch_size=10, accumulation=2), 100, 2) == 5
    assert total_steps(Loop(epochs=0.001, batch_size=10), 100, 1) == 1
    assert [total_steps(Loop(epochs=2, min_steps=30, batch_size=10), images, 1) for images in (100, 200)] == [30, 40]


def groups_of(objective: nn.Module, **changes: Any) -> dict[str, dict[str, float]]:
    """Each parameter's learning rate and weight decay."""
    optimizer = make_optimizer(objective, loop(lr=0.1, weight_decay=0.3, **changes))
    names = {id(p): name for name, p in objective.named_parameters()}
    found = {
        names[id(p)]: {"lr": group["lr"], "decay": group["weight_decay"]}
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups)
    return found


def test_each_parameter_has_its_rate_and_decay():
    tree_ = {
        "data": {"source": "x"},
        "teachers": ["resnet18.a1_in1k"],
        "student": "test_vit",
        "alignment": {"blocks": 2},
        "discriminators": {"adversary": "minimax", "on": "all", "lr": 0.01},
    }
    recipe = Recipe.model_validate(tree_)
    own = stream("test_vit", recipe.alignment)
    distiller = Distiller(own, recipe.method, 3, [own.block_shapes])
    groups = groups_of(distiller)
    assert groups.keys() == {name for name, _ in distiller.named_parameters()}
    for name, p in distiller.named_parameters():
        family = name.split(".")[0]
        assert groups[name]["lr"] == (0.01 if family == "discriminators" else 0.1), name
        # Matrices decay; norms, biases and what the network names itself (its position embedding) do not.
        decays = (
            family == "student" and p.ndim > 1 and not {"pos_embed", "cls_token", "reg_token"} & set(name.split("."))
        )
        assert groups[name]["decay"] == (0.3 if decays else 0), name
    assert any(group["decay"] for group in groups.values())


def test_norms_and_biases_do_not_decay_in_a_network_without_exemptions_of_its_own():
    objective = Supervised(stream("test_resnet"))
    assert not hasattr(objective.student.model, "no_weight_decay")
    groups = groups_of(objective)
    assert all(groups[name]["decay"] == (0.3 if p.ndim > 1 else 0) for name, p in objective.named_parameters())


def test_an_optimizer_that_its_settings_do_not_suit_is_refused():
    """timm's sgd is Nesterov's and wants a momentum."""
    with pytest.raises(UserError, match=r"loop.optimizer: sgd cannot be made: .*momentum"):
        groups_of(Supervised(stream()), optimizer="sgd", momentum=0.0)


def test_an_unknown_optimizer_is_answered_with_near_ones():
    with pytest.raises(UserError, match=r"loop.optimizer: timm has no 'adamww'. Did you mean .*'adamw'"):
        groups_of(Supervised(stream()), optimizer="adamww")


def rates(steps: int = 100, **changes: Any) -> list[float]:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight]}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1}], lr=1.0)
    schedule = make_schedule(optimizer, loop(lr=1.0, **changes), steps)
    found = []
    for step in range(steps):
        if schedule:
            schedule.step_update(step)
        assert optimizer.param_groups[1]["lr"] == pytest.approx(0.1 * optimizer.param_groups[0]["lr"], abs=1e-4)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_cosine_rises_from_zero_and_falls_to_zero():
    found = rates(schedule="cosine", warmup=0.1)
    assert found[0] == 0
    assert found[:10] == sorted(found[:10])
    assert max(found) == pytest.approx(1, abs=0.05)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[50] == pytest.approx(0.5, abs=0.05)
    assert found[-1] < 0.01


def test_multistep_cuts_to_a_tenth_at_its_milestones():
    found = rates(schedule="multistep", milestones=[0.5, 0.8], warmup=0.0)
    assert [found[i] for i in (0, 48, 50, 78, 80, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("word", ["step", "poly", "tanh"])
def test_the_other_schedules_fall(word):
    found = rates(schedule=word, warmup=0.0)
    assert found[0] == pytest.approx(1, abs=0.05)
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.1


def test_no_schedule_is_constant():
    assert set(rates(schedule="none")) == {1.0}


def test_a_resumed_training_knows_its_best_validation(tmp_path):
    """Of the lines up to its step; those beyond are repeated."""
    objective = SimpleNamespace(summary=lambda values: [])
    facts = {"images_per_s": 1.0, "data_wait": 0.0, "skipped_steps": 0.0}
    found = {}
    for start, path in ((20, tmp_path / "a"), (10, tmp_path / "b")):
        path.write_text('{"step": 10, "validation/top1": 60.0}\n{"step": 20, "validation/top1": 80.0}\n')
        lines = MetricLines(path, start, True, objective)
        lines.validation(30, {"top1": 50.0, "nll": 1.0})
        found[start] = lines.losses(30, {"total": torch.tensor(1.0)}, facts, 0)[1]
    assert found == {20: "top-1 50.00 % (best 80.00 %)", 10: "top-1 50.00 % (best 60.00 %)"}


def test_the_speed_that_is_shown_is_the_mean_and_the_file_has_each_interval(tmp_path, monkeypatch):
    """A pause near the end, for a checkpoint or another program, does not make the whole training look slow."""
    times = iter([0.0, 10.0, 30.0])
    monkeypatch.setattr("meco_timm.training.metrics.time.monotonic", lambda: next(times))
    lines = MetricLines(tmp_path / "metrics.jsonl", 0, True, SimpleNamespace(summary=lambda values: []))
    shown = []
    for step, waited in ((20, 1.0), (22, 11.0)):
        facts = {**lines.pace(step, 10, waited), "skipped_steps": 0}
        shown.append(lines.losses(step, {"total": torch.tensor(1.0)}, facts, 0)[0])
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert shown == ["20 images/s", "7 images/s"]
    assert [(line["images_per_s"], line["data_wait"]) for line in written] == [(20.0, 0.1), (1.0, 0.5)]
