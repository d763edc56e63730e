"""Charts and pictures of a backbone's run. Pure functions."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from meco_timm.evaluation import BackboneRow, Pictures
from meco_timm.reporting.drawing import BLUE, INK, VERMILION, Chart, axes, legend, name_rows, shorten

CELL = 0.95  # inches of an image in a picture, with the gaps to its neighbours
GAP = 0.03  # of a cell


def features_picture(pictures: Pictures) -> Chart:
    """Patch features of each network as colours, beside the images: a row per network."""
    rows = {"image": pictures.images, **{name: pictures.colours[name] for name in pictures.networks}}
    figure = _grid(rows)
    networks = ", ".join(pictures.networks)
    caption = (
        "The first three principal components of each network's feature map, as red, green and blue. Regions with one "
        "colour are alike to the network; colours of different networks cannot be compared."
    )
    return Chart("Patch features", figure, f"Held-out images and the features of {networks} as colours.", caption)


def neighbours_picture(pictures: Pictures, name: str) -> Chart:
    """Some images, and to the right of each those nearest to it for this network: a row per image."""
    images = pictures.neighbours[name]
    rows = {str(i + 1): row for i, row in enumerate(images)}
    figure = _grid(rows)
    count = images.shape[1] - 1
    text = f"{len(images)} held-out images, and for each the {count} nearest by the embedding of {name}."
    caption = "First column: an image. To its right the nearest held-out images by the cosine of the embeddings."
    return Chart(f"Nearest images: {shorten(name, 30)}", figure, text, caption)


def _grid(rows: dict[str, np.ndarray]) -> Figure:
    """Images, H×W×3 each, in rows with names."""
    names, columns = [shorten(name, 16) for name in rows], max(map(len, rows.values()))
    width = 0.3 + 0.08 * max(map(len, names)) + CELL * columns
    figure = Figure(figsize=(width, CELL * len(rows) + 0.2), layout="constrained")
    axis = figure.subplots()
    axis.set_anchor("E")  # the names need what is left
    for y, images in enumerate(rows.values()):
        for x, image in enumerate(images):
            axis.imshow(image, interpolation="nearest", extent=(x + GAP, x + 1 - GAP, y + 1 - GAP, y + GAP))
    axis.set(xlim=(0, columns), ylim=(len(rows), 0), xticks=[])
    axis.set_yticks(np.arange(len(rows)) + 0.5, names)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.grid(visible=False)
    return figure


def features_chart(rows: list[BackboneRow]) -> Chart | None:
    """k-NN accuracy and linear probe of each network; None without labels."""
    if any(row.knn is None or row.probe is None for row in rows):
        return None
    series = {"k-NN": [row.knn for row in rows], "linear probe": [row.probe for row in rows]}
    listed = "; ".join(f"{row.name}: k-NN {row.knn:.1f} %, probe {row.probe:.1f} %" for row in rows)
    caption = "Accuracy of pooled features without fine-tuning: 20 nearest neighbours by cosine, and a linear probe."
    figure = _pairs(rows, series, "accuracy (%)", "network (name)")
    return Chart("Features", figure, f"Accuracy of features: {listed}.", caption)


def teacher_agreement_chart(rows: list[BackboneRow]) -> Chart | None:
    """Similarity of the student's embeddings with each teacher's, before and after training; None without teachers."""
    teachers = [row for row in rows if row.cka is not None and row.cka_before is not None]
    if not teachers:
        return None
    series = {"before training": [row.cka_before for row in teachers], "after": [row.cka for row in teachers]}
    listed = "; ".join(f"{row.name} from {row.cka_before:.2f} to {row.cka:.2f}" for row in teachers)
    caption = "Similarity of the student's embeddings with each teacher's on held-out images (CKA); 1: equal."
    figure = _pairs(teachers, series, "CKA of embeddings (number, 0 to 1)", "teacher (name)")
    return Chart("Agreement with the teachers", figure, f"CKA with each teacher: {listed}.", caption)


def _pairs(rows: list[BackboneRow], series: dict[str, list[Any]], values: str, names: str) -> Figure:
    """Two values of each row, joined by a line. values, names: labels of the axes."""
    figure, axis = axes(1.5 + 0.34 * len(rows))
    places = range(len(rows))
    axis.hlines(places, *series.values(), color=INK, linewidth=1)
    for (label, column), color, marker, size in zip(series.items(), (BLUE, VERMILION), "s*", (7, 11), strict=True):
        axis.plot(column, places, linestyle="", marker=marker, markersize=size, color=color, label=label)
    name_rows(axis, [shorten(row.name) for row in rows])
    axis.set(xlabel=values, ylabel=names, ylim=(len(rows) - 0.5, -0.5))
    axis.margins(x=0.1)
    legend(figure, [axis])
    return figure
