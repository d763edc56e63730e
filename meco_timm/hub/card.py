"""The model card of a student, and its figures."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup

from meco_timm.common import public
from meco_timm.evaluation import table_columns
from meco_timm.hub.backbone_card import backbone_charts, backbone_fields
from meco_timm.hub.licences import licence_note
from meco_timm.recipe import OTHER, Publish
from meco_timm.reporting import (
    Chart,
    Results,
    builtin_template,
    chart_style,
    class_table,
    cost_chart,
    metrics_by_teacher,
    read_template,
    render_markdown,
    similarity_chart,
    soft_label_picture,
    summary,
    title,
)

CLASSES_NAMED = 30  # at most, in the card
TO_RGB = """\
if image.mode == "I;16":
    image = image.point(lambda v: v / 256)  # the upper 8 of 16 bits
below = Image.new("RGBA", image.size, {background})
image = Image.alpha_composite(below, image.convert("RGBA")).convert("{mode}")"""
METRICS = {
    "top1": ("accuracy", "Top-1 accuracy (%)"),
    "top5": ("top_5_accuracy", "Top-5 accuracy (%)"),
    "nll": ("nll", "Negative log-likelihood (nats)"),
    "ece": ("ece", "Expected calibration error (%)"),
}


def card_files(results: Results, classes: list[str], publish: Publish | None = None) -> dict[str, Any]:
    """README.md and figures/*.png by file name, for `export`. `publish`: the repository that the card is for.

    Raises:
        UserError: the user's template cannot be read or has an unknown field.
    """
    with chart_style():
        charts = backbone_charts(results) if results.is_backbone else _charts(results)
        figures = {f"figures/{name}": chart.png() for name, chart in charts.items()}
    texts = {name: chart.text for name, chart in charts.items()}
    return {"README.md": model_card(results, classes, texts, publish), **figures}


def model_card(results: Results, classes: list[str], figures: dict[str, str], publish: Publish | None = None) -> str:
    """The README.md of a student. `figures`: file in figures/ → its text alternative."""
    own = publish.card if publish else None
    name = "backbone_card.md" if results.is_backbone else "card.md"
    return render_markdown(
        read_template(own) if own else builtin_template(name),
        own or name,
        **card_fields(results, publish),
        **(backbone_fields(results) if results.is_backbone else _classifier_fields(results, classes, publish)),
        figures=figures,
    )


def card_fields(results: Results, publish: Publish | None) -> dict[str, Any]:
    """The fields of every card."""
    recipe = results.recipe
    background, mode = background_text(recipe["data"]["background"]), image_mode(results)
    return {
        "front": Markup(front_matter(results, publish)),
        "title": title(results),
        "teachers": describe_teachers(results),
        "verdict": summary(results),
        "data": public(recipe["data"]["source"]),
        "load": Markup(json.dumps(timm_name(publish) if publish else public(f"local-dir:{results.folder.student}"))),
        "background": Markup(background),
        "mode": mode,
        "to_rgb": Markup(TO_RGB.format(background=background, mode=mode)),
        "again": Markup(repeat_command(results, publish)) if publish else None,
        "image_size": recipe["data"]["image_size"],
        "table": list(zip(*table_columns([*results.rows, *results.exports]), strict=True)),
        "licence_note": licence_note(results, (publish.license or "").removeprefix(OTHER) if publish else None),
    }


def _classifier_fields(results: Results, classes: list[str], publish: Publish | None) -> dict[str, Any]:
    """The fields of a classifier's card that a backbone's has not."""
    return {
        "data_notes": results.about.get("data_notes", []),
        "repo": Markup(json.dumps(publish.repo)) if publish and publish.onnx else None,
        "space": Markup(publish.space) if publish and publish.space else None,
        "classes": classes,
        "most_classes": CLASSES_NAMED,
        "images": results.about["images"],
        "device": {"cpu": "a CPU", "cuda": "a GPU"}.get(results.about["device"], results.about["device"]),
        "per_class": class_table(results, CLASSES_NAMED),
        "training": _training(results),
    }


def front_matter(results: Results, publish: Publish | None = None) -> str:
    """The card's metadata as YAML, by the Hub's specification (hub-docs, modelcard.md)."""
    about, source = results.about, results.recipe["data"]["source"]
    task = "image-feature-extraction" if results.is_backbone else "image-classification"
    data = ModelCardData(
        **licence_fields(publish),
        library_name="timm",
        pipeline_tag=task,
        tags=[task, "timm", "knowledge-distillation", "meco_timm"],
        datasets=None if about["local_data"] else [source],
        metrics=None if results.is_backbone else ["accuracy"],
        **base_models(results),
        model_name=publish.repo.partition("/")[2] if publish else results.folder.path.resolve().name,
        eval_results=None if results.is_backbone else _scores(results),
    )
    return data.to_yaml().strip()


def _scores(results: Results) -> list[EvalResult]:
    """The student's accuracy and calibration on the test split, for the Hub's leaderboards."""
    settings, student, local = results.recipe["data"], results.row("student"), results.about["local_data"]
    source = settings["source"]
    scores = {key: getattr(student, key) for key in METRICS if getattr(student, key) is not None}
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagefolder" if local else source,
            dataset_name=Path(source).resolve().name if local else source,
            dataset_split=settings["test_split"] or "test",
            metric_type=METRICS[key][0],
            metric_name=METRICS[key][1],
            metric_value=round(score, 4),
        )
        for key, score in scores.items()
    ]


def licence_fields(publish: Publish | None) -> dict[str, Any]:
    """`license`, and `license_name` of one that is not in the Hub's list."""
    licence = publish.license if publish else None
    if licence and licence.startswith(OTHER):
        return {"license": "other", "license_name": licence.removeprefix(OTHER)}
    return {"license": licence}


def base_models(results: Results) -> dict[str, Any]:
    """The networks of the Hub that the run started from."""
    origins = [*results.about["origins"].values(), results.about["student_origin"]]
    bases = list(dict.fromkeys(origin["hub"] for origin in origins if origin["hub"]))
    # The Hub has no relation for distillation, and would show several base models as a merge.
    return {"base_model": bases or None, "base_model_relation": "finetune" if bases else None}


def image_mode(results: Results) -> str:
    """Pillow's mode of the images that the student takes."""
    return "L" if results.recipe["student"]["args"].get("in_chans") == 1 else "RGB"


def background_text(rgb: list[int]) -> str:
    """As Pillow takes it, in Python."""
    return '"white"' if rgb == [255, 255, 255] else str(tuple(rgb))


def timm_name(publish: Publish) -> str:
    """The name under which `timm.create_model` loads the published student."""
    return f"hf-hub:{publish.repo}" + (f"@{publish.revision}" if publish.revision else "")


def repeat_command(results: Results, publish: Publish) -> str:
    """The command by which others repeat the run of the published student."""
    shipped = public(results.recipe["data"]["source"]).startswith("recipes/")
    data = " data.source=FOLDER" if results.about["local_data"] and not shipped else ""
    return f"meco-timm train {timm_name(publish)}{data}"


def describe_teachers(results: Results) -> list[dict[str, Any]]:
    """Name, initial weights and licence of each teacher, and whether it was trained first."""
    return [
        {"name": name, "start": origin["start"], "trained": teacher["train"], "licence": origin["licence"] or "–"}
        for (name, origin), teacher in zip(results.about["origins"].items(), results.recipe["teachers"], strict=True)
    ]


def _training(results: Results) -> list[tuple[str, Any]]:
    """(name, value) of the most important settings."""
    recipe, about, images = results.recipe, results.about, results.about["images"]
    loop, losses = recipe["loop"], recipe["losses"]
    return [
        ("Teachers", "one drawn at random each step" if recipe["zoo"]["sampling"] == "random" else "the mean of all"),
        ("Similarity", f"{public(losses['similarity'])} of logits at temperature {losses['temperature']:g} with weight "
                       f"{losses['logits']:g}, {losses['block_similarity']} of {recipe['alignment']['blocks']} blocks"),
        ("Adversary", recipe["discriminators"]["adversary"]),
        ("Weight of the labels", f"{losses['labels']:g}"),
        ("Optimizer", f"{loop['optimizer']}, {loop['schedule']}, learning rate {loop['lr']:g}, weight decay "
                      f"{loop['weight_decay']:g}"),
        ("Steps", f"{about['steps']:,} of {about['batch_size']} images"),
        ("Images", f"{images['train']:,} to train on, of which {images['labelled']:,} had labels; "
                   f"{images['validation']:,} to choose the weights"),
        ("Versions", ", ".join(f"{name} {number}" for name, number in about["versions"].items())),
        ("Seed", recipe["seed"]),
    ]  # fmt: skip


def _charts(results: Results) -> dict[str, Chart]:
    """File name → chart."""
    charts = {"cost.png": cost_chart(results.rows, results.teachers)}
    curves = similarity_chart(results.metrics, results.recipe["losses"], metrics_by_teacher(results))
    if curves is not None:
        charts["curves.png"] = curves
    if results.predictions is not None:
        charts["soft_labels.png"] = soft_label_picture(results.predictions, results.teachers)
    return charts
