"""An image from its bytes to pixels, as timm's evaluation has it."""

import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError


def why_unreadable(error: Exception) -> str:
    """What a decoder's error means."""
    if isinstance(error, UnidentifiedImageError):
        return "it is of no known kind"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()


def decode(stored: dict[str, Any]) -> Image.Image:
    """RGB as timm's evaluation has it: the first frame, not turned by its EXIF, without its transparency.

    16 bits of grey become the 8 upper ones, where pillow, and timm with it, would show nearly all as white.
    """
    source = io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"]
    with Image.open(source) as image:
        image.load()
        if image.mode == "RGB":  # convert would copy
            return image
        if image.mode.startswith("I"):
            return _grey(np.asarray(image)).convert("RGB")
        return image.convert("RGB")


def decode_file(path: str) -> Image.Image:
    """As `decode`, of a file.

    Raises:
        OSError, ValueError, SyntaxError, DecompressionBombError: Pillow's, of an image that cannot be read.
    """
    return decode({"bytes": None, "path": path})


def _grey(pixels: np.ndarray) -> Image.Image:
    """8 bits of 16; what lies beyond is clipped. Integers of 32 bits that fit into 8 are left as they are."""
    shift = 8 if pixels.dtype.itemsize == 2 or pixels.max(initial=0) > 255 else 0
    return Image.fromarray((pixels.clip(0, 65535) >> shift).astype(np.uint8))
