"""Predictions of made-up networks."""

import numpy as np

from meco_timm.evaluation.predictions import Predictions


def some_predictions(images: int = 60, classes: int = 4, names: list[str] | None = None) -> Predictions:
    """Of a teacher, the student alone and the student, with some agreement with the label."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, classes, images).astype(np.int32)
    shares = generator.dirichlet(np.full(classes, 2 / classes), (3, images)).astype(np.float32)
    shares[:, np.arange(images), label] += 0.4
    shares /= shares.sum(2, keepdims=True)
    examples = np.arange(3, dtype=np.int32)
    return Predictions(
        classes=names or [f"class {i}" for i in range(classes)],
        networks=["teacher", "student alone", "student"],
        label=label,
        predicted=shares.argmax(2).astype(np.int32),
        confidence=shares.max(2),
        of_label=shares[:, np.arange(images), label],
        examples=examples,
        images=generator.integers(0, 256, (3, 3, 8, 8)).astype(np.uint8),
        probabilities=shares[:, examples].transpose(1, 0, 2).copy(),
        agreement={
            f"{who}/teacher": generator.random((2, 2)).astype(np.float32) for who in ("student", "student alone")
        },
    )
