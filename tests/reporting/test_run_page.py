"""The report: one page that needs nothing but itself, safe to open, readable by eyes and by screen readers."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ODD_CLASSES, base_recipe, contents
from helpers.browser import PROGRAM, Browser
from helpers.predictions import some_predictions

from meco_timm import UserError, compare, report
from meco_timm.common import draw
from meco_timm.evaluation.predictions import Predictions, load_predictions, save_predictions
from meco_timm.evaluation.rows import Row
from meco_timm.recipe import Recipe, to_yaml
from meco_timm.reporting.curves import adversary_chart, drawn_chart, similarity_chart, validation_chart
from meco_timm.reporting.drawing import Chart, chart_style, shorten
from meco_timm.reporting.figures import class_chart, confusion_chart, cost_chart, decade_ticks
from meco_timm.reporting.pages import thumbnail
from meco_timm.reporting.results import Results, drawn_teachers, metrics_by_teacher, read_keys, read_results, summary
from meco_timm.reporting.run_page import report_page, report_sections, soft_labels
from meco_timm.training.run_folder import RunFolder

needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")


class Page(HTMLParser):
    """Elements of a page, and whether each is closed in its turn."""

    EMPTY = ("meta", "img", "br", "link", "hr")

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(ended: Path) -> str:
    return report_page(read_results(ended))


def test_it_is_in_the_run_folder_and_is_made_again_alike(ended, tmp_path):
    run = shutil.copytree(ended, tmp_path / "run")
    before = contents(run)
    assert report(run) == run / "report.html"
    after = contents(run)
    assert after.keys() == before.keys()
    assert after == before  # every byte, so that nothing in it is a matter of chance


def test_it_is_well_formed_and_asks_for_nothing(page):
    found = Page(page)
    assert found.open == []
    assert not found.of("script")
    assert not found.of("link")
    assert all(str(image["src"]).startswith("data:image/") for image in found.of("img"))
    assert not re.search(r'(?:href|src|url\()\s*=?\s*"?(?:https?:)?//', page)
    policy = found.of("meta")[2]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert "default-src 'none'" in str(policy["content"])


def test_it_says_all_that_it_should(page, ended):
    text = " ".join(Page(page).text)
    headings = ("Accuracy against cost", "Calibration", "Learning", "Similarity to the teachers",
                "Adversary", "Drawn teachers", "Blocks: test_resnet", "Soft labels", "Plan")  # fmt: skip
    assert all(heading in text for heading in headings)
    results = read_results(ended)
    assert summary(results) in text
    assert all(row.name in text and f"{row.top1:.2f}" in text for row in results.rows)


def test_a_screen_reader_finds_text_for_every_figure(page):
    found = Page(page)
    charts = [svg for svg in found.of("svg") if svg.get("role") == "img"]
    assert len(charts) == len(found.of("svg")) == len(found.of("figure")) >= 14
    assert all(len(str(chart["aria-label"])) > 30 for chart in charts)
    assert all(image["alt"] for image in found.of("img"))
    assert all(head["scope"] in ("col", "row") for head in found.of("th"))
    assert found.of("html")[0]["lang"] == "en"


def test_ids_are_unique_and_every_reference_has_one(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([\w.-]+)', page)) <= set(ids)


def test_names_of_classes_stay_text(page):
    found = Page(page)
    assert "<img src=x" not in page
    assert not any("onerror" in attributes for _, attributes in found.elements)
    text = " ".join(found.text)
    assert f"Labelled {ODD_CLASSES[0]}" in text
    assert shorten(ODD_CLASSES[0], 11) == "<img sr…1)>"
    assert "<img sr…1)>" in text  # on an axis
    assert "$" in text  # no mathematics is made of it


def test_other_text_of_users_stays_text(ended):
    results = read_results(ended)
    evil = '"><script>alert(1)</script>'
    data = results.recipe["data"] | {"source": evil}
    page = report_page(results._replace(recipe=results.recipe | {"data": data}))
    assert not Page(page).of("script")
    assert "&lt;script&gt;" in page


def test_without_predictions_the_rest_is_there(ended, tmp_path):
    run = shutil.copytree(ended, tmp_path / "run")
    (run / "predictions.safetensors").unlink()
    page = report(run).read_text()
    assert "has no saved predictions" in page
    assert "Accuracy against cost" in page
    assert "Calibration" not in page


def test_a_run_that_has_not_ended(ended, tmp_path):
    run = shutil.copytree(ended, tmp_path / "run")
    (run / "table.json").unlink()
    with pytest.raises(UserError, match="the run has not finished"):
        report(run)


@pytest.mark.parametrize("text", ["{", '{"rows": [{"name": "student"}]}', '{"rows": []}'])
def test_a_damaged_table(ended, tmp_path, text):
    run = shutil.copytree(ended, tmp_path / "run")
    (run / "table.json").write_text(text)
    with pytest.raises(UserError, match=r"damaged"):
        report(run)


# Every axis has a name and a unit, and what is drawn is what is known


def labels(chart: Chart | None) -> list[str]:
    """The names of the axes of a chart; a shared one counts once."""
    assert chart is not None
    own = [label for axis in chart.figure.axes for label in (axis.get_xlabel(), axis.get_ylabel())]
    return [label for label in (*own, chart.figure.get_supylabel()) if label]


def test_every_axis_has_a_name_and_a_unit(ended):
    results = read_results(ended)
    units = ("%", "nats", "steps", "difference", "millions", "points", "images", "number", "name", "classes")
    with chart_style():
        charts = [chart for _, _, found in report_sections(results) for chart in found]
        for chart in charts:
            assert len(labels(chart)) >= 2
            assert all(any(unit in label for unit in units) for label in labels(chart)), labels(chart)
        for chart, _, _ in soft_labels(results):
            assert chart.figure.get_supylabel() == "probability (%)"
            assert "class (name)" in labels(chart)


def test_series_differ_without_colour():
    from meco_timm.reporting.drawing import ROLES, SERIES

    looks = [(marker, str(line)) for _, marker, line in SERIES]
    looks += [(role["marker"], role["linestyle"]) for role in ROLES.values()]
    assert len(set(looks)) == len(looks)
    assert len({marker for marker, _ in looks}) == len(looks)


def row(name: str, top1: float = 90.0, cost: int = 10**6) -> Row:
    return Row(name, top1, None, 0.3, 2.0, 1000, cost, 100.0, top1, {})


def test_a_point_per_network_where_it_belongs():
    chart = cost_chart([row("a", 90, 10**6), row("student", 91, 10**9)], ["a"])
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in chart.figure.axes[0].lines]
    assert points == [(1, 90), (1000, 91)]
    assert "student 91.00 % at 1000.0 million" in chart.text


def test_a_network_whose_cost_is_unknown_is_drawn():
    with chart_style():
        assert "<svg" in cost_chart([row("a", 90, 0), row("student", 91, 10**6)], ["a"]).svg()


@pytest.mark.parametrize(("least", "most"), [(1, 8), (0.001, 4000), (3, 3), (17.1, 17.9), (1, 1e9)])
def test_ticks_lie_in_the_picture_and_are_few_and_different(least, most):
    ticks = decade_ticks(least, most)
    assert 1 <= len(ticks) <= 10
    assert len(set(ticks)) == len(ticks)
    assert all(least / 1.5 <= tick <= most * 1.5 for tick in ticks)


def test_the_drawn_teacher_is_the_one_that_taught(ended):
    results = read_results(ended)
    taught = drawn_teachers(results)
    assert taught.tolist() == [draw(0, step, 2) for step in range(30)]
    by_teacher = metrics_by_teacher(results)
    assert by_teacher.keys() == {"test_resnet", "test_efficientnet"}
    assert sum(map(len, by_teacher.values())) == len(results.metrics)
    assert all(taught[line["step"] - 1] == 1 for line in by_teacher["test_efficientnet"])
    average = results.recipe["zoo"] | {"sampling": "average"}
    assert len(drawn_teachers(results._replace(recipe=results.recipe | {"zoo": average}))) == 0
    chart = drawn_chart(taught, ["a", "b"])
    assert f"a {(taught == 0).sum()}, b {(taught == 1).sum()}" in chart.text


def test_nothing_to_draw_is_no_chart(ended):
    losses = read_results(ended).recipe["losses"]
    assert adversary_chart([{"step": 1, "total": 1.0}]) is None
    assert similarity_chart([], losses, {}) is None
    assert similarity_chart([{"step": 1, "similarity/logits": None}], losses, {}) is None
    assert validation_chart({"student": [{"step": 1, "validation/top1": 50.0}]}) is None
    p = some_predictions()
    alike = p._replace(predicted=np.stack([p.predicted[2]] * 3))
    assert confusion_chart(alike) is None
    assert class_chart(alike) is None


def test_a_loss_that_was_not_finite_is_a_gap():
    lines = [{"step": i, "similarity/logits": None if i == 3 else float(i)} for i in range(1, 9)]
    chart = similarity_chart(lines, {"similarity": "ce", "block_similarity": "l2"}, {})
    assert chart is not None
    assert chart.figure.axes[0].lines[0].get_xdata().tolist() == [1, 2, 4, 5, 6, 7, 8]


def test_of_many_classes_the_two_ends_are_drawn():
    p = some_predictions(3000, 100)
    chart = class_chart(p)
    assert chart is not None
    assert len(chart.figure.axes[0].patches) == 24
    assert "76 classes that changed less" in chart.caption


def test_large_images_are_shown_small():
    image = np.random.default_rng(0).integers(0, 256, (3, 512, 512)).astype(np.uint8)
    assert thumbnail(image).startswith("data:image/jpeg")
    assert len(thumbnail(image)) < 40_000
    assert thumbnail(image[:, :32, :32]).startswith("data:image/png")


# A thousand classes


def imagenet_like(folder: Path) -> Results:
    """A run as of ImageNet: 50,000 test images, 1,000 classes, 5 teachers, 100,000 steps."""
    generator = np.random.default_rng(0)
    networks = [*(f"teacher_{i}" for i in range(5)), "true ensemble", "student alone", "student"]
    shape = (len(networks), 50_000)
    label = np.repeat(np.arange(1000), 50).astype(np.int32)
    predicted = np.where(generator.random(shape) < 0.8, label, generator.integers(0, 1000, shape)).astype(np.int32)
    pairs = [f"{who}/teacher_{i}" for i in range(5) for who in ("student", "student alone")]
    p = Predictions(
        classes=[f"a class with a rather long name, number {i} & <so on>" for i in range(1000)],
        networks=networks,
        label=label,
        predicted=predicted,
        confidence=generator.random(shape, dtype=np.float32),
        of_label=generator.random(shape, dtype=np.float32),
        examples=np.arange(0, 600, 100, dtype=np.int32),
        images=generator.integers(0, 256, (6, 3, 224, 224)).astype(np.uint8),
        probabilities=generator.dirichlet(np.full(1000, 0.01), (6, len(networks))).astype(np.float32),
        agreement={pair: generator.random((4, 4)).astype(np.float32) for pair in pairs},
    )
    raw = base_recipe("imagenet", folder) | {"teachers": [{"train": f"teacher_{i}"} for i in range(5)]}
    places = ("0", "1", "2", "3", "logits")
    terms = [f"{term}/{place}" for term in ("similarity", "adversary", "discriminator_accuracy") for place in places]
    values = generator.random((10_000, len(terms))).tolist()
    metrics = [{"step": 10 * i + 10, **dict(zip(terms, line, strict=True))} for i, line in enumerate(values)]
    metrics += [{"step": step, "validation/top1": step / 2000} for step in range(5000, 100_001, 5000)]
    right = 100 * (predicted == label).mean(1)
    rows = [row(name, right[i], 10**9 * (i + 1)) for i, name in enumerate(networks)]
    recipe = Recipe.model_validate(raw)
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    about = {
        "images": {"train": 1_281_167, "labelled": 1_281_167, "validation": 10_000, "test": 50_000},
        "weights": {f"teacher_{i}": 1.0 for i in range(5)},
        "notes": [],
        "versions": {},
        **{"steps": 100_000, "batch_size": 256, "processes": 8, "device": "cuda", "precision": "bf16"},
    }
    return Results(RunFolder(folder), read_keys(RunFolder(folder)), rows, about, metrics, p)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thousand")
    file = folder / "report.html"
    file.write_text(report_page(imagenet_like(folder)), encoding="utf-8")
    return file


def test_a_thousand_classes_stay_under_five_megabytes(thousand):
    assert thousand.stat().st_size < 5e6


@needs_browser
def test_a_thousand_classes_open_in_two_seconds(thousand):
    with Browser() as browser:
        browser.open(thousand)  # the first page that a browser opens pays for its start
        assert min(browser.open(thousand) for _ in range(3)) < 2


# In a browser

OVERFLOWING = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
OUTSIDE = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const t = text.getBoundingClientRect();
    return t.left < box.left - 2 || t.right > box.right + 2 || t.top < box.top - 2 || t.bottom > box.bottom + 2;
  }).map(text => text.textContent);
})"""
OVERLAPPING = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const level = t => !/rotate\\(-?[1-9]/.test(t.getAttribute('transform') || '');
  const texts = [...svg.querySelectorAll('text')].filter(level)
    .map(t => [t.textContent, t.getBoundingClientRect()]);
  const over = (p, q) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1.5
    && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4;
  return texts.flatMap(([a, p], i) => texts.slice(i + 1).filter(([b, q]) => over(p, q))
    .map(([b]) => a + ' / ' + b));
})"""
SMALLEST = "Math.min(...[...document.querySelectorAll('figure svg text')].map(t => t.getBoundingClientRect().height))"
COLOURS = "['color', 'backgroundColor'].map(key => getComputedStyle(document.body)[key]).join(' on ')"


@needs_browser
def test_it_opens_without_complaint_or_request_and_nothing_overlaps(ended, thousand, tmp_path):
    """At the width of a desk and of a phone, light and dark."""
    both = compare([ended, shutil.copytree(ended, tmp_path / "other")], tmp_path / "compare.html")
    seen = set()
    with Browser() as browser:
        for file in (ended / "report.html", thousand, both):
            for width in (1280, 390):
                for dark in (False, True):
                    browser.open(file, width, dark)
                    assert browser.run("document.querySelectorAll('figure svg').length") >= 3
                    assert browser.complaints() == []
                    assert browser.requests() == []
                    assert browser.run(OVERFLOWING) == 0
                    seen.add(browser.run(COLOURS))
                assert browser.run(OUTSIDE) == [], (file, width)
                assert browser.run(OVERLAPPING) == [], (file, width)
                assert browser.run(SMALLEST) > 7
    assert len(seen) == 2


@needs_browser
def test_the_browser_of_the_tests_does_see_complaints_and_requests(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.log('hm'); throw new Error('no')</script><img src='http://127.0.0.1:9/x.png'>")
    with Browser() as browser:
        browser.open(bad)
        assert len(browser.complaints()) >= 2
        assert browser.requests() == ["http://127.0.0.1:9/x.png"]


# Several runs


def test_runs_side_by_side(ended, tmp_path):
    other = shutil.copytree(ended, tmp_path / "<b>other")
    text = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(text.replace("seed: 0", "seed: 5", 1))
    table = json.loads((other / "table.json").read_text())
    table["rows"][-1]["top1"] = 12.34
    (other / "table.json").write_text(json.dumps(table))
    file = compare([ended, other], tmp_path / "page.html")
    found = Page(file.read_text())
    text = " ".join(found.text)
    assert file == tmp_path / "page.html"
    assert "The student of run is best" in text
    assert "12.34" in text
    assert "<b>other" in text
    assert not found.of("b")
    assert len(found.of("td")) == 2 * 9 + 2 * 1  # two runs, and the seed in which they differ


@pytest.mark.parametrize("names", [[], ["run"], ["run", "run/../run"]])
def test_one_run_is_not_compared(ended, names, tmp_path):
    with pytest.raises(UserError, match="at least two runs"):
        compare([ended.parent / name for name in names], tmp_path / "page.html")


def test_a_place_that_cannot_be_written(ended, tmp_path):
    other = shutil.copytree(ended, tmp_path / "other")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        compare([ended, other], tmp_path / "file/page.html")


def test_runs_with_other_test_images_have_no_headline_of_a_difference(ended, tmp_path):
    """Another source, or the same with other labels."""
    other = shutil.copytree(ended, tmp_path / "other")
    recipe = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(re.sub(r"source: .*", "source: elsewhere", recipe, count=1))
    text = compare([ended, other], tmp_path / "page.html").read_text()
    assert "their numbers cannot be compared" in text
    assert "is best" not in text
    (other / "recipe.yaml").write_text(recipe)
    predictions = load_predictions(other / "predictions.safetensors")
    save_predictions(predictions._replace(label=predictions.label[::-1]), other / "predictions.safetensors")
    assert "is best" not in compare([ended, other], tmp_path / "page.html").read_text()


def test_teachers_that_differ_are_named_in_words(ended, tmp_path):
    other = shutil.copytree(ended, tmp_path / "other")
    keys = yaml.safe_load((other / "recipe.yaml").read_text())
    keys["teachers"][0] |= {"size": 64, "args": {"drop_rate": 0.1}}
    (other / "recipe.yaml").write_text(yaml.safe_dump(keys))
    text = compare([ended, other], tmp_path / "page.html").read_text()
    found = re.search(r"test_resnet \(([^)]*)\); test_efficientnet \(train\)</td></tr>", text)
    assert set(found[1].split(", ")) == {"train", "size 64", "args.drop_rate 0.1"}
