"""A recipe as a dict, a file or a Recipe, and objects in place of its names: what becomes of them, what is refused."""

from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import timm
import torch
import torchvision
from conftest import ROOT, write
from torch import Tensor, nn

from meco_timm import UserError, load_recipe, plan
from meco_timm.recipe import fingerprint, recipe_key, to_yaml
from meco_timm.runs import as_recipe, check_same

QUICKSTART = ROOT / "recipes/quickstart.yaml"


class Plain(nn.Module):
    """A network of no library."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Tuple(Plain):
    """It gives more than logits."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def huber(teacher: Tensor, student: Tensor) -> Tensor:
    return nn.functional.huber_loss(student, teacher)


def test_a_dict_a_file_and_a_recipe_are_the_same(recipe, tmp_path):
    path = write(recipe, tmp_path)
    assert as_recipe(recipe) == as_recipe(path) == as_recipe(load_recipe(path)) == load_recipe(path)
    assert as_recipe("quickstart") == load_recipe("quickstart")


def test_an_unknown_key_of_a_dict_is_refused_with_the_nearest():
    with pytest.raises(UserError) as error:
        as_recipe({"data": {"source": "x"}, "teachers": ["resnet18"], "student": "resnet18", "loop": {"lrr": 1.0}})
    assert str(error.value) == "recipe: loop.lrr: there is no such key. Did you mean 'lr'?"
    with pytest.raises(UserError, match="recipe: student: this key is required and missing"):
        as_recipe({}, teachers=["resnet18"], data="x")


def test_names_in_place_of_names():
    found = as_recipe(QUICKSTART, student="resnet18", teachers=["resnet50.a1_in1k", {"train": "test_vit"}], data="x")
    assert (found.student.model, found.data.source, found.data.labelled) == ("resnet18", "x", 300)
    assert [(teacher.model, teacher.train) for teacher in found.teachers] == [
        ("resnet50.a1_in1k", False),
        ("test_vit", True),
    ]
    assert found.run.startswith("runs/quickstart-")
    assert found.run != load_recipe(QUICKSTART).run


def test_objects_have_a_name_with_a_digest_of_their_weights():
    found = as_recipe(QUICKSTART, student=timm.create_model("test_resnet"), teachers=["test_vit", Plain(), Plain(1)])
    names = [found.student.model, *(teacher.model for teacher in found.teachers)]
    assert [name.split("@")[0] for name in names] == ["object:test_resnet", "test_vit", "object:Plain", "object:Plain"]
    assert len(set(names)) == 4
    assert as_recipe(QUICKSTART, teachers=[Plain()]).teachers[0].model == names[2]
    assert "object:Plain@" in to_yaml(found)


def test_a_recipe_is_left_as_it_is_and_its_objects_go_on():
    first = load_recipe(QUICKSTART)
    second = as_recipe(first, teachers=[Plain()], similarity=huber)
    third = as_recipe(second, student=timm.create_model("test_resnet"))
    assert first == load_recipe(QUICKSTART)
    assert isinstance(third.teachers[0].object.module, Plain)
    assert third.losses.object is huber
    assert len({first.run, second.run, third.run}) == 3
    assert as_recipe(load_recipe(QUICKSTART, ["run=here"]), teachers=[Plain()]).run == "here"


def test_the_student_is_a_copy():
    student = timm.create_model("test_resnet")
    found = as_recipe(QUICKSTART, student=student)
    with torch.no_grad():
        next(student.parameters()).zero_()
    assert next(found.student.object.module.parameters()).any()


def test_a_similarity_is_named_with_a_digest_of_its_source():
    def other(teacher: Tensor, student: Tensor) -> Tensor:
        return 2 * nn.functional.huber_loss(student, teacher)

    names = [as_recipe(QUICKSTART, similarity=one).losses.similarity for one in (huber, other, nn.HuberLoss())]
    assert [name.split("@")[0] for name in names] == ["object:huber", "object:other", "object:HuberLoss"]
    assert as_recipe(QUICKSTART, similarity=huber).losses.similarity == names[0]


REFUSED = {
    "a student of no library": ({"student": Plain()}, "student: Plain is not a timm network: it has no forward_"),
    "a module of torchvision that is to be trained": (
        {"teachers": [{"model": torchvision.models.resnet18(num_classes=3), "train": True}]},
        "teachers.0: ResNet is not a timm network: it has no forward_intermediates. So it cannot be trained here, only "
        "teach. Create it with timm.create_model, or leave out `train` of a teacher.",
    ),
    "args of a module": (
        {"teachers": [{"model": Plain(), "args": {"a": 1}}]},
        "teachers.0.args: for networks by name. A module has its arguments and weights already.",
    ),
    "a number": ({"teachers": [5]}, "teachers.0: int is no teacher. Give a timm name, a module, or a dict with"),
    "an unknown key": (
        {"teachers": [{"model": Plain(), "sise": 32}]},
        "teachers.0.sise: there is no such key. Did you mean 'size'?",
    ),
    "a tuple": (
        {"teachers": [{"model": Tuple(), "size": 32}]},
        "teachers.0: Tuple gives a tuple instead of logits, one tensor B×K.",
    ),
    "a loss per image": (
        {"similarity": lambda teacher, student: (teacher - student).square().mean(1)},
        "similarity: it gives a tensor (2,), not one number. Write a function of the teacher's and",
    ),
    "a loss that fails": (
        {"similarity": lambda logits: logits.sum()},
        "similarity: it fails for logits 2×3: TypeError",
    ),
    "a loss without gradient": (
        {"similarity": lambda teacher, student: (teacher - student.detach()).mean()},
        "similarity: its number has no gradient to the student's logits.",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what, recipe):
    objects, message = REFUSED[what]
    with pytest.raises(UserError) as error:
        plan(recipe, **objects)
    assert message in str(error.value)


def test_objects_are_asked_for_where_a_file_names_them(recipe, tmp_path):
    found = as_recipe(recipe, student=timm.create_model("test_resnet"), teachers=[Plain()], similarity=huber)
    (tmp_path / "recipe.yaml").write_text(to_yaml(found))
    read = load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match=r"losses.similarity: object:huber@\w+ is a function of a Python program. Give"):
        plan(read)
    with pytest.raises(UserError, match=r"student: object:test_resnet@\w+ is a network of a Python program. Give it"):
        plan(read, similarity=huber)
    with pytest.raises(UserError, match=r"teachers.0: object:Plain@\w+ is a network of a Python program"):
        plan(read, similarity=huber, student="test_resnet")


def test_processes_with_other_objects_are_refused(monkeypatch):
    """As where networks were made from other seeds."""
    mine, theirs = (as_recipe(QUICKSTART, teachers=[Plain(seed)]) for seed in (0, 1))
    accelerator = SimpleNamespace(num_processes=2)
    keys = [fingerprint(recipe_key(one)) for one in (mine, theirs)]
    monkeypatch.setattr("meco_timm.runs.arguments.gather_object", lambda own: own + keys[:1])
    check_same(mine, accelerator)
    monkeypatch.setattr("meco_timm.runs.arguments.gather_object", lambda own: own + keys[1:])
    with pytest.raises(UserError, match=r"the processes were given different recipes or objects. Seed every process"):
        check_same(mine, accelerator)
    check_same(mine, SimpleNamespace(num_processes=1))


def test_a_data_set_of_python_is_not_published(shapes):
    given = {"publish": {"repo": "you/yours"}, "data": {}, "teachers": ["test_vit"], "student": "test_vit"}
    with pytest.raises(
        UserError, match=r"publish: the student is evaluated again before it is uploaded, and a data set"
    ):
        as_recipe(given, data=datasets.load_dataset(str(shapes)))
