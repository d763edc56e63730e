"""Ensembles of M members: pure functions of their logits on N labelled images of K classes.

An ensemble is a weighted mean of its members' softmax, so each is a row of weights: one member, all but one, or some of
them twice. Logits may be float16 memory maps: they are read in parts, once for all rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from meco_timm.networks import NEVER

Logits = Sequence[np.ndarray]  # of M members, N×K each
FLOOR = 1e-20  # smallest probability of a label: that of a class which no member has is 0, and its NLL infinite
PART = 2**19  # numbers of all members in one part: few enough for a processor's cache
RESAMPLES = 1000
TEMPERATURES = (0.05, 20.0)


class Votes(NamedTuple):
    """W ensembles on N images: class predicted, its probability, that of the label; W×N each."""

    predicted: Tensor
    confidence: Tensor
    of_label: Tensor

    @property
    def losses(self) -> Tensor:
        """−log of the label's probability in nats, W×N; the mean over images is the NLL."""
        return -self.of_label.double().clamp(min=FLOOR).log()

    def right(self, label: Tensor) -> Tensor:
        """Whether each prediction is right, W×N. label: N."""
        return self.predicted == label


def vote(logits: Logits, label: Tensor, weights: Tensor, temperatures: Tensor | None = None) -> Votes:
    """Predict with the ensembles of these weights, W×M, each row with a sum above 0. temperatures: M, by default 1."""
    weights = (weights / weights.sum(1, keepdim=True)).float()
    temperatures = (torch.ones(len(logits)) if temperatures is None else temperatures).float().view(-1, 1, 1)
    shape = len(weights), len(label)
    votes = Votes(torch.empty(shape, dtype=torch.int), torch.empty(shape), torch.empty(shape))
    size = max(1, PART // (len(logits) * logits[0].shape[1]))
    for start in range(0, len(label), size):
        part = slice(start, start + size)
        p = torch.from_numpy(np.stack([z[part] for z in logits])).float().div_(temperatures).softmax(2)  # M×n×K
        mean = (weights @ p.flatten(1)).view(len(weights), *p.shape[1:])  # W×n×K
        votes.confidence[:, part], votes.predicted[:, part] = mean.max(2)
        votes.of_label[:, part] = mean.gather(2, label[part].expand(len(weights), -1)[..., None])[..., 0]
    return votes


def all_but_one(weights: Tensor) -> Tensor:
    """The ensembles without each member in turn: weights M → M×M."""
    return weights * (1 - torch.eye(len(weights), dtype=weights.dtype))


def select(of_label: Tensor, largest: int) -> Tensor:
    """Greedy forward selection with replacement (Caruana et al. 2004) by NLL.

    Returns how often each member is in the ensemble of size 1 … `largest`, `largest`×M integers.

    of_label: M×N, each member's probability of the label. Nothing else is needed, since the NLL of a mean of softmax is
    that of the mean of these. Of equal members the first is taken.
    """
    chosen = torch.zeros(largest, len(of_label), dtype=torch.long)
    total = torch.zeros(of_label.shape[1], dtype=torch.double)
    of_label = of_label.double()
    for size in range(1, largest + 1):
        nll = -((total + of_label) / size).clamp(min=FLOOR).log().mean(1)
        best = int(nll.argmin())
        total += of_label[best]
        chosen[size - 1 :, best] += 1
    return chosen


def bootstrap_interval(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """95 % percentile intervals (Efron 1979) of the mean over images, D×2. values: D×N, one row for each quantity.

    The rows share their resamples, so that differences of rows are paired.
    """
    generator, images = torch.Generator().manual_seed(seed), values.shape[1]
    means = []
    for start in range(0, resamples, 50):
        drawn = torch.randint(images, (min(50, resamples - start), images), generator=generator)
        counts = torch.zeros(drawn.shape).scatter_add_(1, drawn, torch.ones(drawn.shape))
        means.append(values.double() @ counts.double().T / images)
    return torch.cat(means, 1).quantile(torch.tensor([0.025, 0.975], dtype=torch.double), dim=1).T


def disagreement(predicted: Tensor) -> Tensor:
    """Share of the images for which two members predict different classes, M×M. predicted: M×N."""
    return torch.stack([(predicted != row).double().mean(1) for row in predicted])


def error_kappa(right: Tensor) -> Tensor:
    """Cohen's κ (1960) of two members' errors, M×M: 1 where they err on the same images, 0 where no more often than by
    chance. nan where chance alone would agree always. right: M×N."""
    wrong = 1 - right.double()
    rate = wrong.mean(1)
    both = wrong @ wrong.T / wrong.shape[1]
    agree = 1 - rate[:, None] - rate + 2 * both
    chance = rate[:, None] * rate + (1 - rate[:, None]) * (1 - rate)
    return (agree - chance) / (1 - chance)


def fit_temperature(logits: np.ndarray, label: Tensor) -> float:
    """The temperature that minimises the NLL of softmax(logits / T) (Guo et al. 2017), within `TEMPERATURES`.

    The NLL is convex in 1/T, and its derivative is the mean over images of E[z] − z[label], the expectation by the
    softmax; its root is found by bisection. Images of a class that the network does not have are left out.

    logits: N×K. label: N.
    """
    z = torch.from_numpy(np.array(logits, dtype=np.float64))
    own = z.gather(1, label[:, None])[:, 0]
    z, own = z[own > NEVER], own[own > NEVER]
    low, high = (float(np.log(t)) for t in TEMPERATURES)
    for _ in range(40 if len(z) else 0):
        middle = (low + high) / 2
        expected = ((z / np.exp(middle)).softmax(1) * z).sum(1)
        too_flat = (expected - own).mean() < 0  # a lower temperature has a lower NLL
        low, high = (low, middle) if too_flat else (middle, high)
    return float(np.exp((low + high) / 2)) if len(z) else 1.0
