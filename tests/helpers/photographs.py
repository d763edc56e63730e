"""Folders of photographs as people have them: drawn, of three classes, in many sizes and kinds of file.

python tests/photographs.py FOLDER IMAGES_PER_CLASS
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CLASSES = ("ball", "box", "fence")
KINDS = ("RGB", "RGB", "RGB", "L", "CMYK", "turned", "palette")


def photograph(label: int, seed: int, side: int = 200) -> Image.Image:
    """A ball, a box or a fence of some colour, somewhere before some background, a little blurred and noisy."""
    random = np.random.default_rng([label, seed])
    width, height = (int(side * share) for share in random.uniform(0.8, 1.3, 2))
    coarse = random.integers(0, 256, (4, 4, 3)).astype("uint8")
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    colour = tuple(random.integers(0, 256, 3).tolist())
    size = int(min(width, height) * random.uniform(0.4, 0.7))
    left, top = (int(random.integers(0, extent - size)) for extent in (width, height))
    if label == 0:
        draw.ellipse((left, top, left + size, top + size), colour)
    elif label == 1:
        draw.rectangle((left, top, left + size, top + size), colour)
    else:
        for x in range(left, left + size, size // 5):
            draw.rectangle((x, top, x + size // 10, top + size), colour)
    noise = random.normal(0, 8, (height, width, 3))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1))) + noise
    return Image.fromarray(pixels.clip(0, 255).astype("uint8"))


def save(image: Image.Image, place: Path, kind: str) -> None:
    """As a JPEG of some colours, one that its EXIF says is turned, or a PNG with a palette."""
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90°
        image.rotate(90, expand=True).save(place.with_suffix(".jpg"), exif=exif)
    elif kind == "palette":
        image.quantize(64).save(place.with_suffix(".png"))
    else:
        image.convert(kind).save(place.with_suffix(".jpg"), quality=90)


def take(folder: Path, per_class: int, side: int = 200) -> Path:
    """So many photographs of each class, in a folder of its own below `folder`."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            save(photograph(label, i, side), folder / name / f"IMG_{i:04}", KINDS[i % len(KINDS)])
    return folder


if __name__ == "__main__":
    take(Path(sys.argv[1]), int(sys.argv[2]))
