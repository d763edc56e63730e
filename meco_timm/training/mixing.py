"""9 · What is done to a whole batch: mixup, cutmix, random erasing, by timm. Teacher and student see the result."""

from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from meco_timm.recipe import Loop


class Mixing:
    """Draws from the generators that the loop seeds for each step, so a resumed run mixes alike."""

    def __init__(self, settings: Loop, classes: int, device: str):
        self.classes = classes
        alphas = {"mixup_alpha": settings.mixup, "cutmix_alpha": settings.cutmix}
        self.mixup = Mixup(**alphas, label_smoothing=0.0, num_classes=classes) if any(alphas.values()) else None
        p = settings.random_erasing
        self.erase = RandomErasing(p, mode="const", device=device) if p else None

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """image uint8 B×3×H×W, label B → the same, or float in [0, 1] and, where mixed, shares of classes B×K.

        An image that is mixed with one of unknown label has no label itself: its shares are all 0.
        """
        if self.mixup is None and self.erase is None:
            return image, label
        image = image.float() / 255
        if self.erase:
            image = self.erase(image)
        if self.mixup:
            known = (label >= 0) & (label.flip(0) >= 0)
            image, shares = self.mixup(image, label.clamp(min=0))
            label = shares * known[:, None]
        return image, label
