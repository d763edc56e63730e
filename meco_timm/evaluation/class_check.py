"""Whether a network knows the classes of a data set: its accuracy with its classes in their order and in others.

A network whose config has no class names is taken to have them in the order of the data set. Trainers sort folders
differently: torchvision as text (class 1, class 10, class 2), timm's `natural_key` by number (class 1, class 2, class
10). In the wrong order a good network is right no more often than by chance.
"""

from typing import Any, NamedTuple

import numpy as np
from timm.utils import natural_key
from torch import Tensor

from meco_timm.data import Images

CLEAR = 3.0  # standard deviations by which an accuracy exceeds another, or chance
ORDERS: dict[str, Any] = {"the order of text": str, "natural order, numbers by value": natural_key}


class OtherOrder(NamedTuple):
    """An order of the classes that fits better. `classes`: the network's class for each class of the data set."""

    name: str
    names: list[str]
    accuracy: float
    classes: list[int]


class ClassCheck(NamedTuple):
    """Accuracy on `images` labelled images and that of chance, in per cent, both as means over classes."""

    images: int
    accuracy: float
    chance: float
    at_chance: bool
    other: OtherOrder | None

    def __str__(self) -> str:
        return f"{self.accuracy:.1f} % right on {self.images} labelled images (chance: {self.chance:.1f} %)"


def check_classes(logits: Tensor, label: Tensor, classes: list[str], class_map: Tensor | None = None) -> ClassCheck:
    """Compare accuracy with chance, and with the accuracy in other orders of the classes.

    logits: N×K, in the order of the data set's K `classes`. label: N. class_map: the stream's, by which the logits were
    put into that order; None if the network has them so.
    """
    network_classes = list(range(len(classes))) if class_map is None else class_map.tolist()
    hits = {"": _balanced_hits(logits, label)}
    orders = _other_orders(classes, network_classes)
    for name, (_, columns) in orders.items():
        hits[name] = _balanced_hits(logits[:, columns], label)
    accuracy, chance = hits[""].mean(), 1 / len(classes)
    # Of a mean over classes whose images are nearly as many in each: as of a mean over images.
    noise = CLEAR * (chance * (1 - chance) / len(label)) ** 0.5
    best = max(hits, key=lambda name: hits[name].mean())
    spread = CLEAR * (hits[best].std() ** 2 + hits[""].std() ** 2) ** 0.5 / len(label) ** 0.5
    other = None
    if best and hits[best].mean() - accuracy > spread and hits[best].mean() > chance + noise:
        names, columns = orders[best]
        other = OtherOrder(best, names, 100 * float(hits[best].mean()), [network_classes[i] for i in columns])
    return ClassCheck(len(label), 100 * float(accuracy), 100 * chance, bool(accuracy <= chance + noise), other)


def _balanced_hits(logits: Tensor, label: Tensor) -> np.ndarray:
    """1 or 0 per image, weighted so that their mean is the mean over classes of the share that is right; N."""
    counts = label.bincount()
    weight = len(label) / ((counts > 0).sum() * counts[label])
    return ((logits.argmax(1) == label) * weight).cpu().double().numpy()


def _other_orders(classes: list[str], network_classes: list[int]) -> dict[str, tuple[list[str], list[int]]]:
    """Name of an order → its names, and for each class of the data set the column of the logits that it stands for."""
    if sorted(network_classes) != list(range(len(classes))):
        return {}  # the network has other classes besides, which were found by name
    column = {place: i for i, place in enumerate(network_classes)}
    orders = {}
    for name, key in ORDERS.items():
        names = sorted(classes, key=key)
        rank = {one: i for i, one in enumerate(names)}
        columns = [column[rank[one]] for one in classes]
        if columns != list(range(len(classes))):
            orders[name] = names, columns
    return orders


def balanced_sample(images: Images, count: int, transform: Any) -> Images:
    """At most `count` of the images, with `transform`: one of each class, then a second of each, and so on."""
    label = images.labels[images.rows]
    by_class = np.argsort(label, kind="stable")
    rank = np.empty(len(label), dtype=np.int64)
    rank[by_class] = np.arange(len(label)) - np.searchsorted(label[by_class], label[by_class])
    chosen = np.sort(np.argsort(rank, kind="stable")[:count])
    return Images(images.split, images.labels, images.rows[chosen], transform, max_bad=images.max_bad)
