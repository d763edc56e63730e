"""Time estimates, for GPUs and measured here, against longhand arithmetic."""

import itertools
from time import process_time
from typing import Any

import pytest
from accelerate import Accelerator
from conftest import ROOT, base_recipe, image_folder, refused, write

import train
from meco_timm import load_recipe, pipeline
from meco_timm.data.hub_datasets import COUNTS, known_data
from meco_timm.data.loading import load_data
from meco_timm.networks.streams import student_stream
from meco_timm.planning import cost, time_estimate
from meco_timm.planning.cost import Part, Workload, format_duration, run_memory, training_memory
from meco_timm.recipe import Alignment, Recipe, named_teachers
from meco_timm.zoo.teachers import untrained_teachers

NAMES = ("teacher test_resnet", "teacher test_vit", "student alone", "student", "table and report")


def teachers_of(recipe: Recipe, classes: list[str]) -> Any:
    return untrained_teachers(named_teachers(recipe.teachers), recipe.alignment, recipe.data.image_size, classes)


def planned(path: str, *overrides: str, processes: int = 8) -> Workload:
    """A recipe of the repository."""
    recipe = load_recipe(ROOT / "recipes" / path, overrides)
    data = known_data(recipe.data)
    assert data is not None
    size = recipe.data.image_size
    student = student_stream(recipe.student, recipe.alignment, len(data.classes), size, weightless=True)
    return Workload(recipe, data, student, teachers_of(recipe, data.classes), processes)


def test_gpu_time_is_flops_over_speed_or_the_loaders_time(monkeypatch):
    work = planned("imagenet_meal_v2.yaml")
    recipe, student, teachers = work.recipe, work.student, work.teachers
    macs, taught = student.multiply_adds(), sum(stream.multiply_adds() for stream in teachers.values())
    assert macs == pytest.approx(4.09e9, rel=0.01)  # a ResNet-50 at 224 px
    steps = -(-180 * 1_268_355 // 512)
    images, validated = 512 * steps, 20 * 12_812
    parts = [3 * images * macs + validated * macs] * 2
    parts[1] += (images + validated) * taught
    trained, seen = [3 * images * macs] * 2, [validated * macs, validated * macs + (images + validated) * taught]
    for per_second, utilisation in ((400, None), (1e9, 0.5), (1e9, None), (10, None)):
        monkeypatch.setitem(COUNTS, recipe.data.source, COUNTS[recipe.data.source]._replace(per_second=per_second))
        measured = [2 * (t / 15 + f / 37) / 2.04e12 / 8 for t, f in zip(trained, seen, strict=True)]
        assumed = [2 * part / (8 * 312e12 * (utilisation or 1)) for part in parts]
        loading = (images + validated) / (per_second * 8 * 8)
        seconds = sum(max(part, loading) for part in (assumed if utilisation else measured))
        line, speed = time_estimate.gpu_time_lines(work, utilisation)
        assert "on a GPU in bf16: the student channels_last, compiled with its teachers; not measured" in speed
        slow = "; they are the limit on A100, H100, RTX 4090, L4: data.workers=132 would feed all"
        assert line.endswith(slow) == (per_second == 10)
        assert line.startswith("time    ")
        assert (
            f"{format_duration(seconds)} on 8 × A100" in line
            or f"{format_duration(1.02 * seconds)} on 8 × A100" in line
        )  # + test
        assert ("at 50% of the peak FLOP/s" if utilisation else "measured for a ResNet-50 on an H100") in line


@pytest.mark.parametrize(
    ("teachers", "all_of_them", "measured_ms"),
    [(1, False, 84.3), (3, False, 88.4), (3, True, 127), (8, False, 103), (8, True, 231)],
)
def test_the_time_of_a_step_is_within_a_quarter_of_what_an_h100_took(teachers, all_of_them, measured_ms):
    """A ResNet-50 from ResNet-101, ConvNeXt-S and ViT-B in turn, 224 px, batches of 128, bf16 (LOG.md, 1296f6b)."""
    forward = [(7.80e9, 8.68e9, 17.57e9)[i % 3] for i in range(teachers)]
    taught = sum(forward) / (1 if all_of_them else teachers)
    part = Part(3 * 128 * 4.09e9, 128 * taught, 128)
    seconds = time_estimate.gpu_seconds(part, time_estimate.GPUS["H100"], float32=False)
    assert measured_ms == pytest.approx(1000 * seconds, rel=0.25)


def test_float32_takes_the_time_of_float32():
    bf16, float32 = (
        time_estimate.gpu_time_lines(planned("imagenet_meal_v2.yaml", *words)) for words in ([], ["precision='no'"])
    )
    assert "in float32" in float32[0]
    assert "20 hours on 8 × A100" in bf16[0]
    assert "40 hours on 8 × A100" in float32[0]  # twice as long


def test_the_plan_says_what_was_measured_of_a_gpu():
    plain = planned("imagenet_meal_v2.yaml", "loop.channels_last=false", "loop.compile=false")
    told = "not compiled; the time was within 25 % on an H100; memory and other cards were not measured"
    assert cost.speed_line(plain).endswith(told)
    assert "; not measured: time may be" in cost.speed_line(planned("imagenet_meal_v2.yaml", "precision='no'"))


def test_runs_of_minutes_have_no_gpu_estimate(recipe, tmp_path):
    assert "\ntime " not in pipeline.plan(load_recipe(write(recipe, tmp_path)))


@pytest.mark.parametrize("share", ["0", "1.5", "-1"])
def test_a_utilisation_outside_of_0_to_1_is_refused(recipe, tmp_path, capsys, share):
    message = refused(capsys, write(recipe, tmp_path), "--plan", f"--utilisation={share}")
    assert "--utilisation" in message


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_run_is_its_steps_and_images_times_what_each_takes(recipe, tmp_path, monkeypatch, cache):
    """By a clock that says one second for every call: 1/8 s an image for each thing that is done with it."""
    recipe["loop"]["steps"] = 40
    recipe["data"]["cache"] = cache
    settings = load_recipe(write(recipe, tmp_path))
    data = load_data(settings.data, settings.seed)
    found, waits = time_estimate.measured_seconds(settings, data, 8, clock=itertools.count().__next__)
    assert not waits  # without loader processes they are part of a step
    each, validated = 1 / 8, 2 * len(data.validation)
    kept = cache == "memory"  # each image is read once, and validation images stay as they are
    assert tuple(found) == (("cache", *NAMES) if kept else NAMES)
    if kept:
        assert found["cache"] == pytest.approx((len(data.train) + len(data.validation)) * each)
    supervised = 40 * 8 * 2 * each + validated * (1 if kept else 2) * each
    assert [found[name] for name in NAMES[:3]] == pytest.approx([supervised] * 3)
    assert found["student"] == pytest.approx(supervised + 40 * 8 * each + 4)  # a teacher a step; its gradient weighed
    assert found["table and report"] == pytest.approx(12 * 5 * each + 0.6 * 7 + time_estimate.FINISH_SECONDS)
    data.workers = 4  # they load while the network computes
    beside, waits = time_estimate.measured_seconds(settings, data, 8, clock=itertools.count().__next__)
    assert not waits
    assert beside["student alone"] == pytest.approx(40 * 8 * each + validated * (1 if kept else 2) * each)
    loading = time_estimate.time_loading
    monkeypatch.setattr(time_estimate, "time_loading", lambda *its: loading(*its)._replace(again=9.0))
    assert time_estimate.measured_seconds(settings, data, 8, clock=itertools.count().__next__)[1]  # it waits for them


def test_the_time_of_loading_is_that_of_the_cache_where_there_will_be_one(recipe, tmp_path):
    """Small images in the cache are cut faster than files are decoded."""
    found = {}
    for cache in ("memory", "none"):
        recipe["data"]["cache"] = cache
        settings = load_recipe(write(recipe, tmp_path))
        data = load_data(settings.data, settings.seed)
        found[cache] = time_estimate.time_loading(settings, data, 16, tmp_path / cache, Accelerator(), process_time)
        assert data.train.pixels is None  # the data of the plan are as they were
    assert not found["none"].cached
    assert found["none"].again == found["none"].first
    assert found["memory"].again < found["memory"].first


def test_the_plan_has_the_measured_time(recipe, tmp_path, capsys, monkeypatch):
    path = write(recipe, tmp_path)
    assert train.main([path, "--plan"]) == 0
    (message,) = [part for part in capsys.readouterr().out.split("\n") if part.startswith("here ")]
    assert "on this CPU, from a few measured steps: cache 1 s, teacher test_resnet" in message
    monkeypatch.setattr(time_estimate, "multiply_adds_per_second", lambda: 1e5)  # so slow that measuring takes long
    assert train.main([path, "--plan"]) == 0
    assert "\nhere " not in capsys.readouterr().out


def test_few_images_are_timed_in_pairs(monkeypatch):
    """mixup and cutmix mix pairs: a batch that is cut to what a few seconds allow stays even."""
    work, batches = planned("fashion_mnist_ensemble.yaml", processes=1), set()
    monkeypatch.setattr(
        time_estimate, "measured_seconds", lambda *its, **_: batches.add(its[2]) or ({"student": 1.0}, False)
    )
    for speed in range(100):
        monkeypatch.setattr(time_estimate, "multiply_adds_per_second", lambda speed=speed: 1.1**speed * 1e7)
        assert not any("the limit" in line for line in time_estimate.measured_time_lines(work, None))
    monkeypatch.setattr(time_estimate, "measured_seconds", lambda *its, **_: ({"student": 1.0}, True))
    (line,) = time_estimate.measured_time_lines(work, None)
    assert line.endswith("student 1 s; the data loaders are the limit: write more data.workers")
    assert len(batches) > 10
    assert not any(batch % 2 for batch in batches)


def test_memory_by_precision_and_optimizer(recipe):
    """Of a network whose activations hardly count, and of one teacher."""
    recipe |= {"student": "resnet50", "teachers": ["resnet18.a1_in1k"]}
    recipe["loop"] |= {"optimizer": "adamw", "batch_size": 1}
    settings = Recipe.model_validate(recipe)
    student = student_stream(settings.student, Alignment(blocks=0), 1000, 32, weightless=True)
    teachers = teachers_of(settings, [str(i) for i in range(1000)])
    own, frozen = student.parameter_count, sum(stream.parameter_count for stream in teachers.values())

    def bytes_of(precision: str) -> float:
        return training_memory(settings, student, teachers, precision)

    assert bytes_of("float32") == pytest.approx(16 * own + 4 * frozen, rel=0.03)
    assert bytes_of("bf16") == pytest.approx(18 * own + 2 * frozen, rel=0.03)
    settings.loop.optimizer, settings.loop.ema = "momentum", 0.99
    assert bytes_of("float32") == pytest.approx((12 + 4) * own + 4 * frozen, rel=0.03)


def test_the_memory_is_that_of_the_training_that_takes_most(recipe):
    """A large teacher that is trained first, for a small student."""
    recipe |= {"student": "test_resnet", "teachers": [{"train": "resnet50", "loop": {"batch_size": 1}}]}
    settings = Recipe.model_validate(recipe)
    student = student_stream(settings.student, Alignment(blocks=0), 10, 32, weightless=True)
    teachers = teachers_of(settings, [str(i) for i in range(10)])
    (teacher,) = teachers.values()
    work = Workload(settings, None, student, teachers)
    assert run_memory(work, "float32") == pytest.approx(16 * teacher.parameter_count, rel=0.03)
    assert training_memory(settings, student, teachers, "float32") < 8 * teacher.parameter_count


def test_a_broken_image_does_not_keep_the_plan_back(tmp_path, capsys):
    folder = image_folder(tmp_path / "data", train_images=4)
    for file in (folder / "train").rglob("*.png"):
        file.write_bytes(b"junk")
    assert train.main([write(base_recipe(folder, tmp_path), tmp_path), "--plan"]) == 0
    assert "warning: no time was measured: data.source: " in " ".join(capsys.readouterr().out.split())
