"""What the model card of a backbone has besides that of any student: how it was trained, and figures."""

from typing import Any

from meco_timm.evaluation import load_pictures
from meco_timm.reporting import (
    PICTURES,
    Chart,
    Results,
    features_picture,
    metrics_by_teacher,
    neighbours_picture,
    similarity_chart,
)


def backbone_fields(results: Results) -> dict[str, Any]:
    """The fields of a backbone's card that a classifier's has not, or has with other values."""
    recipe, about = results.recipe, results.about
    losses, alignment = recipe["losses"], recipe["alignment"]
    return {
        "training": [
            ("Teachers", "one drawn at random each step" if recipe["zoo"]["sampling"] == "random" else "all each step"),
            ("Embedding", f"weight {losses['embedding']:g}, {alignment['embedding']} projection to each teacher"),
            ("Blocks", f"{alignment['blocks']}, {losses['block_similarity']}"),
            ("Steps", f"{about['steps']:,} of {about['batch_size']} images"),
            ("Images", f"{about['images']['train']:,} to train on, without labels"),
            ("Versions", ", ".join(f"{name} {number}" for name, number in about["versions"].items())),
            ("Seed", recipe["seed"]),
        ]
    }


def backbone_charts(results: Results) -> dict[str, Chart]:
    """File name → chart."""
    charts: dict[str, Chart] = {}
    pictures = load_pictures(results.folder.path / PICTURES)
    if pictures is not None:
        charts |= {"features.png": features_picture(pictures), "nearest.png": neighbours_picture(pictures, "student")}
    curves = similarity_chart(results.metrics, results.recipe["losses"], metrics_by_teacher(results))
    return charts if curves is None else charts | {"curves.png": curves}
