"""Class maps: a teacher's opinion reaches the right class of the data set, or the teacher is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CLASSES, refused, write
from helpers.checkpoints import local_dir, network, random_images
from timm.data import ImageNetInfo
from torch import Tensor

import train
from meco_timm.common import UserError, imagenet, read_class_names
from meco_timm.distillation.similarity import LOGITS
from meco_timm.evaluation.measures import accuracy
from meco_timm.networks import mean_logits
from meco_timm.networks.class_maps import MISSING, find_map
from meco_timm.networks.streams import NEVER, Stream, teacher_stream
from meco_timm.recipe.networks import Teacher
from meco_timm.recipe.recipe import Alignment

FIVE = ["ant", "bee", "cow", "dog", "eel"]
SHUFFLED = ["dog", "ant", "eel", "cow", "bee"]
PLACES = [1, 4, 3, 0, 2]  # of FIVE in SHUFFLED
IMAGENET = ImageNetInfo("imagenet-1k")
LACKS = ["n02085782", "n02089078", "n02089867", "n02091635", "n02112706", "n02113978", "n04399382"]  # of ImageNet-12k


def knows(names: list[str] | int) -> Any:
    """A network of such classes, as far as its config says."""
    count, config = (names, {}) if isinstance(names, int) else (len(names), {"label_names": names})
    return SimpleNamespace(num_classes=count, pretrained_cfg=config)


def found(
    names: list[str] | int, classes: list[str], said: str | list[int | str] | None = None, missing: str = "error"
) -> list[int] | None:
    return find_map(knows(names), classes, said, missing, "teachers.0")


def why(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        found(*arguments, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# A map, and what it does to a teacher's logits


def test_names_are_found_wherever_they_stand():
    assert found(SHUFFLED, FIVE) == PLACES
    assert found(FIVE, FIVE) is None
    assert found(["x", *SHUFFLED, "y"], FIVE) == [1 + place for place in PLACES]
    assert found(FIVE, ["eel", "ant"]) == [4, 0]


def test_names_by_number_as_configs_on_the_hub_have_them():
    config = {"label_names": {str(i): name for i, name in enumerate(SHUFFLED)}}
    model = SimpleNamespace(num_classes=5, pretrained_cfg=config)
    assert find_map(model, FIVE, None, "error", "teachers.0") == PLACES


@pytest.fixture(scope="module")
def plain() -> Any:
    return network("test_resnet", 5, seed=1)


def shuffled(plain: Any) -> Any:
    """The same network with its classes in the order of SHUFFLED."""
    other = network("test_resnet", 5, seed=2)
    state = plain.state_dict()
    order = [FIVE.index(name) for name in SHUFFLED]
    other.load_state_dict(state | {name: state[name][order] for name in ("fc.weight", "fc.bias")})
    return other


def teach(model: str, known: list[str], **options: Any) -> Stream:
    return teacher_stream(Teacher(model=model, size=32, **options), Alignment(blocks=0), known).eval()


def test_permuted_names_give_the_same_logits_and_accuracy(plain, tmp_path):
    """By the names of its config, by a list of numbers, by a list of names, and by a file of names."""
    first = teach(local_dir(tmp_path / "plain", plain, FIVE), FIVE)
    named = local_dir(tmp_path / "named", shuffled(plain), SHUFFLED)
    nameless = local_dir(tmp_path / "nameless", shuffled(plain))
    file = tmp_path / "names.txt"
    file.write_text("\n".join(SHUFFLED) + "\n")
    images, label = random_images(32, 20), torch.arange(20) % 5
    with torch.no_grad():
        expected = first(images).logits
        assert not torch.equal(teach(nameless, FIVE)(images).logits, expected)
        for name, classes in [(named, None), (named, FIVE), (nameless, PLACES), (nameless, str(file))]:
            logits = teach(name, FIVE, classes=classes)(images).logits
            torch.testing.assert_close(logits, expected)
            assert accuracy(logits, label) == accuracy(expected, label)


def test_a_larger_class_set_speaks_of_the_mapped_classes_alone(plain, tmp_path):
    """Its softmax runs over them, as a teacher of just these classes would have it."""
    stream = teach(local_dir(tmp_path, plain, FIVE), ["eel", "bee"])
    with torch.no_grad():
        own, logits = plain(stream.prepare(random_images(32))), stream(random_images(32)).logits
    torch.testing.assert_close(logits, own[:, [4, 1]])
    torch.testing.assert_close(logits.softmax(1), own.softmax(1)[:, [4, 1]] / own.softmax(1)[:, [4, 1]].sum(1, True))


# What the recipe says


def test_a_list_of_numbers_or_names_is_followed():
    assert found(FIVE, ["x", "y"], [3, 0]) == [3, 0]
    assert found(FIVE, ["x", "y"], ["dog", "ant"]) == [3, 0]
    assert found(FIVE, ["x", "y", "z"], ["dog", 0, 0]) == [3, 0, 0]
    assert found(7, ["x", "y"], [6, 2]) == [6, 2]


@pytest.mark.parametrize(
    ("names", "said", "told"),
    [
        (FIVE, [3], "teachers.0.classes: the list has 1 entries, the data set 2 classes."),
        (FIVE, [3, 5], "teachers.0.classes: 5 is not a class of the network, which has 0 to 4."),
        (FIVE, [3, -1], "teachers.0.classes: -1 is not a class of the network, which has 0 to 4."),
        (FIVE, ["dog", "ont"], "teachers.0.classes: the network has no class 'ont'. Did you mean 'ant'?"),
        (7, [3, "ant"], "the network has no class 'ant'. Its class names are unknown; write numbers."),
        (["ant", "dog", "ant"], ["dog", "ant"], "the network has no class 'ant'."),
    ],
)
def test_a_list_that_does_not_fit(names, said, told):
    assert told in why(names, ["x", "y"], said)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file or directory."),
        (b"ant\nbee\n", "has 2 names (one a line), the network 5 classes."),
        (b"\xff\xfe\x00", "is not text in UTF-8 (byte 1)."),
    ],
)
def test_a_file_of_names_that_does_not_fit(tmp_path, content, told):
    file = tmp_path / "names.txt"
    if content is not None:
        file.write_bytes(content)
    message = why(5, FIVE, str(file))
    assert message.startswith("teachers.0.classes: ")
    assert told in message


def test_a_file_of_names_outdoes_the_config(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(SHUFFLED))
    assert found(FIVE, FIVE, str(tmp_path / "names.txt")) == PLACES


# What is missing, and what is not clear


def test_a_missing_class_is_named():
    told = why(["ant", "bee"], ["bee", "cow"])
    assert "the network has 2 classes (ant, bee), the data set 2 (bee, cow); it lacks 1: cow." in told
    assert "teachers.0.classes" in told
    assert "teachers.0.missing=mask" in told
    assert "it lacks 7: " + ", ".join(LACKS[:5]) + " and 2 more." in why(11821, IMAGENET.label_names())


def test_without_a_map_both_sizes_and_the_first_names_are_told():
    told = why(["red", "green", "blue", "grey"], FIVE)
    assert "the network has 4 classes (red, green, blue and 1 more), the data set 5 (ant, bee, cow and 2 more)" in told
    assert "no names in common" in told
    told = why(37, FIVE)
    assert "the network has 37 classes (names unknown), the data set 5 (ant, bee, cow and 2 more)" in told
    assert "it is unknown which is which" in told
    for way in ("teachers.0.classes", "`train:`", "`gives: blocks`"):
        assert way in told


def test_as_many_classes_without_names_are_in_the_same_order():
    assert found(5, FIVE) is None
    assert found(["0", "1", "2", "3", "4"], FIVE) is None
    assert found(["ant", "bee", "cow", "hound", "eel"], FIVE) is None


def test_as_many_classes_in_another_order_are_not_taken_for_the_same():
    assert "it lacks 1: dog." in why(["bee", "ant", "cow", "hound", "eel"], FIVE)


def test_a_name_that_two_classes_have_is_neither():
    told = why(["crane", "ant", "crane"], ["ant", "crane"])
    assert "it lacks 1: crane." in told
    assert "it lacks 1: crane." in why(1000, ["goldfish, Carassius auratus", "crane"])


def test_masked_classes_are_never_spoken_of(plain, tmp_path):
    name = local_dir(tmp_path, plain, FIVE)
    stream = teach(name, ["eel", "fox", "bee"], missing="mask")
    assert stream.unknown == [1]
    with torch.no_grad():
        own, logits = plain(stream.prepare(random_images(32))), stream(random_images(32)).logits
    torch.testing.assert_close(logits[:, [0, 2]], own[:, [4, 1]])
    assert (logits[:, 1] == NEVER).all()
    assert (logits.softmax(1)[:, 1] == 0).all()
    with pytest.raises(UserError, match="no names in common"):
        teach(name, ["fox", "gnu"], missing="mask")


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_masked_class_makes_no_loss_infinite(kind, temperature, dtype):
    """One teacher, the mean of two that lack different classes, and of two that lack the same; and the gradients."""

    def masked(*classes: int) -> Tensor:
        logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(len(classes)))
        logits[:, classes] = NEVER
        return logits.to(dtype)

    pairs = [(masked(1), masked(2, 3)), (masked(1), masked(1, 2))]
    teachers = [masked(1), *(mean_logits(list(pair), temperature) for pair in pairs)]
    for teacher in teachers:
        student = torch.randn(4, 5, generator=torch.Generator().manual_seed(9)).requires_grad_()
        loss = LOGITS[kind](teacher.float(), student, temperature)
        loss.backward()
        assert loss.isfinite()
        assert student.grad.isfinite().all()
    both = teachers[2].float().softmax(1)
    assert (both[:, 1] == 0).all()
    assert both[:, 2].min() > 0  # one of the two knows it


# ImageNet


@pytest.mark.parametrize(("count", "lacks"), [(11821, 7), (11221, 9), (21841, 1), (21842, 0), (21843, 1)])
def test_larger_imagenets_are_mapped_to_its_thousand_classes(count, lacks):
    """12k, 21k (three editions) and 22k by synset, whether the data set has synsets or descriptions for names."""
    subset = {11821: "imagenet-12k", 11221: "imagenet-21k-miil", 21842: "imagenet-22k-ms"}
    theirs = ImageNetInfo(subset.get(count, "imagenet-22k" if count == 21841 else "imagenet-21k-goog")).label_names()
    names = IMAGENET.label_names()
    places = found(count, names, missing="mask")
    assert places.count(MISSING) == lacks
    assert all(theirs[place] == name for place, name in zip(places, names, strict=True) if place != MISSING)
    assert found(count, IMAGENET.label_descriptions(), missing="mask") == places
    if lacks:
        assert f"it lacks {lacks}: " in why(count, names)
    else:
        assert found(count, names) == places


def test_imagenet_by_description_with_its_two_cranes_and_maillots():
    """'crane' is a bird and a machine: told apart by their places among the thousand."""
    words = IMAGENET.label_descriptions()
    assert words.count("crane") == 2
    assert found(1000, words) is None
    assert found(words, IMAGENET.label_names()) is None
    assert found(words, words, missing="mask") is None
    places = found(21842, words)
    assert len(set(places)) == 1000
    hub = [{"n03126707": "crane2", "n03710721": "maillot, tank suit 2"}.get(s, w) for s, w in
           zip(IMAGENET.label_names(), words, strict=True)]  # fmt: skip
    assert found(1000, hub) is None
    assert found(21842, hub) == places


def test_a_part_of_imagenet_by_synset_or_description():
    assert found(1000, ["n01440764", "n02102040", "n03888257"]) == [0, 217, 701]
    assert found(1000, ["tench, Tinca tinca", "parachute, chute"]) == [0, 701]
    assert found(11821, ["parachute, chute"]) == found(11821, ["n03888257"])


def test_permuted_descriptions_are_not_taken_for_imagenets_order():
    words = IMAGENET.label_descriptions()
    assert "it lacks 2: crane, crane" in why(words[::-1], words)


def test_a_network_of_imagenet_21k_teaches_imagenet_1k():
    """A timm tag, as the plan sees it."""
    teacher = Teacher(model="vit_tiny_patch16_224.augreg_in21k", missing="mask")
    stream = teacher_stream(teacher, Alignment(blocks=0), IMAGENET.label_descriptions(), weightless=True)
    assert stream.model.num_classes == 21843
    assert [IMAGENET.label_names()[i] for i in stream.unknown] == ["n04399382"]
    assert stream(torch.zeros(2, 3, 224, 224, device="meta")).logits.shape == (2, 1000)


# In a run


def test_class_sets_that_do_not_fit_stop_before_anything_is_trained_or_written(plain, recipe, tmp_path, capsys):
    recipe["teachers"].append(local_dir(tmp_path / "mine", plain, FIVE))
    path = write(recipe, tmp_path)
    for options in ([], ["--plan"]):
        told = refused(capsys, path, *options)
        assert told.startswith(
            "teachers.2: the network has 5 classes (ant, bee, cow and 2 more), the data set 3 (circle, cross"
        )
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "recipe.yaml"}


def test_a_map_in_the_recipe_is_told_in_the_plan(plain, recipe, tmp_path, capsys):
    name = local_dir(tmp_path / "mine", plain, [*CLASSES[1:], "x", "y", "z"])
    recipe["teachers"] = [{"train": "test_resnet"}, {"model": name, "size": 32, "missing": "mask"}]
    assert train.main([write(recipe, tmp_path), "--plan"]) == 0
    told = capsys.readouterr().out
    assert "5 mapped to 3" in told
    assert "does not have 1 class(es) of the data set: circle" in told
    assert not (tmp_path / "run").exists()


def classes_in(tmp_path: Path, content: bytes) -> list[str]:
    (tmp_path / "classes.txt").write_bytes(content)
    return read_class_names(tmp_path / "classes.txt", "teachers.0.classes")


def test_class_files_as_editors_save_them(tmp_path):
    names = ["circle", "crôss", "a dash"]
    for content in ("circle\ncrôss\na dash\n", "\ufeffcircle \r\n crôss\r\na dash", "circle\ncrôss\na dash\n\n\n"):
        assert classes_in(tmp_path, content.encode()) == names


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("circle\nstriche ü".encode("latin-1"), r"is not text in UTF-8 \(byte 16\). Save it as UTF-8"),
        ("circle\ncross".encode("utf-16"), r"is not text in UTF-8 \(byte 1\)"),
        (b"circle\n\ncross\n", r"line 2 of .+classes.txt is blank"),
        (b"", r"line 1 of .+classes.txt is blank"),
        (b"circle\ncross\ncircle \n", r"lines 1 and 3 of .+classes.txt are both 'circle'"),
    ],
)
def test_class_files_that_are_none(tmp_path, content, said):
    with pytest.raises(UserError, match=f"^teachers.0.classes: .*{said}"):
        classes_in(tmp_path, content)


def test_imagenets_own_names_may_stand_twice(tmp_path):
    """Two of its classes are called crane, and two maillot."""
    names = imagenet("imagenet-1k").label_descriptions()
    assert classes_in(tmp_path, "\n".join(names).encode()) == names
