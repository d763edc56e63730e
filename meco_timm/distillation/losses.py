"""6 · Similarity: pure functions of two B×n tensors (paper, section 3.2), in float32, mean over the batch.

`teacher` and `student` are logits for `between_logits`; standardised aligned vectors for `between_blocks`.
"""

from collections.abc import Callable, Sequence
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def l1(teacher: Tensor, student: Tensor) -> Tensor:
    """(1/B) ΣΣ |t − s|"""
    return (teacher - student).abs().sum(1).mean()


def l2(teacher: Tensor, student: Tensor) -> Tensor:
    """(1/B) ΣΣ (t − s)²"""
    return (teacher - student).square().sum(1).mean()


def kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """(1/B) ΣΣ p log(p/q) with p, q the softmax of teacher and student."""
    log_p, log_q = teacher_logits.log_softmax(1), student_logits.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def ce(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """−(1/B) ΣΣ p log q: the gradient of `kl`, shifted by the teacher's entropy."""
    return F.cross_entropy(student_logits, teacher_logits.softmax(1))


def dist(teacher: Tensor, student: Tensor) -> Tensor:
    """1 − Pearson's correlation over the classes of an image, plus the same over the images of a class (DIST: Huang et
    al. 2022); of softmax B×K. Blind to scale and shift, so a student far weaker than its teacher can still agree."""
    return (1 - pearson(teacher, student)).mean() + (1 - pearson(teacher.T, student.T)).mean()


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of each row of two N×n tensors; 0 where a row is constant."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return F.cosine_similarity(a, b, dim=1)


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1, "l2": l2, "kl": kl, "ce": ce, "dist": dist}


def between_logits(kind: str, teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Similarity of two logits B×K, as the paper has it: of their softmax, here at a temperature.

    kl, ce and dist are multiplied by temperature², which keeps their gradient's size (Hinton et al. 2015).
    """
    teacher, student = teacher.float() / temperature, student.float() / temperature
    if kind in ("kl", "ce"):
        return SIMILARITIES[kind](teacher, student) * temperature**2
    scale = temperature**2 if kind == "dist" else 1
    return SIMILARITIES[kind](teacher.softmax(1), student.softmax(1)) * scale


def between_blocks(kind: str, teacher: Tensor, student: Tensor) -> Tensor:
    """Similarity of two aligned blocks B×d: l1 and l2 per element, kl and ce of their softmax over d."""
    scale = 1 if kind in ("kl", "ce") else 1 / teacher.shape[1]
    return SIMILARITIES[kind](teacher.float(), student.float()) * scale


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """−(T²/B) ΣΣ p log p of logits B×K at temperature T: what `ce` has above `kl`."""
    log_p = (logits.float() / temperature).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean() * temperature**2


def with_labels(logits: Tensor, label: Tensor, smoothing: float = 0.0, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy with the labels, summed over the images that have one, over the number of all images.

    So each label weighs alike, and a batch with few of them does not pull as hard as one with many.

    label: B class numbers, negative where unknown, or B×K shares of classes (mixed images), 0 where unknown.
    weight: K, of each class; None for 1.
    """
    ignored = -1 if label.ndim == 1 else -100  # torch takes no ignore_index of shares but its default
    options: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing, "ignore_index": ignored}
    return F.cross_entropy(logits.float(), label, reduction="sum", **options) / len(label)


def class_weights(kind: str, counts: Tensor) -> Tensor | None:
    """Weights of K classes in `with_labels`, float32; None where all are 1, with `kind` "none".

    counts: labelled images of each class. "balanced": N / (K · n) for a class of n of the N images; their mean over
    all images is 1. A class without images counts as if it had one.
    """
    if kind == "none":
        return None
    return counts.sum() / (len(counts) * counts.clamp(min=1).float())


def mean_logits(logits: list[Tensor], temperature: float = 1.0, weights: Sequence[float] | None = None) -> Tensor:
    """Logits whose softmax at `temperature` is the mean of the networks' softmax at `temperature`; B×K each.

    weights: of the networks in the mean, not all 0; by default equal.
    """
    softened = torch.stack([z.float() / temperature for z in logits]).log_softmax(-1)
    if weights is not None:
        shares = [z + log(w / sum(weights)) for z, w in zip(softened, weights, strict=True) if w]
        return temperature * torch.stack(shares).logsumexp(0)
    return temperature * (softened.logsumexp(0) - log(len(logits)))
