"""Reading a recipe: YAML's traps, overrides, errors with file, line and key, and the recipe written out again."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from meco_timm.common.errors import UserError, did_you_mean
from meco_timm.recipe.reading import DROPPED, changed_keys, fingerprint, load_recipe, recipe_key, to_yaml
from meco_timm.recipe.recipe import Recipe

TEXT = """\
seed: 3
data:
  source: somewhere
  labelled: 30
teachers:
  - resnet18.a1_in1k
  - train: resnet34
    loop: {lr: 0.5}
student: resnet18
loop:
  steps: 10
  lr: 5e-4
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT)
    return file


def told(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "number"),
    [("5e-4", 5e-4), ("5E-4", 5e-4), ("1e3", 1000.0), ("+2.5e-1", 0.25), (".5e1", 5.0), ("1_000e1", 1e4), ("2", 2.0)],
)
def test_a_number_is_a_number_however_it_is_written(path, written, number):
    path.write_text(TEXT.replace("5e-4", written))
    assert load_recipe(path).loop.lr == number


@pytest.mark.parametrize(
    "text", ["010", "1:30", "0x10", "0b11", "0o17", "1_0", "2024_01", "2024-01-01", "1:30.5", "08"]
)
def test_what_only_yaml_1_1_takes_for_a_number_or_a_date_is_text(path, text):
    """YAML 1.1 reads `steps: 1:30` as 90 and `seed: 010` as 8."""
    for key in ("seed", "loop.steps", "loop.lr"):
        kind = "number" if key == "loop.lr" else "integer"
        why = f"{key}: input should be a valid {kind}, but it is '{text}'. Write it in decimal digits, without quotes."
        assert told(path, f"{key}={text}") == f"command line: {why}"
    path.write_text(TEXT.replace("seed: 3", f"seed: {text}"))
    assert told(path).startswith(f"{path}:1: seed: input should be a valid integer, but it is '{text}'.")
    path.write_text(TEXT.replace("  source: somewhere", f"  source: somewhere\n  subset: {text}"))
    assert load_recipe(path).data.subset == text
    assert load_recipe(path, [f"run={text}", f"teachers.0.classes=[{text}]"]).teachers[0].classes == [text]


@pytest.mark.parametrize("word", ["yes", "on", "Yes", "no", "off", "NO"])
def test_yes_and_no_are_texts_and_truth_values_where_nothing_else_fits(path, word):
    recipe = load_recipe(path, [f"zoo.calibrate={word}", f"data.subset={word}", f"trackers=[{word}]"])
    assert recipe.zoo.calibrate is (word.lower() in ("yes", "on"))
    assert (recipe.data.subset, recipe.trackers) == (word, [word])
    assert load_recipe(path, ["precision=no"]).precision == "no"
    assert f"args: {word!r} is a text. Write" in told(path, f"student.args={{qkv_bias: {word}}}")


@pytest.mark.parametrize(("text", "number"), [("1_000", 1000), ("12", 12), ("+7", 7), ("100_000_000", 10**8)])
def test_whole_numbers(path, text, number):
    assert load_recipe(path, [f"loop.steps={text}"]).loop.steps == number


def test_texts_that_another_reader_takes_for_something_else_are_written_in_quotes(path):
    for text in ("5e-4", "1_000e1", "no", "010", "1:30", "2024-01-01", "null", "~", "=", "<<", "2"):
        path.write_text(TEXT)
        path.write_text(to_yaml(load_recipe(path, [f"data.subset='{text}'"])))
        assert load_recipe(path).data.subset == yaml.safe_load(path.read_text())["data"]["subset"] == text


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("student.args={num_classes: 7}", "student: args: num_classes is not free: it follows from the classes of the"),
        ("teachers.1.args={num_classes: 7}", "teachers.1: args: num_classes is not free"),
        ("student.args={features_only: true}", "student: args: features_only is not free: alignment.blocks says"),
        ("teachers.0.args={out_indices: [1]}", "teachers.0: args: out_indices is not free: alignment.blocks says"),
        ("teachers.0.args={pretrained: false}", "teachers.0: args: pretrained is not free: the tag in the name"),
        ("teachers.0.args={checkpoint_path: x.pth}", "teachers.0: args: checkpoint_path is not free: `weights` names"),
        ("student.args={depths: [2, 010]}", "student: args: '010' is a text. Write a decimal number"),
    ],
)
def test_arguments_that_the_program_sets_itself_are_refused(path, override, what):
    assert f"command line: {what}" in told(path, override)


@pytest.mark.parametrize("mixed", ["mixup", "cutmix"])
def test_an_odd_batch_cannot_be_mixed_in_pairs(path, mixed):
    odd = [f"loop.{mixed}=0.2", "loop.batch_size=7"]
    assert "command line: loop.batch_size is 7, but mixup and cutmix mix pairs of images" in told(path, *odd)
    assert load_recipe(path, [*odd, "loop.batch_size=8"]).loop.batch_size == 8
    teacher = [f"zoo.loop.{mixed}=0.2", "zoo.loop.batch_size=7"]
    assert "teachers.1.loop.batch_size is 7" in told(path, *teacher)
    assert load_recipe(path, [*teacher, "teachers=[resnet18.a1_in1k]"]).zoo.loop.batch_size == 7  # none is trained


def test_a_value_that_yaml_would_cut_off_is_refused(path):
    assert told(path, "data.source=my #1 photos") == (
        "command line: data.source: what follows # is a comment. Write data.source=\"'my #1 photos'\"."
    )
    assert load_recipe(path, ["data.source='my #1 photos'"]).data.source == "my #1 photos"
    assert load_recipe(path, ["data.source=my#1photos"]).data.source == "my#1photos"


def test_a_word_with_an_e_stays_a_word(path):
    path.write_text(TEXT.replace("somewhere", "1e3d").replace("resnet18\n", "2e-4x\n"))
    assert load_recipe(path).data.source == "1e3d"
    assert load_recipe(path).student.model == "2e-4x"


def test_keys_are_words_also_where_yaml_knows_better(path):
    """`on` is true in YAML 1.1, and a key of the recipe."""
    path.write_text(TEXT + "discriminators: {on: logits}\n")
    assert load_recipe(path).discriminators.on == "logits"
    assert load_recipe(path, ["discriminators={on: blocks}"]).discriminators.on == "blocks"
    path.write_text(to_yaml(load_recipe(path)))
    assert load_recipe(path).discriminators.on == "logits"


@pytest.mark.parametrize("key", DROPPED)
def test_a_dropped_key_is_named_with_what_to_do(path, key):
    dotted, _, word = key.partition(": ")
    section, name = dotted.split(".")
    path.write_text(TEXT + f"{section}:\n  {name}: {word or 1}\n")
    named = f"{word} was dropped" if word else "this key was dropped"
    assert told(path) == f"{path}:14: {dotted}: {named}: {DROPPED[key]}"
    assert f"command line: {dotted}: {named}" in told(path, f"{dotted}={word or 1}")


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("  lr: 5e-4", "  lr: 5e-4\n  steps: 20", 13, "'steps' is written twice"),
        ("student: resnet18", "student: resnet18\ndata: {source: x}", 10, "'data' is written twice"),
        ("  lr: 5e-4", "  lr: .inf", 12, "loop.lr: input should be a finite number, but it is inf"),
        ("  lr: 5e-4", "  lr: -.inf", 12, "loop.lr: input should be a finite number"),
        ("  lr: 5e-4", "  lr: .nan", 12, "loop.lr: input should be a finite number, but it is nan"),
        ("  lr: 5e-4", "\tlr: 5e-4", 12, "indent with spaces, never with tabs"),
        ("  lr: 5e-4", "   lr: 5e-4", 12, "not valid YAML"),
        ("  labelled: 30", " labelled: 30", 4, "not valid YAML"),
        ("  steps: 10", "  steps: [10", 12, "not valid YAML"),
        ("  steps: 10", "  steps: 1.5", 11, "loop.steps: input should be a valid integer"),
        ("  steps: 10", "  steps: ten", 11, "loop.steps: input should be a valid integer, but it is 'ten'"),
        ("  steps: 10", "  steps: yes", 11, "loop.steps: input should be a valid integer, but it is 'yes'"),
        ("    loop: {lr: 0.5}", "    lop: {lr: 0.5}", 8, "teachers.1.lop: there is no such key. Did you mean 'loop'?"),
        ("    loop: {lr: 0.5}", "    loop: {lrr: 0.5}", 8, "teachers.1.loop.lrr: there is no such key. Did you mean"),
        ("seed: 3", "sed: 3", 1, "sed: there is no such key. Did you mean 'seed'?"),
        ("  lr: 5e-4", "  qqqq: 1", 12, "loop.qqqq: there is no such key. The keys here: epochs, steps, min_steps"),
        ("  lr: 5e-4", "  lr: 0", 12, "loop.lr: input should be greater than 0, but it is 0"),
        ("  lr: 5e-4", "  epochs: 3", 10, "epochs and steps exclude each other"),
        ("seed: 3", "losses: {blocks: [1, 2]}", 1, "losses.blocks has 2 weights but alignment.blocks is 4"),
    ],
)
def test_what_is_wrong_points_at_its_line(path, old, new, line, what):
    assert old in TEXT
    path.write_text(TEXT.replace(old, new))
    message = told(path)
    assert message.startswith(f"{path}:{line}: "), message
    assert what in message


def test_all_that_is_wrong_is_told_at_once(path):
    path.write_text(TEXT.replace("seed", "sed").replace("labelled: 30", "labelled: -1"))
    lines = told(path).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [[f"{path}:4", "data.labelled"], [f"{path}:1", "sed"]]


def test_a_missing_section_is_named(path):
    path.write_text(TEXT.replace("student: resnet18\n", ""))
    assert told(path) == f"{path}: student: this key is required and missing."


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "7\n"])
def test_a_recipe_is_a_mapping(path, text):
    path.write_text(text)
    assert told(path).startswith(f"{path}:1: a recipe is a mapping of sections")


def test_a_recipe_that_is_no_text(path):
    path.write_bytes(b"\xff\xfe\x00seed")
    assert "cannot be read as a recipe" in told(path)
    assert "cannot be read as a recipe" in told(path.parent)


def test_overrides_change_one_value_each(path):
    recipe = load_recipe(
        path,
        [
            "seed=7",
            "loop.lr=1e-3",
            "data.augmentation.hflip=0",
            "data.augmentation.scale=[0.5, 1.0]",
            "data.labelled=null",
            "teachers.0.size=64",
            "teachers.1.loop.lr=0.25",
            "student.args={drop_path_rate: 0.1}",
            "discriminators.adversary=none",
            "run=here",
        ],
    )
    assert (recipe.seed, recipe.loop.lr, recipe.loop.steps) == (7, 1e-3, 10)
    assert (recipe.data.augmentation.hflip, recipe.data.augmentation.scale) == (0, [0.5, 1.0])
    assert recipe.data.labelled is None
    assert (recipe.teachers[0].model, recipe.teachers[0].size) == ("resnet18.a1_in1k", 64)
    assert (recipe.teachers[1].model, recipe.teachers[1].loop.lr) == ("resnet34", 0.25)
    assert (recipe.student.model, recipe.student.args) == ("resnet18", {"drop_path_rate": 0.1})
    assert (recipe.discriminators.adversary, recipe.run) == ("none", "here")


def test_a_whole_list_can_be_overridden(path):
    recipe = load_recipe(path, ["teachers=[resnet18.a1_in1k, convnext_nano.in12k_ft_in1k, {train: test_vit}]"])
    assert [t.model for t in recipe.teachers] == ["resnet18.a1_in1k", "convnext_nano.in12k_ft_in1k", "test_vit"]
    assert [t.train for t in recipe.teachers] == [False, False, True]


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("loop.lr", "command line: 'loop.lr' is not an override. Write key=value, for example loop.lr=5e-4."),
        ("=3", "command line: '=3' is not an override."),
        ("loop.lrr=1", "command line: loop.lrr: there is no such key. Did you mean 'lr'?"),
        ("loop.lr=fast", "command line: loop.lr: input should be a valid number, but it is 'fast'"),
        ("loop.lr=.inf", "command line: loop.lr: input should be a finite number"),
        (
            "losses.similarity=klx",
            "command line: losses.similarity: 'klx' is not a value of this key: l1, l2, kl, ce, dist.",
        ),
        ("lop.lr=1", "command line: lop: there is no such key. Did you mean 'loop'?"),
        ("teachers.5.size=64", "command line: teachers.5.size: the recipe has no such entry to change."),
        ("seed.x=1", "command line: seed.x: the recipe has no such entry to change."),
        ("teachers=[a, b", "command line: teachers:1: not valid YAML"),
        ("teachers=[]", "command line: teachers: the list of teachers is empty."),
    ],
)
def test_a_wrong_override_is_told_as_such(path, override, what):
    assert what in told(path, override)


def test_the_run_folder_is_a_function_of_the_recipe(path):
    name = load_recipe(path).run
    assert name is not None
    assert name.startswith("runs/mine-")
    assert load_recipe(path, ["loop.log_every=3", "data.workers=0", "zoo.folder=elsewhere"]).run == name
    assert load_recipe(path, ["zoo.loop.log_every=3", "seed=3"]).run == name
    others = [load_recipe(path, [change]).run for change in ("seed=4", "loop.lr=1e-3", "teachers.1.loop.lr=0.1")]
    assert len({name, *others}) == 4


def test_the_resolved_recipe_reads_back_equal(path):
    recipe = load_recipe(path, ["loop.clip_grad=null", "student.args={drop_rate: 0.1}", "data.source='ünï: #x'"])
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert Recipe.model_validate(yaml.safe_load(to_yaml(recipe))) == recipe
    assert recipe_key(load_recipe(path)) == recipe_key(recipe)


def test_changed_keys_are_dotted():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    assert changed_keys(old, {"a": {"b": 2, "c": [1, 2]}, "d": None}) == ["a.b"]
    assert changed_keys(old, {"a": {"b": 1, "c": [1]}, "e": 0}) == ["a.c", "e"]
    assert changed_keys(old, {"a": {"b": 1, "c": [1, 3]}, "d": None}) == ["a.c.1"]
    assert changed_keys(old, old) == []


def test_a_fingerprint_knows_values_not_their_order():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint(0)) == 8


def test_did_you_mean_is_silent_without_a_near_word():
    assert did_you_mean("adamww", ["adamw", "sgd"]) == " Did you mean 'adamw'?"
    assert did_you_mean("zzz", ["adamw", "sgd"]) == ""


def test_a_wrong_recipe_is_told_within_a_second_and_without_torch(tmp_path):
    """A real process: code 2, one line on stderr, and torch not among the modules that it imported."""
    (tmp_path / "wrong.yaml").write_text(TEXT.replace("lr: 5e-4", "lrr: 5e-4"))
    code = (
        "import sys, train; code = train.main(sys.argv[1:]); "
        "print(sorted({'torch', 'timm', 'datasets', 'accelerate'} & sys.modules.keys())); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "wrong.yaml")]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.strip() == "[]"
    assert done.stderr == f"{tmp_path / 'wrong.yaml'}:12: loop.lrr: there is no such key. Did you mean 'lr'?\n"
    assert time.monotonic() - started < 5  # in well under one on an idle machine
