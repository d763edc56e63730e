"""An image from its bytes to RGB, the same for training, evaluation and prediction.

Of several frames the first is used. As in timm's evaluation, images are not turned by their EXIF. What is transparent
is laid on a background. Grey of 16 bits keeps its upper 8, where Pillow, and timm with it, would show nearly all as
white. Floats from 0 to 1 become 0 to 255. Other floats, and integers of 32 bits, are refused: guessed for each image,
their range would make equal values differ.
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
        return to_rgb(image, background)


def to_rgb(image: Image.Image, background: tuple[int, ...] = WHITE) -> Image.Image:
    """Convert an image that is open to RGB; one that is RGB is not copied.

    Raises:
        ValueError: its values are in a range that is not read.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image)
        found = (_from_floats(pixels) if image.mode == "F" else _from_integers(pixels, image)).convert("RGB")
        if "transparency" in image.info:  # a value of grey
            found.paste(background, mask=Image.fromarray(pixels == image.info["transparency"]))
        return found
    if not image.has_transparency_data:
        return image.convert("RGB")
    below = Image.new("RGBA", image.size, background)
    below.alpha_composite(image.convert("RGBA"))
    return below.convert("RGB")


def decode_file(path: str, background: tuple[int, ...] = WHITE) -> Image.Image:
    """Decode an image file as `decode` does."""
    return decode({"bytes": None, "path": path}, background)


def _from_integers(pixels: np.ndarray, image: Image.Image) -> Image.Image:
    """The upper 8 of 16 bits.

    Raises:
        ValueError: the integers are of 32 bits, or signed.
    """
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # both have 16 bits at most
        raise ValueError(
            f"its integers have a sign or 32 bits, and range from {pixels.min()} to {pixels.max()}. Save 8 or 16 bits."
        )
    return Image.fromarray((pixels >> 8).astype(np.uint8))


def _from_floats(pixels: np.ndarray) -> Image.Image:
    """0 to 255 of 0 to 1.

    Raises:
        ValueError: there are others.
    """
    low, high = (pixels.min(), pixels.max()) if pixels.size else (0, 0)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"its floats range from {low:g} to {high:g}, and 0 to 1 are read. Scale them.")
    return Image.fromarray((pixels * 255).round().astype(np.uint8))
