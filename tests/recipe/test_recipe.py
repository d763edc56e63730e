"""The schema: defaults, inheritance of loops, short forms, and contradictions that it refuses."""

from typing import Any

import pytest
from pydantic import ValidationError

from meco_timm.recipe.networks import Teacher, named_teachers
from meco_timm.recipe.recipe import Recipe
from meco_timm.recipe.schema import schema
from meco_timm.recipe.sections import Loop, Section

SMALLEST: dict[str, Any] = {"data": {"source": "x"}, "teachers": ["resnet18.a1_in1k"], "student": "resnet18"}


def make(**changes: Any) -> Recipe:
    return Recipe.model_validate(SMALLEST | changes)


def sections(section: type[Section] = Section) -> list[type[Section]]:
    return [s for child in section.__subclasses__() for s in (child, *sections(child))]


def test_the_default_is_the_papers_method_in_the_form_that_was_measured_best():
    """A random teacher, projected blocks, discriminators by position, soft labels only: LOG.md."""
    recipe = make()
    assert recipe.losses.similarity == "ce"
    assert recipe.losses.labels == 0
    assert (recipe.alignment.method, recipe.alignment.length) == ("projection", 1024)
    assert recipe.method.block_weights == [3.0] * 4
    d = recipe.discriminators
    assert (d.adversary, d.on, d.weight) == ("minimax", "blocks", 0.1)
    assert recipe.zoo.sampling == "random"
    assert recipe.loop.epochs == 100
    assert recipe.loop.steps is None


def test_blocks_are_computed_where_something_compares_them():
    assert make().alignment.blocks == 4
    assert make(alignment={"blocks": 3}).alignment.blocks == 3
    assert make(losses={"blocks": 0.0}).alignment.blocks == 0
    assert make(losses={"blocks": [0.0, 0.0, 0.0, 0.0]}).alignment.blocks == 4
    for on, blocks in {"blocks": 4, "all": 4, "logits": 0}.items():
        found = make(losses={"blocks": 0.0}, discriminators={"adversary": "minimax", "on": on})
        assert found.alignment.blocks == blocks


def test_what_is_not_written_follows_from_what_is():
    logits = make(losses={"blocks": 0.0})
    assert logits.discriminators.adversary == "none"
    vectors = make(alignment={"method": "grid"})
    assert (vectors.alignment.length, vectors.losses.blocks) == (256, 0.3)
    assert vectors.discriminators.adversary == "none"
    nothing = make(alignment={"blocks": 0})
    assert (nothing.losses.blocks, nothing.discriminators.adversary) == (0.0, "none")
    for recipe in (make(), logits, vectors, nothing):  # written out, it reads back as it is
        assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("section", sections(), ids=lambda s: s.__name__)
def test_every_field_is_documented(section):
    assert section.__doc__
    undocumented = {name: field.annotation for name, field in section.model_fields.items() if not field.description}
    others = [name for name, kind in undocumented.items() if not (isinstance(kind, type) and issubclass(kind, Section))]
    assert not others  # a section may be documented by its own docstring


def test_a_name_stands_for_a_network():
    recipe = make(teachers=["resnet18.a1_in1k", {"train": "resnet34"}, {"model": "vit_tiny_patch16_224", "size": 64}])
    assert recipe.student.model == "resnet18"
    assert [t.model for t in recipe.teachers] == ["resnet18.a1_in1k", "resnet34", "vit_tiny_patch16_224"]
    assert [t.train for t in recipe.teachers] == [False, True, False]
    assert [t.size for t in recipe.teachers] == [None, None, 64]


def test_a_tag_or_a_scheme_names_weights_and_an_architecture_does_not():
    names = {"resnet18.a1_in1k": True, "hf-hub:a/b": True, "local-dir:x": True, "resnet18": False}
    assert {name: make(student=name).student.names_weights for name in names} == names


def test_loops_inherit_and_say_so():
    recipe = make(
        loop={"lr": 0.5, "steps": 10, "batch_size": 4},
        zoo={"loop": {"lr": 0.25, "epochs": 3.0}},
        teachers=[{"train": "resnet18"}, {"train": "resnet34", "loop": {"steps": 7}}],
    )
    assert (recipe.loop.lr, recipe.loop.steps) == (0.5, 10)
    first, second = (teacher.loop for teacher in recipe.teachers)
    assert (first.lr, first.batch_size, first.steps, first.epochs) == (0.25, 4, None, 3.0)
    assert (second.lr, second.batch_size, second.steps, second.epochs) == (0.25, 4, 7, None)


def test_a_loop_changed_by_nothing_is_the_same():
    loop = Loop(steps=3, lr=0.1)
    assert loop.changed_by(Loop()) == loop
    least = Loop(epochs=2, min_steps=9)
    assert least.changed_by(Loop(lr=0.5)).min_steps == 9
    assert (least.changed_by(Loop(steps=7)).min_steps, least.changed_by(Loop(epochs=1)).min_steps) == (0, 0)


def test_one_block_weight_is_for_all_blocks():
    assert make(losses={"blocks": 0.5}, alignment={"blocks": 3}).method.block_weights == [0.5, 0.5, 0.5]
    assert make(losses={"blocks": [0.0, 1.0]}, alignment={"blocks": 2}).method.block_weights == [0.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loop": {"epochs": 1, "steps": 1}}, "epochs and steps exclude each other"),
        ({"loop": {"min_steps": 9, "steps": 1}}, "min_steps goes with epochs"),
        ({"loop": {"steps": 1}, "zoo": {"loop": {"min_steps": 9}}}, "min_steps goes with epochs"),
        ({"losses": {"blocks": [1.0]}}, "losses.blocks has 1 weights but alignment.blocks is 4"),
        ({"losses": {"logits": 0.0}}, "nothing would train the student's head"),
        ({"alignment": {"length": 40, "method": "grid"}}, "not a multiple of 16"),
        ({"alignment": {"length": 32, "method": "attention"}}, "not a square"),
        ({"loop": {"lr": float("inf")}}, "finite number"),
        ({"loop": {"batch_size": 8.0}}, "valid integer"),
        ({"seed": "0"}, "valid integer"),
        ({"teachers": []}, "at least 1 item"),
    ],
)
def test_contradictions_are_refused(changes, told):
    with pytest.raises(ValidationError, match=told):
        make(**changes)


def test_what_the_schema_for_editors_allows():
    import json

    tree = json.loads(schema())
    assert set(tree["required"]) == {"data", "teachers", "student"}
    assert {"type": "string"} in tree["properties"]["student"]["anyOf"]
    assert {"type": "string"} in tree["properties"]["teachers"]["items"]["anyOf"]
    assert not any(definition["additionalProperties"] for definition in tree["$defs"].values())


def test_a_teacher_is_not_named_as_a_row_of_the_table():
    """A student of another run lies in a folder `student`."""
    teachers = [Teacher(model="local-dir:runs/first/student"), Teacher(model="local-dir:b")]
    assert list(named_teachers(teachers)) == ["student of first", "local-dir:b"]
