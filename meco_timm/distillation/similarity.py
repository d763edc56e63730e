"""Similarity of teacher and student: pure functions in float32, mean over the batch (paper, section 3.2).

Each includes its own scaling. A new one is a function and its word in `LOGITS` or `BLOCKS`.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def l1(teacher: Tensor, student: Tensor) -> Tensor:
    """(1/B) ΣΣ |t − s|"""
    return (teacher - student).abs().sum(1).mean()


def l2(teacher: Tensor, student: Tensor) -> Tensor:
    """(1/B) ΣΣ (t − s)²"""
    return (teacher - student).square().sum(1).mean()


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """(1/B) ΣΣ p log(p/q) with p, q the softmax of teacher and student."""
    log_p, log_q = teacher.log_softmax(1), student.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def ce(teacher: Tensor, student: Tensor) -> Tensor:
    """−(1/B) ΣΣ p log q: the gradient of `kl`, shifted by the teacher's entropy."""
    return F.cross_entropy(student, teacher.softmax(1))


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row of two N×n tensors; 0 where a row is constant."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return F.cosine_similarity(a, b, dim=1)


# Of logits B×K at temperature T. kl, ce and dist × T², which keeps the size of their gradient (Hinton et al. 2015).


def logits_l1(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """`l1` of the softmax."""
    return l1((teacher / temperature).softmax(1), (student / temperature).softmax(1))


def logits_l2(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """`l2` of the softmax."""
    return l2((teacher / temperature).softmax(1), (student / temperature).softmax(1))


def logits_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T² · `kl`."""
    return kl(teacher / temperature, student / temperature) * temperature**2


def logits_ce(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T² · (`ce` − the teacher's entropy), so that it is 0 where the student agrees; the entropy has no gradient."""
    log_p = (teacher / temperature).log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1).mean() * temperature**2
    return ce(teacher / temperature, student / temperature) * temperature**2 - entropy


def logits_dist(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T² · (1 − correlation over the classes of an image + 1 − correlation over the images of a class), of the softmax
    (DIST: Huang et al. 2022).

    Blind to scale and shift, so a student far weaker than its teacher can still agree.
    """
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    return ((1 - correlation(p, q)).mean() + (1 - correlation(p.T, q.T)).mean()) * temperature**2


LOGITS: dict[str, Callable[..., Tensor]] = {
    "l1": logits_l1,
    "l2": logits_l2,
    "kl": logits_kl,
    "ce": logits_ce,
    "dist": logits_dist,
}

# Of blocks B×d or B×d×h×w, standardised per image: l1 and l2 per element, kl and ce of the softmax over d.


def blocks_l1(teacher: Tensor, student: Tensor) -> Tensor:
    """`l1` / d."""
    return l1(teacher, student) * (1 / teacher.shape[1])


def blocks_l2(teacher: Tensor, student: Tensor) -> Tensor:
    """`l2` / d: of standardised blocks 2 − 2 · cosine."""
    return l2(teacher, student) * (1 / teacher.shape[1])


BLOCKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": blocks_l1, "l2": blocks_l2, "kl": kl, "ce": ce}


def embeddings(teacher: Tensor, student: Tensor) -> Tensor:
    """1 − cosine + smooth L1, of embeddings B×d, the teacher's standardised (AM-RADIO: Ranzinger et al. 2024)."""
    return 1 - F.cosine_similarity(teacher, student, dim=1).mean() + F.smooth_l1_loss(student, teacher)
