"""The model card of a backbone, and its figures."""

import json
from typing import Any

from huggingface_hub import ModelCardData
from markupsafe import Markup

from meco_timm.common import public
from meco_timm.evaluation import load_pictures, table_columns
from meco_timm.hub.card import background_text, base_models, describe_teachers, licence_fields, timm_name
from meco_timm.hub.licences import licence_note
from meco_timm.recipe import OTHER, Publish
from meco_timm.reporting import (
    PICTURES,
    Chart,
    Results,
    builtin_template,
    chart_style,
    features_picture,
    metrics_by_teacher,
    neighbours_picture,
    read_template,
    render_markdown,
    similarity_chart,
    summary,
    title,
)


def backbone_card_files(results: Results, publish: Publish | None = None) -> dict[str, Any]:
    """README.md and figures/*.png by file name, for `export`. publish: the repository that the card is for.

    Raises:
        UserError: the user's template cannot be read or has an unknown field.
    """
    with chart_style():
        charts = _charts(results)
        figures = {f"figures/{name}": chart.png() for name, chart in charts.items()}
    texts = {name: chart.text for name, chart in charts.items()}
    return {"README.md": backbone_card(results, texts, publish), **figures}


def backbone_card(results: Results, figures: dict[str, str], publish: Publish | None = None) -> str:
    """The README.md of a backbone. figures: file in figures/ → its text alternative."""
    recipe, own = results.recipe, publish.card if publish else None
    text, where = (read_template(own), own) if own else (builtin_template("backbone_card.md"), "backbone_card.md")
    losses, alignment, images = recipe["losses"], recipe["alignment"], results.about["images"]
    return render_markdown(
        text,
        where,
        front=Markup(front_matter(results, publish)),
        title=title(results),
        teachers=describe_teachers(results),
        verdict=summary(results),
        data=public(recipe["data"]["source"]),
        load=Markup(json.dumps(timm_name(publish) if publish else public(f"local-dir:{results.folder.student}"))),
        background=Markup(background_text(recipe["data"]["background"])),
        mode="L" if recipe["student"]["args"].get("in_chans") == 1 else "RGB",
        image_size=recipe["data"]["image_size"],
        table=list(zip(*table_columns(results.rows), strict=True)),
        figures=figures,
        training=[
            ("Teachers", "one drawn at random each step" if recipe["zoo"]["sampling"] == "random" else "all each step"),
            ("Embedding", f"weight {losses['embedding']:g}, {alignment['embedding']} projection to each teacher"),
            ("Blocks", f"{alignment['blocks']}, {losses['block_similarity']}"),
            ("Steps", f"{results.about['steps']:,} of {results.about['batch_size']} images"),
            ("Images", f"{images['train']:,} to train on, without labels"),
            ("Versions", ", ".join(f"{name} {number}" for name, number in results.about["versions"].items())),
            ("Seed", recipe["seed"]),
        ],
        licence_note=licence_note(results, (publish.license or "").removeprefix(OTHER) if publish else None),
    )


def front_matter(results: Results, publish: Publish | None = None) -> str:
    """The card's metadata as YAML, by the Hub's specification (hub-docs, modelcard.md)."""
    about, source = results.about, results.recipe["data"]["source"]
    data = ModelCardData(
        **licence_fields(publish),
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["image-feature-extraction", "timm", "knowledge-distillation", "meco_timm"],
        datasets=None if about["local_data"] else [source],
        **base_models(results),
        model_name=publish.repo.partition("/")[2] if publish else results.folder.path.resolve().name,
    )
    return data.to_yaml().strip()


def _charts(results: Results) -> dict[str, Chart]:
    """File name → chart."""
    charts: dict[str, Chart] = {}
    pictures = load_pictures(results.folder.path / PICTURES)
    if pictures is not None:
        charts |= {"features.png": features_picture(pictures), "nearest.png": neighbours_picture(pictures, "student")}
    curves = similarity_chart(results.metrics, results.recipe["losses"], metrics_by_teacher(results))
    return charts if curves is None else charts | {"curves.png": curves}
