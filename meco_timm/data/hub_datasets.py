"""Data sets of the Hub that many use: what a plan must know of them, so that it need not download them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from meco_timm.common import imagenet
from meco_timm.data.loading import DataSource, Images
from meco_timm.data.splitting import check_number, labels_kept
from meco_timm.data.stored import StoredImages
from meco_timm.recipe import Data


class Counts(NamedTuple):
    """classes: names, or how many. train, test: images in the training split and in the one for the test. per_second:
    images that a core reads and augments, as measured here on images of their size."""

    classes: list[str] | int
    train: int
    test: int
    per_second: float = 5800
    label_column: str | None = None


CIFAR_10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COUNTS = {
    "ILSVRC/imagenet-1k": Counts(1000, 1_281_167, 50_000, per_second=400),
    "timm/imagenet-1k-wds": Counts(1000, 1_281_167, 50_000, per_second=400),
    "uoft-cs/cifar10": Counts(CIFAR_10, 50_000, 10_000),
    "uoft-cs/cifar100": Counts(100, 50_000, 10_000, label_column="fine_label"),
    "ufldl-stanford/svhn": Counts(10, 73_257, 26_032),
    "ylecun/mnist": Counts(10, 60_000, 10_000),
    "zalando-datasets/fashion_mnist": Counts(10, 60_000, 10_000),
}


def known_data(settings: Data) -> DataSource | None:
    """The data set as its publishers describe it, all but the images: classes and splits as `load_data` makes them.

    None where it is not known, lies on disk, or other parts of it are asked for.

    Raises:
        UserError: more images or labels are asked for than there are.
    """
    known = COUNTS.get(settings.source)
    if known is None or Path(settings.source).exists() or settings.train_split != "train":
        return None
    if known.label_column not in (None, settings.label_column):
        return None
    validation = round(settings.validation * known.train)
    train = known.train - validation
    classes = names_of(known)
    alike = np.full(len(classes), train // len(classes))
    labelled = train if settings.labelled is None else labels_kept(settings.labelled, alike)
    for key, number in (("labelled", labelled), ("images", settings.images)):
        if number is not None:
            check_number(key, number, len(classes), train)
    seen = min(settings.images or (train if settings.student_sees == "all" else labelled), train)
    return DataSource(
        classes=classes,
        train=_unseen(seen),
        labelled=_unseen(labelled),
        alone=_unseen(min(seen, labelled)),
        validation=_unseen(validation),
        test=_unseen(known.test),
        identity="",
        workers=0,
        repeats=settings.augmentation.repeats,
    )


def names_of(known: Counts) -> list[str]:
    """Names of the classes: ImageNet's synsets; numbers where only their count is written here."""
    if isinstance(known.classes, list):
        return known.classes
    synsets = imagenet("imagenet-1k").label_names()
    return list(synsets) if known.classes == len(synsets) else [str(i) for i in range(known.classes)]


def _unseen(size: int) -> Images:
    """So many images of which nothing is known."""
    return Images(StoredImages([]), np.arange(size), np.arange(size), None)
