"""How good a network's predictions are: pure functions of its logits and the labels."""

import torch
from torch import Tensor


def accuracy(logits: Tensor, label: Tensor, k: int = 1) -> float:
    """Top-k accuracy of logits N×K against labels N, in per cent."""
    return 100 * (logits.topk(k, 1).indices == label[:, None]).any(1).double().mean().item()


def class_accuracies(logits: Tensor, label: Tensor) -> list[float | None]:
    """Share of the images of each of K classes whose largest logit is right, in per cent; None without an image.

    Logits N×K, labels N.
    """
    counts = label.bincount(minlength=logits.shape[1])
    right = label[logits.argmax(1) == label].bincount(minlength=logits.shape[1])
    return [100 * r / n if n else None for r, n in zip(right.tolist(), counts.tolist(), strict=True)]


def balanced_accuracy(accuracies: list[float | None]) -> float:
    """Mean over the classes that have an image (balanced accuracy, Brodersen et al. 2010), in per cent."""
    measured = [accuracy for accuracy in accuracies if accuracy is not None]
    return sum(measured) / len(measured)


def negative_log_likelihood(logits: Tensor, label: Tensor) -> float:
    """Mean over N of −log softmax(logits)[label], in nats; logits N×K, labels N."""
    return torch.nn.functional.cross_entropy(logits.double(), label).item()


def calibration_error(logits: Tensor, label: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3) in per cent: Σ |bin|/N · |accuracy − confidence|.

    Logits N×K, labels N; `bins` of equal width.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    return binned_calibration_error(confidence, predicted == label, bins)


def quality(logits: Tensor, label: Tensor) -> dict[str, float | None]:
    """top1, top5 (None with 5 classes or fewer), nll and ece of logits N×K against labels N."""
    top5 = accuracy(logits, label, 5) if logits.shape[1] > 5 else None
    nll, ece = negative_log_likelihood(logits, label), calibration_error(logits, label)
    return {"top1": accuracy(logits, label), "top5": top5, "nll": nll, "ece": ece}


def binned_calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3) in per cent: Σ |bin|/N · |accuracy − confidence|.

    Of N predictions: their confidence, and whether they are right; `bins` of equal width."""
    place = (confidence * bins).long().clamp(max=bins - 1)
    gap = right.double() - confidence.double()
    return 100 * torch.zeros(bins, dtype=torch.double).index_add_(0, place, gap).abs().sum().item() / len(right)
