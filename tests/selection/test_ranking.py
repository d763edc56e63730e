"""`meco-timm zoo`: one pass over each teacher, what it says, and what it refuses."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from conftest import contents, write
from helpers.checkpoints import local_dir, network

from meco_timm import UserError, load_recipe, rank_teachers
from meco_timm.cli import main
from meco_timm.evaluation import contributions
from meco_timm.networks.streams import Stream
from meco_timm.selection import kept_logits
from meco_timm.selection.candidates import find_candidates
from meco_timm.selection.ranking import Ranking, compare_ensembles, duplicates, ensemble_to_keep
from meco_timm.selection.ranking_table import print_ranking

Recipe = dict[str, Any]


@pytest.fixture
def trained(ended: Path, tmp_path: Path) -> Recipe:
    """The recipe of a run whose two teachers are in the zoo; what is kept of them is new."""
    recipe = yaml.safe_load((ended.parent / "recipe.yaml").read_text())
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    for folder in (ended.parent / "zoo").glob("test_*"):
        (zoo / folder.name).symlink_to(folder)
    return recipe | {"zoo": recipe["zoo"] | {"folder": str(zoo)}}


def place(recipe: Recipe, name: str) -> str:
    (folder,) = Path(recipe["zoo"]["folder"]).glob(f"{name}-*")
    return f"local-dir:{folder}"


def ranked(recipe: Recipe, folder: Path, *candidates: str, images: int | None = None) -> Ranking:
    return rank_teachers(load_recipe(write(recipe, folder)), images, candidates)


def test_the_command_names_teachers_duplicates_and_a_list_to_use(trained, tmp_path, capsys):
    (tmp_path / "more.txt").write_text(f"# again\n{place(trained, 'test_resnet')}\n\n")
    path = write(trained, tmp_path)
    assert main(["zoo", path, "--candidates", str(tmp_path / "more.txt")]) == 0
    shown = capsys.readouterr().out
    assert f"{place(trained, 'test_resnet')}: already here" in shown
    assert re.search(r"^3 teachers on 9 labelled validation images", shown, re.MULTILINE)
    assert re.search(r"^duplicates: test_resnet and test_resnet-\w+ have the same weights$", shown, re.MULTILINE)
    for head in ("Each teacher", "What each adds", "Disagreement", "κ", "CKA", "Best ensemble of each size"):
        assert head in shown
    (line,) = re.findall(r"^teachers: (.*)$", shown, re.MULTILINE)
    suggested = load_recipe(path, [f"teachers={line}"]).teachers
    assert {teacher.model for teacher in suggested} <= {"test_resnet", "test_efficientnet"}
    assert all(teacher.train for teacher in suggested)


def shown(wrong: list[set[int]], images: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The printed ranking of teachers that are wrong on these images; each is surer than the one before."""
    label = torch.arange(images) % 4
    logits = []
    for number, own in enumerate(wrong):
        answer = torch.tensor([(y + 1) % 4 if i in own else y for i, y in enumerate(label.tolist())])
        logits.append(((4 + 4 * number) * torch.eye(4)[answer]).numpy())
    found, count = contributions(logits, label), len(wrong)
    kept = ensemble_to_keep(found)
    change = None if set(kept) == {1.0} else compare_ensembles(logits, label, kept, None)
    names, same = list("abcdef"[:count]), duplicates([str(i) for i in range(count)], found)
    ranking = Ranking(
        names, images, [1000] * count, [1.0] * count, found, kept, change, None, same, [], names, calibrated=False
    )
    print_ranking(ranking, "digits")
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "images", "lines"),
    [
        # each teacher is wrong on 3 of 120 images, all together on none
        (
            [{0, 1, 2}, {10, 11, 12}, {20, 21, 22}],
            120,
            ["Keep all of them: a, b, c.", "120 images cannot tell whether fewer would do, as a, c with 97.50 %."],
        ),
        ([set(range(40))] * 2, 1000, ["Keep a; drop b.", "1,000 images counts as before", "dropped: b adds"]),
        (
            [set(range(40)), set(range(100, 800))],
            1000,
            ["Keep a; drop b.", "b makes the true ensemble worse: top-1"],
        ),
    ],
    ids=["few images", "twice the same", "a bad one"],
)
def test_the_answer_comes_first_and_says_how_sure_it_is(wrong, images, lines, capsys):
    text = shown(wrong, images, capsys)
    assert text.splitlines()[2].startswith("Keep ")
    assert text.splitlines()[3].startswith("teachers: [a")
    for line in lines:
        assert line in text.partition("Each teacher")[0], text
    assert "+0.00 (+0.00 to +0.00)" not in text
    assert "+0.00 to +0.00" not in text


def test_each_teacher_runs_once_and_never_again(trained, tmp_path, monkeypatch):
    seen: Counter[int] = Counter()
    forward = Stream.forward

    def counted(self: Stream, image: Any) -> Any:
        seen[id(self)] += len(image) if image.dtype.is_floating_point is False else 0
        return forward(self, image)

    monkeypatch.setattr(Stream, "forward", counted)
    first = ranked(trained, tmp_path)
    assert sorted(seen.values())[-2:] == [9, 9]
    monkeypatch.setattr(kept_logits, "_compute", lambda *_: pytest.fail("computed again"))
    again = ranked(trained, tmp_path)
    assert [m.nll for m in again.found.members] == [m.nll for m in first.found.members]
    assert again.images_per_s == first.images_per_s


def test_its_figures_are_those_of_the_validation_split(trained, tmp_path):
    found = ranked(trained, tmp_path)
    lines = (Path(place(trained, "test_resnet").removeprefix("local-dir:")) / "metrics.jsonl").read_text().splitlines()
    best = max((json.loads(line).get("validation/top1") or 0) for line in lines)
    assert found.found.members[0].top1 == pytest.approx(best)
    assert found.similarity is not None
    assert found.similarity.shape == (2, 2)
    assert found.similarity[0, 0].item() == pytest.approx(1)
    assert ranked(trained, tmp_path, images=5).images == 5


def test_nothing_of_the_zoo_changes(trained, ended, tmp_path):
    before = contents(ended.parent / "zoo")
    ranked(trained, tmp_path)
    assert contents(ended.parent / "zoo") == before


def test_teachers_that_are_not_trained_are_left_out_and_never_trained(recipe, tmp_path, capsys):
    assert main(["zoo", write(recipe, tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "no teacher can be ranked, so there is nothing to compare" in told
    assert "test_resnet: left out, since it is not trained yet" in told
    assert not (tmp_path / "zoo").exists()


def _refused(path: str, *options: str) -> str:
    with pytest.raises(UserError) as caught:
        rank_teachers(load_recipe(path), None, options)
    return str(caught.value)


def test_one_teacher_leaves_nothing_to_rank(trained, tmp_path):
    told = _refused(write(trained | {"teachers": [{"train": "test_resnet"}]}, tmp_path))
    assert "only test_resnet can be ranked, so there is nothing to compare" in told
    assert "--candidates" in told


def test_teachers_of_blocks_only_are_left_out(trained, tmp_path):
    blocks = [{"model": place(trained, "test_resnet"), "gives": "blocks"}] * 2
    told = _refused(write(trained | {"teachers": blocks}, tmp_path))
    assert "no teacher can be ranked" in told
    assert told.count("left out, since it gives blocks only") == 2
    found = ranked(trained | {"teachers": [*trained["teachers"], *blocks]}, tmp_path)
    assert len(found.names) == 2
    assert len(found.notes) == 2


def test_no_validation_image_is_refused(trained, tmp_path):
    told = _refused(write(trained | {"data": trained["data"] | {"validation": 0.0}}, tmp_path))
    assert told.startswith("data.validation: there is no labelled validation image")


def test_a_class_that_no_teacher_knows_is_refused(trained, tmp_path):
    names = ["<img src=x onerror=alert(1)>", "[cross](javascript:x) *b* |c|", "another"]
    config = {"input_size": (3, 32, 32)}
    places = [local_dir(tmp_path / str(seed), network("test_resnet", 3, seed), names, config) for seed in (0, 1)]
    teachers = [{"model": place, "missing": "mask", "trust": True} for place in places]
    told = _refused(write(trained | {"teachers": teachers}, tmp_path))
    assert "none of them knows 1 class(es) of the data set: dash" in told
    found = ranked(trained | {"teachers": [*teachers, {"train": "test_resnet"}]}, tmp_path)
    assert found.found.ensemble.nll < found.found.members[0].nll


def test_candidates_that_do_not_fit_are_left_out_by_name(trained, tmp_path):
    other = local_dir(tmp_path / "other", network("test_vit", 7), [f"class {i}" for i in range(7)])
    found = ranked(trained, tmp_path, other)
    assert len(found.names) == 2
    assert found.notes[0].startswith("other: left out: teachers.2")


def test_candidates_by_file_pattern_and_place(tmp_path):
    found = find_candidates("test_resnet*")
    assert [candidate.name for candidate in found] == timm.list_pretrained("test_resnet*")
    assert 1 < found[0].megabytes < 3  # 0.47 million parameters of 4 bytes
    for text, message in [
        ("no_such_network", "fits no network of timm"),
        ("*", "more than 100"),
        (str(tmp_path / "empty.txt"), "names no network"),
    ]:
        (tmp_path / "empty.txt").write_text("# nothing\n")
        with pytest.raises(UserError, match=message):
            find_candidates(text)


def test_a_download_is_asked_for_first(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("typer.confirm", lambda *_, **__: (_ for _ in ()).throw(SystemExit(1)))
    assert main(["zoo", write(trained, tmp_path), "--candidates", "test_resnet.*"]) == 1
    assert "MB to download" in capsys.readouterr().out
