"""Quality of pooled features without fine-tuning: nearest neighbours and a linear probe. Pure functions.

reference, query: features N×d and M×d with labels N and M.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 20
TEMPERATURE = 0.07  # of a neighbour's weight, exp(cosine / temperature), as in DINO (Caron et al. 2021)
PROBE_DECAY = 1e-3  # half of it times the square of the weights is added to the loss of the probe
PART = 1024  # queries at a time


def nearest(reference: Tensor, query: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cosines and places of the `count` nearest rows of `reference` for each query, nearest first; M×count each."""
    reference = F.normalize(reference.float(), dim=1)
    parts = [
        (F.normalize(part.float(), dim=1) @ reference.T).topk(min(count, len(reference)), 1)
        for part in query.split(PART)
    ]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def knn_accuracy(
    reference: Tensor, labels: Tensor, query: Tensor, query_labels: Tensor, neighbours: int = NEIGHBOURS
) -> float:
    """Accuracy in per cent of a weighted vote of the nearest images by cosine (Wu et al. 2018; DINO)."""
    cosine, places = nearest(reference, query, neighbours)
    classes = int(max(labels.max(), query_labels.max())) + 1
    votes = torch.zeros(len(query), classes).scatter_add_(1, labels[places], (cosine / TEMPERATURE).exp())
    return 100 * (votes.argmax(1) == query_labels).double().mean().item()


def probe_accuracy(reference: Tensor, labels: Tensor, query: Tensor, query_labels: Tensor) -> float:
    """Accuracy in per cent of a logistic regression on features that are standardised per dimension.

    It is fitted with L-BFGS from zero, so that it is a function of its arguments.
    """
    mean, deviation = reference.float().mean(0), reference.float().std(0)
    scale = 1 / deviation.clamp(min=1e-6 * deviation.max().item() + 1e-12)
    x, q = ((part.float() - mean) * scale for part in (reference, query))
    classes = int(max(labels.max(), query_labels.max())) + 1
    weight, bias = torch.zeros(classes, x.shape[1], requires_grad=True), torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels) + PROBE_DECAY / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return 100 * ((q @ weight.T + bias).argmax(1) == query_labels).double().mean().item()


def pca_colours(features: Tensor) -> Tensor:
    """Feature maps I×C×h×w → colours I×h×w×3, uint8: their first three principal components over all positions.

    Each component is scaled from its 2 % to its 98 % quantile; its sign is that of its largest entry, so that the same
    features give the same colours.
    """
    images, channels, height, width = features.shape
    flat = features.permute(0, 2, 3, 1).reshape(-1, channels).double()
    flat = flat - flat.mean(0)
    _, sizes, directions = torch.linalg.svd(flat, full_matrices=False)
    directions = directions[:3][sizes[:3] > 1e-6 * sizes[0]]  # others are noise of rounding
    directions = directions * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    parts = F.pad(flat @ directions.T, (0, 3 - len(directions)))
    low, high = parts.quantile(torch.tensor([0.02, 0.98], dtype=torch.double), dim=0)
    scaled = ((parts - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return (255 * scaled).round().byte().view(images, height, width, 3)
