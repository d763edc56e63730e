"""The store: what is read is what would be computed, and nothing damaged, foreign or half written is ever taken."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from conftest import CLASSES, base_recipe, fill, refused, tree, write
from helpers.launch import Forked, Mounts, finished, launch, needs_mounts
from safetensors.torch import save_file

import train
from meco_timm import pipeline
from meco_timm.common.errors import UserError
from meco_timm.data.folders import read_folder
from meco_timm.data.loading import DataSource, load_data
from meco_timm.data.manifest import Manifest, manifest_of
from meco_timm.data.views import Steps
from meco_timm.pipeline import assemble_zoo
from meco_timm.recipe.recipe import Recipe
from meco_timm.training.step import TrainingStep
from meco_timm.zoo import output_shards
from meco_timm.zoo.output_shards import OutputShards
from meco_timm.zoo.precompute import precompute_outputs, use_store
from meco_timm.zoo.store import _check_images
from meco_timm.zoo.zoo import Zoo

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
VIEWS = 2


def with_store(recipe: dict[str, Any], folder: Path, **changes: Any) -> dict[str, Any]:
    return recipe | {"store": {"folder": str(folder), "views": VIEWS} | changes}


@pytest.fixture(scope="module")
def base(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One zoo for all tests."""
    recipe = base_recipe(shapes, tmp_path_factory.mktemp("base"))
    recipe["zoo"]["loop"] = {"steps": 2, "lr": 2e-3}
    return recipe


@pytest.fixture(scope="module")
def full(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all outputs. Copy it to change it."""
    folder = tmp_path_factory.mktemp("full") / "store"
    pipeline.fill_store(Recipe.model_validate(with_store(base, folder)))
    return folder


@pytest.fixture
def copied(full: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(full, tmp_path / "store"))


def opened(recipe: dict[str, Any], live: bool = False) -> tuple[Zoo, DataSource, Recipe]:
    """The zoo over the recipe's store, if it has one."""
    made = Recipe.model_validate(recipe)
    data, a = load_data(made.data, made.seed, made.store.views), Accelerator()
    teachers = assemble_zoo(made, data, a)
    use_store(teachers, made.store, made.data, data, pipeline.batch_seed(made.seed), a)
    return teachers, data, made


def missing(folder: Path, base: dict[str, Any]) -> int:
    teachers, data, _ = opened(with_store(base, folder))
    assert teachers.store is not None
    return len(teachers.store.missing(torch.from_numpy(data.train.rows)))


def losses_of(recipe: dict[str, Any], folder: Path) -> list[dict[str, float]]:
    """A run's lines of losses."""
    recipe = recipe | {"run": str(folder / "run")}
    assert train.main([write(recipe, folder)]) == 0
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    kinds = ("similarity", "adversary", "total")
    return [{k: v for k, v in line.items() if k.startswith(kinds)} for line in lines if "total" in line]


# What is read


@pytest.mark.parametrize("sampling", ["random", "average"])
@pytest.mark.parametrize("method", ["grid", "projection"])
def test_losses_from_the_store_are_those_of_live_teachers(base, full, tmp_path, monkeypatch, sampling, method):
    """50 steps, float16, to 1e-3 of their size: a student with layer norm.

    Batch norm over eight images makes of any rounding difference a hundred times as much within these steps.
    """
    for name in ("train_alone_and_compare", "evaluate_all", "show_results"):
        monkeypatch.setattr(pipeline, name, lambda *arguments: [])
    recipe = base | {"student": "test_vit2", "zoo": base["zoo"] | {"sampling": sampling}}
    recipe["loop"] = base["loop"] | {"steps": 50}
    if method == "projection":
        recipe["alignment"], full = {"blocks": 2, "method": method, "length": 64}, tmp_path / "maps"
    live = losses_of(recipe | {"store": {"views": VIEWS}}, tmp_path / "live")
    stored = losses_of(with_store(recipe, full), tmp_path / "stored")
    assert len(live) == len(stored) == 50
    assert {"total", "similarity/logits", "similarity/1", "adversary/logits"} <= live[0].keys()
    for step, (wanted, found) in enumerate(zip(live, stored, strict=True)):
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-3), (step, name)


@pytest.mark.parametrize("sampling", ["random", "average"])
def test_maps_in_float32_come_back_to_the_bit(base, tmp_path, sampling):
    recipe = base | {"alignment": {"blocks": 2, "method": "projection", "length": 16 * 1024}}  # no channel is left out
    recipe["zoo"] = base["zoo"] | {"sampling": sampling}
    live, data, _ = opened(recipe)
    stored, _, _ = opened(with_store(recipe, tmp_path / "store", precision="float32"))
    batch = next(data.batches(data.train, Steps(8, seed=0, start=0, stop=1)))
    for _ in range(2):  # computed, then read
        found, wanted = (zoo.targets(batch, batch.image, 1) for zoo in (stored, live))
        assert torch.equal(found.logits, wanted.logits)
        assert [t.teacher for t in found.blocks] == [t.teacher for t in wanted.blocks]
        assert wanted.blocks
        for mine, its in zip(found.blocks, wanted.blocks, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine.blocks, its.blocks, strict=True))


def test_a_run_from_a_full_store_has_no_teacher_in_memory(base, full, tmp_path, monkeypatch, capsys):
    """Until the table, where each teacher has its row."""
    held: list[int] = []
    step = TrainingStep.__call__

    def watched(self: Any, batches: Any) -> Any:
        if self.job.title == "student":
            held.append(len(self.teaching.targets.__self__.streams))
        return step(self, batches)

    monkeypatch.setattr(TrainingStep, "__call__", watched)
    path = write(with_store(base, full) | {"run": str(tmp_path / "run")}, tmp_path)
    assert train.main([path]) == 0
    assert held == [0] * 4
    assert "complete; no teacher is loaded" in capsys.readouterr().err
    rows = json.loads((tmp_path / "run/table.json").read_text())["rows"]
    assert [row["name"] for row in rows][:2] == ["test_resnet", "test_vit"]


def test_what_training_meets_is_kept_and_read_the_next_time(base, tmp_path, monkeypatch):
    """Written through: a second student of the same views computes nothing, and learns alike."""
    calls: list[int] = []
    live = Zoo.live
    monkeypatch.setattr(Zoo, "live", lambda self, name, image: calls.append(len(image)) or live(self, name, image))
    recipe = with_store(base, tmp_path / "store") | {"loop": base["loop"] | {"steps": 12}}
    first = losses_of(recipe, tmp_path / "first")
    computed = sum(calls)
    assert 0 < computed <= 12 * 8 + 2 * 9  # and the validation split, once
    shards = tree(tmp_path / "store")
    assert losses_of(recipe, tmp_path / "second") == first
    assert sum(calls) == computed
    assert tree(tmp_path / "store") == shards


def test_views_repeat_after_so_many_epochs(base):
    made = Recipe.model_validate(base | {"store": {"views": VIEWS}})
    data = load_data(made.data, made.seed, made.store.views)
    batches = list(data.batches(data.train, Steps(9, 5, 0, 9)))  # three epochs of 27 images
    first, second, third = (torch.cat([b.image[b.row.argsort()] for b in batches[i : i + 3]]) for i in (0, 3, 6))
    by_row = [torch.cat([b.row for b in batches[i : i + 3]]) for i in (0, 3, 6)]
    views = [{int(v) for b in batches[i : i + 3] for v in b.view} for i in (0, 3, 6)]
    assert views == [{0}, {1}, {0}]
    images = [{int(r): b.image[k] for b in batches[i : i + 3] for k, r in enumerate(b.row)} for i in (0, 3, 6)]
    assert all(torch.equal(images[0][row], images[2][row]) for row in images[0])
    assert any(not torch.equal(images[0][row], images[1][row]) for row in images[0])
    assert [rows.sort().values.tolist() for rows in by_row] == [sorted(data.train.rows.tolist())] * 3
    assert first.shape == second.shape == third.shape


def test_chosen_views_are_those_that_training_shows(base):
    made = Recipe.model_validate(base | {"data": base["data"] | {"augmentation": {"repeats": 2}}})
    data = load_data(made.data, made.seed, 3)
    shown = list(data.batches(data.train, Steps(9, 5, 0, 20)))
    view, row = (torch.cat([getattr(batch, key) for batch in shown]) for key in ("view", "row"))
    assert set(view.tolist()) == set(range(6))
    chosen = torch.cat([batch.image for batch in data.chosen(data.train, view, row, 7, 5)])
    assert torch.equal(chosen, torch.cat([batch.image for batch in shown]))


# Damage


def one_shard(folder: Path) -> Path:
    return sorted(folder.glob("*/shard-*.safetensors"))[0]


def test_a_flipped_byte_is_found_told_and_filled_again(base, full, copied, caplog):
    shard = one_shard(copied)
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    assert missing(copied, base) == 27 * VIEWS
    message = caplog.text
    assert f"{shard} is damaged and was removed" in message
    pipeline.fill_store(Recipe.model_validate(with_store(base, copied)))
    assert tree(copied) == tree(full)
    assert one_shard(copied).read_bytes() == one_shard(full).read_bytes()


def test_a_shard_that_is_missing_or_cut_off_is_filled_again(base, full, copied, caplog):
    for spoil in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-100])):
        spoil(one_shard(copied))
        assert missing(copied, base) == 27 * VIEWS
        assert f"{27 * VIEWS} of {27 * VIEWS} views are missing for some teacher" in caplog.text
        caplog.clear()
        pipeline.fill_store(Recipe.model_validate(with_store(base, copied)))
        assert tree(copied) == tree(full)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.image_size": 48}, "transform.image_size"),
        ({"data.augmentation.scale": [0.5, 1.0]}, "transform.augmentation.scale"),
        ({"alignment.length": 64}, "alignment.length"),
        ({"store.precision": "float32"}, "outputs.precision"),
        ({"store.topk": 1}, "outputs.topk"),
        ({"seed": 1, "teachers.1.gives": "logits"}, "seed"),
    ],
)
def test_a_store_of_something_else_is_refused_with_the_difference(base, full, tmp_path, capsys, changes, message):
    """Before anything is trained for it but the teachers."""
    before = tree(full)
    recipe = json.loads(json.dumps(with_store(base, full) | {"run": str(tmp_path / "run")}))
    words = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    output = refused(capsys, write(recipe, tmp_path), *words, "--store")
    assert f"store.folder: {full} was made from something else; it differs in " in output
    assert message in output
    assert tree(full) == before


def changed(folder: Path, **changes: Any) -> None:
    file = folder / "store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_another_teacher_of_the_same_name_is_refused(base, copied):
    teachers = json.loads((copied / "store.json").read_text())["teachers"]
    teachers["test_vit"]["weights"] = "0" * 16
    changed(copied, teachers=teachers)
    with pytest.raises(UserError, match=r"it differs in teachers.test_vit.weights\. Name"):
        missing(copied, base)


def test_other_images_another_order_or_version_are_refused(base, copied):
    for changes in ({"images": "00000000"}, {"version": 0}):
        changed(copied, **changes)
        with pytest.raises(UserError, match=rf"it differs in .*{next(iter(changes))}"):
            missing(copied, base)


def test_outputs_of_an_image_that_has_changed_are_refused(base, copied, caplog):
    manifest = Manifest.read(copied / "data.parquet")
    assert manifest is not None
    assert len(manifest.entries) == 48
    name = "train/dash/003.png"
    manifest.entries[name] = manifest.entries[name]._replace(size=1)
    (copied / "data.parquet").write_bytes(manifest.bytes())
    with pytest.raises(UserError, match=r"holds outputs of other images: 1 image has another content .*003\.png"):
        missing(copied, base)


def test_images_are_compared_by_name_size_and_time(tmp_path):
    folder, store = fill(tmp_path / "data", dict.fromkeys(CLASSES, 2)), tmp_path / "store"

    def check() -> str:
        try:
            _check_images(store, manifest_of([read_folder(folder)]))
        except UserError as error:
            return str(error)
        return ""

    assert check() == ""
    assert check() == ""  # the images are now recorded
    image = folder / "dash/001.png"
    status = image.stat()
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert "1 image has another time" in check()
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert check() == ""
    image.write_bytes(image.read_bytes() + b"\0")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "1 image has another content or label (dash/001.png)" in check()
    image.rename(folder / "dash/002.png")
    assert "1 image is new (dash/002.png); 1 image is gone (dash/001.png)" in check()


def test_a_library_that_draws_otherwise_is_told_by_the_pixels(base, copied):
    kept_then = json.loads((copied / "store.json").read_text())
    changed(copied, made_with=kept_then["made_with"] | {"timm": "0.9"})
    assert missing(copied, base) == 0  # another version alone is no difference
    changed(copied, pixels="0" * 16)
    with pytest.raises(UserError, match=r"differs in pixels\. The images or their augmentation have changed.*timm 0.9"):
        missing(copied, base)


def test_a_damaged_description_is_refused(base, copied):
    (copied / "store.json").write_text('{"version": 1,')
    with pytest.raises(UserError, match=r"store.json cannot be used"):
        missing(copied, base)


def test_another_teacher_may_join_and_one_may_leave(base, copied):
    alone = base | {"teachers": base["teachers"][:1]}
    assert missing(copied, alone) == 0
    assert missing(copied, base | {"teachers": [*base["teachers"], {"train": "test_byobnet"}]}) == 27 * VIEWS
    assert missing(copied, base) == 0


def test_a_killed_filling_goes_on_and_its_leftovers_go(base, full, tmp_path):
    """SIGKILL amid the filling: what was written is whole, what was not is nowhere."""
    folder = tmp_path / "store"
    path = write(with_store(base, folder), tmp_path)
    script = (
        "from meco_timm.zoo import output_shards, store; import train\n"
        "store.SHARD_BYTES = 1000; write = output_shards.save\n"
        "import os, itertools; count = itertools.count()\n"
        "def save(shard):\n"
        "    if next(count) == 3:\n"
        f"        open({str(folder)!r} + '/half.tmp', 'wb').write(b'half'); os.kill(os.getpid(), 9)\n"
        "    return write(shard)\n"
        f"output_shards.save = save; train.main([{path!r}, '--store'])"
    )
    process = Forked(script, program="code")
    assert process.wait() == -signal.SIGKILL, process.said
    there = list(folder.rglob("shard-*"))
    assert len(there) == 3
    leftover = there[0].parent / "killed.tmp"
    leftover.write_bytes(b"half a shard")
    os.utime(leftover, (0, time.time() - 2 * output_shards.STALE_SECONDS))
    assert 0 < missing(folder, base) < 27 * VIEWS
    assert not leftover.exists()
    pipeline.fill_store(Recipe.model_validate(with_store(base, folder)))
    assert missing(folder, base) == 0
    assert_same_outputs(folder, full, base)


def assert_same_outputs(first: Path, second: Path, base: dict[str, Any]) -> None:
    (one, data, _), (other, _, _) = (opened(with_store(base, folder)) for folder in (first, second))
    assert one.store
    assert other.store
    keys = torch.cartesian_prod(torch.arange(VIEWS), torch.from_numpy(data.train.rows).long())
    for name in one.names:
        found, wanted = (s.shards[name].read(keys[:, 0], keys[:, 1]) for s in (one.store, other.store))
        torch.testing.assert_close(found["values"], wanted["values"], atol=2e-2, rtol=1e-2)


def test_asked_to_stop_it_keeps_what_it_has(base, tmp_path, monkeypatch):
    made = Recipe.model_validate(with_store(base, tmp_path / "store"))
    once = Zoo.precompute

    def stopped(self: Zoo, batch: Any) -> None:
        once(self, batch)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Zoo, "precompute", stopped)
    with pytest.raises(UserError, match="repeat the command to continue"):
        pipeline.fill_store(made)
    assert missing(tmp_path / "store", base) == 27 * VIEWS - 8


def test_two_processes_fill_it_together_each_its_own_shards(base, tmp_path):
    """And what they have filled serves one: the teachers' weights are the same files."""
    folder, weights = tmp_path / "store", {"model": "test_vit", "weights": str(tmp_path / "vit.safetensors")}
    model = timm.create_model("test_vit", num_classes=3)
    save_file(model.state_dict(), weights["weights"])
    recipe = with_store(base, folder) | {"teachers": [weights | {"size": 32, "trust": True}]}
    finished(launch(write(recipe, tmp_path), "--store", processes=2))
    shards = [output_shards._open_shard(path)["keys"] for path in folder.rglob("shard-*")]
    assert [len(keys) for keys in shards] == [27, 27]
    assert missing(folder, recipe) == 0


def full_disk(*arguments: Any) -> Any:
    raise OSError(28, "No space left on device")


def test_a_full_disk_stops_the_filling_and_not_a_training(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(OutputShards, "_write", full_disk)
    recipe = with_store(base, tmp_path / "store") | {"run": str(tmp_path / "run")}
    message = refused(capsys, write(recipe, tmp_path), "--store")
    assert "cannot be written: No space left on device. Free disk space" in message
    monkeypatch.setattr("meco_timm.zoo.store.SHARD_BYTES", 500)  # several shards refused while training
    assert train.main([write(recipe, tmp_path)]) == 0
    output = capsys.readouterr().err
    assert output.count("No space left on device; outputs that are not stored are recomputed") == 1
    assert not list((tmp_path / "store").rglob("*.tmp"))


@needs_mounts
def test_a_disk_that_is_really_full(base, tmp_path):
    """A store of 40 kB: filling ends with plain words, and what is there is whole."""
    folder = tmp_path / "store"
    folder.mkdir()
    recipe = with_store(base, folder) | {"alignment": {"blocks": 2, "method": "grid", "length": 256}}
    with Mounts() as mounts:
        mounts.run(f"mount -t tmpfs -o size=40k tmpfs {folder}")
        process = Forked(write(recipe, tmp_path), "--store", MOUNTS_OF=mounts.pid)
        assert process.wait() == 2
        assert tree(mounts.path(folder)) <= {"store.json", "data.parquet"}
    assert "Traceback" not in process.said[1]
    assert "No space left on device. Free disk" in process.said[1]


# What the recipe may say


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["store={folder: x}"], "write views, for example 10"),
        (["store={folder: x, views: 2}", "loop.mixup=0.2"], "loop.mixup changes images after they are loaded"),
        (["store={folder: x, views: 2}", "loop.random_erasing=0.2"], "loop.random_erasing changes images"),
        (["--store"], "store.folder: the recipe names none"),
    ],
)
def test_contradictions_are_refused(base, tmp_path, capsys, words, message):
    assert message in refused(capsys, write(base, tmp_path), *words)


def test_fill_needs_no_teacher_where_all_is_there(base, full, caplog):
    teachers, data, made = opened(with_store(base, full))
    assert teachers.streams == {}
    precompute_outputs(teachers, data, made.loop.batch_size, pipeline.batch_seed(made.seed), Accelerator())
    assert f"complete: {27 * VIEWS} views of 2 teacher(s)" in caplog.text
