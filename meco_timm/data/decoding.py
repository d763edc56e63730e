"""An image from its bytes to RGB, the same for training, evaluation and prediction.

Of several frames the first is used. As in timm's evaluation, images are not turned by their EXIF. What is transparent
is laid on a background. Grey of 16 bits keeps its upper 8, where Pillow, and timm with it, would show nearly all as
white. Floats from 0 to 1 become 0 to 255. Other ranges are refused: guessed for each image, they would make equal
values differ.
"""

import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

WHITE = (255, 255, 255)


def why_unreadable(error: Exception) -> str:
    """What a decoder's error means."""
    if isinstance(error, UnidentifiedImageError):
        return "it is of no known kind"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()


def decode(stored: dict[str, Any], background: tuple[int, ...] = WHITE) -> Image.Image:
    """Decode an image to RGB. background: red, green, blue, from 0 to 255.

    Raises:
        OSError, ValueError, SyntaxError, DecompressionBombError: Pillow's, or values in a range that is not read.
    """
    source = io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"]
    with Image.open(source) as image:
        image.load()
        if image.mode == "RGB" and "transparency" not in image.info:  # convert would copy
            return image
        if image.mode == "F" or image.mode.startswith("I"):
            return _from_deep(np.asarray(image)).convert("RGB")
        if not image.has_transparency_data:
            return image.convert("RGB")
        below = Image.new("RGBA", image.size, background)
        below.alpha_composite(image.convert("RGBA"))
        return below.convert("RGB")


def decode_file(path: str, background: tuple[int, ...] = WHITE) -> Image.Image:
    """Decode an image file as `decode` does."""
    return decode({"bytes": None, "path": path}, background)


def _from_deep(pixels: np.ndarray) -> Image.Image:
    """8 bits of more: the upper ones of integers of 16 bits; integers of 32 bits that fit into 8 are left as they are.

    Raises:
        ValueError: integers beyond 16 bits, or floats beyond 0 to 1.
    """
    low, high = (pixels.min(), pixels.max()) if pixels.size else (0, 0)
    if pixels.dtype.kind == "f":
        if not (low >= 0 and high <= 1):
            raise ValueError(f"its floats range from {low:g} to {high:g}, and 0 to 1 are read. Scale them.")
        return Image.fromarray((pixels * 255).round().astype(np.uint8))
    if not (low >= 0 and high <= 65535):
        raise ValueError(f"its integers range from {low} to {high}, and 0 to 65535 are read. Scale them.")
    shift = 8 if pixels.dtype.itemsize == 2 or high > 255 else 0
    return Image.fromarray((pixels >> shift).astype(np.uint8))
