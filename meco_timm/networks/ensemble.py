"""The true ensemble of several networks: a weighted mean of their softmax."""

from collections.abc import Iterable, Sequence
from math import log
from typing import NamedTuple

import torch
from torch import Tensor


class Combination(NamedTuple):
    """By name of each member: the temperature that its logits are divided by, and its weight in the mean of softmax."""

    temperatures: dict[str, float]
    weights: dict[str, float]

    @classmethod
    def equal(cls, names: Iterable[str]) -> "Combination":
        """The paper's true ensemble: equal weights, temperatures of 1."""
        names = list(names)
        return cls(dict.fromkeys(names, 1.0), dict.fromkeys(names, 1.0))

    def weights_of(self, names: Iterable[str]) -> list[float] | None:
        """The weights of these members; None if they are equal."""
        weights = [self.weights[name] for name in names]
        return None if len(set(weights)) == 1 else weights


def mean_logits(logits: list[Tensor], temperature: float = 1.0, weights: Sequence[float] | None = None) -> Tensor:
    """Logits whose softmax at `temperature` is the mean of the networks' softmax at `temperature`; B×K each.

    weights: of the networks in the mean, not all 0; by default equal.
    """
    softened = torch.stack([z.float() / temperature for z in logits]).log_softmax(-1)
    if weights is not None:
        shares = [z + log(w / sum(weights)) for z, w in zip(softened, weights, strict=True) if w]
        return temperature * torch.stack(shares).logsumexp(0)
    return temperature * (softened.logsumexp(0) - log(len(logits)))
