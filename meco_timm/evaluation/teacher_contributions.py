"""The contribution of each teacher to the true ensemble, and the smallest ensemble that suffices."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from meco_timm.evaluation.ensemble import (
    Logits,
    Votes,
    all_but_one,
    bootstrap_interval,
    disagreement,
    error_kappa,
    fit_temperature,
    select,
    vote,
)
from meco_timm.evaluation.measures import calibration_error

FITTED = 5000  # images that a temperature is fitted on, at most,
FITTED_LOGITS = 1_000_000  # and their logits: of 1,000 classes 1,000 images, which give it to a few per cent
SAME = 0.99  # share of images on which two teachers agree, above which they count as duplicates


class Quality(NamedTuple):
    """top1 and ece in per cent, nll in nats, of one network or ensemble."""

    top1: float
    nll: float
    ece: float


class Change(NamedTuple):
    """Mean of paired differences over images, and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def cells(self, digits: int) -> tuple[str, str]:
        """`+0.12`, `+0.05 to +0.20`."""
        mean, low, high = (f"{value:+.{digits}f}".replace("-", "−") for value in self)
        return mean, f"{low} to {high}"

    def text(self, digits: int) -> str:
        """`+0.12 (+0.05 to +0.20)`."""
        return "{} ({})".format(*self.cells(digits))


class Difference(NamedTuple):
    """One ensemble minus another on the same images: top1 in points, nll in nats."""

    top1: Change
    nll: Change

    @property
    def worse(self) -> str:
        """The measures that are worse by their interval: "top-1", "NLL", "top-1 and NLL", or ""."""
        measures = [("top-1", self.top1.high < 0), ("NLL", self.nll.low > 0)]
        return " and ".join(measure for measure, found in measures if found)


class Choice(NamedTuple):
    """An ensemble with each of M teachers `counts` times.

    behind: this ensemble minus the best of all choices and the true ensemble, in top-1 and in NLL.
    """

    counts: list[float]
    quality: Quality
    behind: Difference


class Contributions(NamedTuple):
    """What M teachers add on the same N images.

    temperatures: fitted to each, M. members: quality of each, M. ensemble: quality of the true ensemble.
    added: the true ensemble minus that without each teacher, M; empty of one teacher.
    disagreement, kappa: M×M (ensemble.py). choices: sizes 1 to M by greedy selection.
    suggested: the smallest choice that is not clearly worse than the best, else the true ensemble. images: N.
    """

    temperatures: list[float]
    members: list[Quality]
    ensemble: Quality
    added: list[Difference]
    disagreement: Tensor
    kappa: Tensor
    choices: list[Choice]
    suggested: Choice
    images: int

    def duplicates(self) -> list[tuple[int, int, float]]:
        """List (teacher, later teacher, share of images with the same prediction) of pairs that agree on over 99 %.

        The lower end of the share's 95 % interval counts: on 100 images two good teachers agree by chance.
        """
        count = len(self.members)
        agree = (1 - self.disagreement).tolist()
        pairs = [(i, j, agree[i][j]) for i in range(count) for j in range(i + 1, count)]
        return [pair for pair in pairs if lowest_share(pair[2], self.images) > SAME]


def lowest_share(share: float, count: int) -> float:
    """Lower end of the 95 % interval of a share that was found on `count` images (Wilson 1927)."""
    z = 1.96
    spread = z * ((share * (1 - share) + z**2 / (4 * count)) / count) ** 0.5
    return (share + z**2 / (2 * count) - spread) / (1 + z**2 / count)


def contributions(
    logits: Logits, label: Tensor, weights: Tensor | None = None, temperatures: Sequence[float] | None = None
) -> Contributions:
    """Measure M teachers with logits N×K each and labels N.

    weights: M, of the true ensemble, by default equal. temperatures: M, by which the logits are divided; by default 1.
    """
    count = len(logits)
    used = torch.tensor(temperatures or [1.0] * count)
    members = vote(logits, label, torch.eye(count), used)
    whole = torch.ones(count) if weights is None else weights.float()
    counts = torch.cat([select(members.of_label, count), whole[None]])  # the true ensemble is the last choice
    without = all_but_one(whole)
    ensembles = vote(logits, label, torch.cat([counts, without[without.sum(1) > 0]]), used)
    losses, right = ensembles.losses, 100 * ensembles.right(label).double()
    nll, top1 = losses[: count + 1], right[: count + 1]
    behind = _differences(top1 - top1[top1.mean(1).argmax()], nll - nll[nll.mean(1).argmin()])
    choices = [Choice(c.tolist(), q, b) for c, q, b in zip(counts, _qualities(ensembles, label), behind, strict=False)]
    return Contributions(
        temperatures=[temperature_of(z, label) for z in logits],
        members=_qualities(members, label),
        ensemble=choices[-1].quality,
        added=_differences(right[count] - right[count + 1 :], losses[count] - losses[count + 1 :]),
        disagreement=disagreement(members.predicted),
        kappa=error_kappa(members.right(label)),
        choices=choices[:-1],
        suggested=next((choice for choice in choices if not choice.behind.worse), choices[-1]),
        images=len(label),
    )


def _differences(top1: Tensor, nll: Tensor) -> list[Difference]:
    """top1, nll: D×N, differences of each image."""
    return [Difference(*pair) for pair in zip(*map(bootstrap_changes, (top1, nll)), strict=True)]


def bootstrap_changes(values: Tensor) -> list[Change]:
    """Mean and interval of each row of D×N differences of single images."""
    if not len(values):
        return []
    return [
        Change(mean, *ends)
        for mean, ends in zip(values.mean(1).tolist(), bootstrap_interval(values).tolist(), strict=True)
    ]


def temperature_of(logits: np.ndarray, label: Tensor) -> float:
    """Fit the temperature on at most `FITTED` images with `FITTED_LOGITS` logits, evenly spread."""
    step = -(-len(label) // min(FITTED, max(1, FITTED_LOGITS // logits.shape[1])))
    return fit_temperature(np.asarray(logits[::step]), label[::step])


def _qualities(votes: Votes, label: Tensor) -> list[Quality]:
    right = votes.right(label)
    return [
        Quality(100 * r.double().mean().item(), loss.mean().item(), calibration_error(confidence, r))
        for r, loss, confidence in zip(right, votes.losses, votes.confidence, strict=True)
    ]
