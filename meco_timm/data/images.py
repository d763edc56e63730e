"""Images of a split as tensors, plain or in seeded views; what becomes of those that cannot be read."""

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from meco_timm.common import UserError, get_logger, reseed
from meco_timm.data.batched_views import BatchedView, Uncut
from meco_timm.data.decoding import decode, why_unreadable
from meco_timm.data.pixels import Pixels
from meco_timm.data.stored import Stored, StoredImages
from meco_timm.data.views import PLAIN, View
from meco_timm.recipe import Data

logger = get_logger(__name__)

NAMED = 20  # bad images that a message names


class Batch(NamedTuple):
    """image: uint8, B×3×H×W. label: int64, B, `NO_LABEL` where hidden. row: int64, B, place in the source split.
    view: int64, B, number of the augmented view, -1 of a plain image."""

    image: Tensor
    label: Tensor
    row: Tensor
    view: Tensor


class Item(NamedTuple):
    """One image of a batch; `bad`: row and fault of those in whose place it stands."""

    image: Tensor
    label: int
    row: int
    view: int
    bad: tuple[tuple[int, str], ...] = ()


class Read(NamedTuple):
    """A batch, whose images may still have to be cut on the device, and the bad images that others stand in for."""

    image: Tensor | Uncut
    label: Tensor
    row: Tensor
    view: Tensor
    bad: list[tuple[int, str]]

    def batch(self, device: torch.device | None = None) -> Batch:
        image = self.image if isinstance(self.image, Tensor) else self.image.image(device or torch.device("cpu"))
        return Batch(image, self.label, self.row, self.view)


class BadImages:
    """Images of one training that could not be read, by row; `shown`: whether this process logs them."""

    def __init__(self, allowed: int, shown: bool = True):
        self.allowed, self.shown = allowed, shown
        self.faults: dict[int, str] = {}

    def add(self, found: Iterable[tuple[int, str]]) -> None:
        """Raises: UserError: they are more than allowed; names them."""
        for row, fault in found:
            if row not in self.faults:
                self.faults[row] = fault
                if self.shown:
                    logger.warning("%s; the next image stands in for it", fault)
        if len(self.faults) > self.allowed:
            raise _too_many(list(self.faults.values()), self.allowed)

    def count(self, accelerator: Accelerator) -> dict[str, int]:
        """How many all processes have met, for metrics, where any are allowed; all call it at the same step."""
        if self.allowed and accelerator.num_processes > 1:
            self.add(sorted(gather_object(list(self.faults.items()))))
        return {"bad_images": len(self.faults)} if self.allowed else {}

    def tell(self, title: str) -> None:
        """The end of the training `title`."""
        if self.faults and self.shown:
            message = "%s: %d training image(s) could not be read; others stood in for them"
            logger.info(message, title, len(self.faults))


def _too_many(faults: list[str], allowed: int) -> UserError:
    if not allowed:
        return UserError(f"{faults[0].rstrip('.')}. Mend it or take it out.")
    names = "\n  ".join(faults[:NAMED])
    return UserError(
        f"data.max_bad: {len(faults)} training image(s) cannot be read, and {allowed} may be:\n  {names}\n"
        "Mend them, take them out, or allow more."
    )


class Images(torch.utils.data.Dataset):
    """Rows `rows` of a split, sorted, decoded on demand. Asked for (view, i) it gives that view, for i the plain image.

    `views`: after so many epochs of training its views repeat; None for never. `max_bad`: of images that cannot be
    read; the next row that can stands in. `balanced`: training shows each class alike. `pixels`: decoded images;
    `batched`: the transform for a batch of them; `kept`: batches of all plain images, by (rank, world), where they
    are (caching.py).
    """

    pixels: Pixels | None = None
    batched: BatchedView | None = None
    kept: dict[tuple[int, int], Batch] | None = None

    def __init__(
        self,
        split: StoredImages,
        labels: np.ndarray,
        rows: np.ndarray,
        transform: Any,
        views: int | None = None,
        max_bad: int = 0,
        balanced: bool = False,
    ):
        self.split, self.labels, self.rows, self.transform = split, labels, rows, transform
        self.views, self.max_bad, self.balanced = views, max_bad, balanced

    def __len__(self) -> int:
        return len(self.rows)

    def subsample(self, count: int) -> "Images":
        """At most `count` of them, evenly spread over all, because they may be sorted by class."""
        chosen = copy.copy(self)
        chosen.rows = self.rows[np.linspace(0, len(self) - 1, num=min(count, len(self))).astype(int)]
        chosen.kept = None
        return chosen

    @property
    def ends(self) -> np.ndarray:
        """Where, among `rows`, each run of images ends that are best read in a row: int64."""
        return self.rows.searchsorted(self.split.ends)

    def __getitems__(self, keys: list[Any]) -> list[Item | UserError] | list[Read]:
        """Read all images of a batch at once."""
        keys = [key if isinstance(key, tuple) else (PLAIN, key) for key in keys]
        rows, views = [int(self.rows[i]) for _, i in keys], [view for view, _ in keys]
        if self.batched and views[0].number >= 0 and (read := self.together(rows, views, self.batched)):
            return [read]
        return self.at(rows, views)

    def together(self, rows: list[int], views: list[View], batched: BatchedView) -> Read | None:
        """Training views of a whole batch; None if an image is not in the cache."""
        assert self.pixels is not None
        places = self.pixels.places(rows)
        if (places < 0).any():
            return None
        numbers = self.labels[rows], rows, [view.number for view in views]
        label, row, view = (torch.as_tensor(column, dtype=torch.int64) for column in numbers)
        return Read(batched(self.pixels, places, views, rows), label, row, view, [])

    def at(self, rows: list[int], views: list[View]) -> list[Item | UserError]:
        """The images by rows of the split, each in its view."""
        try:
            stored = self._decoded(rows) or self.split.read(rows)
            return [self._item(*item) for item in zip(stored, rows, views, strict=True)]
        except UserError as error:  # a shard that cannot be read
            return [error]

    def _decoded(self, rows: list[int]) -> list[Stored]:
        """The images from the cache, as `decoded`; none if one of them is not there."""
        if self.pixels is None or -1 in (places := self.pixels.places(rows).tolist()):
            return []
        return [{"decoded": self.pixels.image(place).convert("RGB")} for place in places]

    def _item(self, stored: Stored, row: int, view: View) -> Item | UserError:
        bad: list[tuple[int, str]] = []
        while True:
            try:
                image = stored.get("decoded") or decode(stored, self.split.background)
                break
            except Exception as error:  # decoders raise many kinds; each means that the image cannot be read
                name = stored.get("path") or f"row {row}"
                bad.append((row, f"data.source: {name}: the image cannot be read: {why_unreadable(error)}"))
            if len(bad) > self.max_bad:
                return _too_many([fault for _, fault in bad], self.max_bad)
            row = int(self.rows[(self.rows.searchsorted(row) + 1) % len(self.rows)])
            (stored,) = self.split.read([row])
        if view.number >= 0:
            reseed(view.seed, row)
        return Item(self.transform(image), int(self.labels[row]), row, view.number, tuple(bad))


def collate(items: list[Any]) -> Read | UserError:
    """Errors are handed over as values: raised in a worker they would reach the user inside a traceback."""
    for item in items:
        if isinstance(item, UserError):
            return item
    if isinstance(items[0], Read):
        return items[0]
    images, *numbers, bad = zip(*items, strict=True)
    label, row, view = map(torch.tensor, numbers)
    return Read(torch.stack(images), label, row, view, [fault for faults in bad for fault in faults])


def transforms(settings: Data) -> tuple[Any, Any]:
    """timm's transforms for training and evaluation, both ending in uint8 3×H×W.

    Raises:
        UserError: timm has no such policy of augmentation.
    """
    common: dict[str, Any] = {
        "input_size": settings.image_size,
        "interpolation": settings.interpolation,
        "crop_pct": settings.crop_pct,
        "normalize": False,
    }
    a = settings.augmentation
    changes = {"scale": tuple(a.scale), "ratio": tuple(a.ratio), "hflip": a.hflip, "vflip": a.vflip}
    changes |= {"color_jitter": a.color_jitter or None, "auto_augment": a.auto_augment}
    try:
        view = create_transform(**common, is_training=True, train_crop_mode=a.crop_mode, **changes)
    except (AssertionError, ValueError) as error:
        raise UserError(
            f"data.augmentation.auto_augment: timm has no policy {a.auto_augment!r} ({error}). Write for example "
            "rand-m9-mstd0.5 or 3a."
        ) from None
    transforms = view, create_transform(**common, is_training=False)
    for transform in transforms:
        transform.transforms[-1] = _as_tensor
    return transforms


def _as_tensor(image: Image.Image) -> Tensor:
    """uint8, 3×H×W, as torchvision's: of lines, not pixels, which a batch is put together from a third faster."""
    width, height = image.size
    lines = torch.frombuffer(bytearray(image.tobytes("raw", "RGB;L")), dtype=torch.uint8)
    return lines.view(height, 3, width).permute(1, 0, 2)
