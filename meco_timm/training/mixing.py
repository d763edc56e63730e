"""mixup, cutmix and random erasing of a whole batch, by timm. Teacher and student see the same result."""

from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from meco_timm.recipe import Loop


class Mixing:
    """Draws from the global generators, which the loop seeds in each step, so a resumed run mixes the same."""

    def __init__(self, settings: Loop, classes: int, device: str):
        self.classes = classes
        alphas = {"mixup_alpha": settings.mixup, "cutmix_alpha": settings.cutmix}
        self.mixup = Mixup(**alphas, label_smoothing=0.0, num_classes=classes) if any(alphas.values()) else None
        p = settings.random_erasing
        self.erase = RandomErasing(p, mode="const", device=device) if p else None

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """image uint8 B×3×H×W, label B (−1: none) → mixed image, float in [0, 1], and class probabilities B×K.

        Without mixing the label is returned as it is; without mixing and erasing also the image. An image that is
        mixed with one without label has no label itself: its row is 0.
        """
        if self.mixup is None and self.erase is None:
            return image, label
        image = image.float() / 255
        if self.erase:
            image = self.erase(image)
        if self.mixup:
            labelled = (label >= 0) & (label.flip(0) >= 0)
            image, shares = self.mixup(image, label.clamp(min=0))
            label = shares * labelled[:, None]
        return image, label
