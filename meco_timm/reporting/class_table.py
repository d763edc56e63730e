"""Accuracy of each class, as a table: for the card and the report."""

import numpy as np

from meco_timm.reporting.results import Results

COMPARED = ("student", "student alone", "true ensemble")


def class_table(results: Results, limit: int) -> list[list[str]]:
    """Head and lines: class, its test images, and the share of them that each network has right, in per cent.

    At most `limit` classes: those in which the student is worst, from the worst on; else all, in their order. Empty of
    a run that ended before these were stored.
    """
    columns = {row.name: row.per_class for row in results.rows if row.name in COMPARED and row.per_class}
    if "student" not in columns:
        return []
    columns = {name: columns[name] for name in COMPARED if name in columns}
    classes, student = list(columns["student"] or {}), columns["student"] or {}
    if len(classes) > limit:
        measured = [name for name in classes if student[name] is not None]
        classes = sorted(measured, key=lambda name: student[name] or 0.0)[:limit]
    images = _images_of(results)
    cells = [[name, images.get(name, "–"), *(_cell((c or {}).get(name)) for c in columns.values())] for name in classes]
    return [["class", "test images", *(f"{name} %" for name in columns)], *cells]


def _images_of(results: Results) -> dict[str, str]:
    """Test images of each class, where the run's predictions are there."""
    p = results.predictions
    counts = np.bincount(p.label, minlength=len(p.classes)).tolist() if p else []
    return {name: str(count) for name, count in zip(p.classes, counts, strict=True)} if p else {}


def _cell(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{accuracy:.1f}"
