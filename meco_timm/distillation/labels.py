"""What is learned from labels."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, label: Tensor, smoothing: float = 0.0, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy with the labels, summed over the images that have one, over the number of all images.

    So each label weighs alike, and a batch with few of them does not pull as hard as one with many.

    label: B class numbers, negative where unknown, or B×K shares of classes (mixed images), 0 where unknown.
    weight: K, of each class; None for 1.
    """
    ignored = -1 if label.ndim == 1 else -100  # torch takes no ignore_index of shares but its default
    options: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing, "ignore_index": ignored}
    return F.cross_entropy(logits.float(), label, reduction="sum", **options) / len(label)


def class_weights(kind: str, counts: Tensor) -> Tensor | None:
    """Weights of K classes in `cross_entropy`, float32; None where all are 1, with `kind` "none".

    counts: labelled images of each class. "balanced": N / (K · n) for a class of n of the N images; their mean over
    all images is 1. A class without images counts as if it had one.
    """
    if kind == "none":
        return None
    return counts.sum() / (len(counts) * counts.clamp(min=1).float())
