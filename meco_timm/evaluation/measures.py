"""Quality of predictions: pure functions of logits N×K and labels N."""

import torch
from torch import Tensor


def accuracy(logits: Tensor, label: Tensor, k: int = 1) -> float:
    """Top-k accuracy in per cent."""
    return 100 * (logits.topk(k, 1).indices == label[:, None]).any(1).double().mean().item()


def class_accuracies(logits: Tensor, label: Tensor) -> list[float | None]:
    """Accuracy of each of K classes in per cent; None of a class without an image."""
    counts = label.bincount(minlength=logits.shape[1])
    right = label[logits.argmax(1) == label].bincount(minlength=logits.shape[1])
    return [100 * r / n if n else None for r, n in zip(right.tolist(), counts.tolist(), strict=True)]


def mean_of_known(accuracies: list[float | None]) -> float:
    """Mean over the classes that have an image: balanced accuracy (Brodersen et al. 2010)."""
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return sum(known) / len(known)


def negative_log_likelihood(logits: Tensor, label: Tensor) -> float:
    """Mean of −log softmax(logits)[label], in nats."""
    return torch.nn.functional.cross_entropy(logits.double(), label).item()


def calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3) in per cent: Σ |bin|/N · |accuracy − confidence|.

    confidence, right: of N predictions; `bins` of equal width.
    """
    place = (confidence * bins).long().clamp(max=bins - 1)
    gap = right.double() - confidence.double()
    return 100 * torch.zeros(bins, dtype=torch.double).index_add_(0, place, gap).abs().sum().item() / len(right)


def quality(logits: Tensor, label: Tensor) -> dict[str, float | None]:
    """top1, top5 (None with 5 classes or fewer) and ece in per cent, nll in nats."""
    confidence, predicted = logits.double().softmax(1).max(1)
    return {
        "top1": accuracy(logits, label),
        "top5": accuracy(logits, label, 5) if logits.shape[1] > 5 else None,
        "nll": negative_log_likelihood(logits, label),
        "ece": calibration_error(confidence, predicted == label),
    }
