"""Decoded images in a file that all processes of a machine map into memory, so that each is decoded once."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from meco_timm.common import move_into_place

INDEX, PIXELS = "index.npy", "pixels.bin"
COLUMNS = [("row", "i8"), ("offset", "i8"), ("height", "i4"), ("width", "i4"), ("channels", "i4")]


class Pixels:
    """Some rows of a split, as `decode` gives them, at their stored size: uint8, each line by line, H×C×W.

    C is 1 of an image whose three channels are equal, else 3. Rows that could not be decoded are missing.
    """

    def __init__(self, folder: Path):
        """Raises: OSError, ValueError, EOFError: there is none in the folder, or it is damaged."""
        self.folder = folder
        self.index = np.load(folder / INDEX)
        # As a plain array: slices of a memmap cost more.
        self.bytes = np.asarray(np.memmap(folder / PIXELS, np.uint8, "r"))
        if self.bytes.size != (last := self.index[-1])["offset"] + last["height"] * last["width"] * last["channels"]:
            raise ValueError(f"{folder} is not complete")
        shapes = np.stack([self.index[name] for name in ("height", "channels", "width")], 1)
        self.largest = tuple(shapes.max(0).tolist())
        # Of images of one shape a batch is one look-up.
        self.stacked = self.bytes.reshape(-1, *self.largest) if (shapes == self.largest).all() else None

    def __reduce__(self) -> tuple[Any, ...]:
        return Pixels, (self.folder,)  # a process that starts anew maps the file itself

    def places(self, rows: np.ndarray | list[int]) -> np.ndarray:
        """Where these rows are, int64; −1 of those that are missing."""
        known = self.index["row"]
        found = np.minimum(known.searchsorted(rows), len(known) - 1)
        return np.where(known[found] == rows, found, -1)

    def image(self, place: int, box: list[int] | None = None) -> Image.Image:
        """An image, or its box (top, left, height, width); mode L where the channels are equal, else RGB."""
        lines = self._lines(*self.index[place].tolist()[1:])
        if box is not None:
            top, left, height, width = box
            lines = lines[top : top + height, :, left : left + width]
        height, channels, width = lines.shape
        mode, raw = ("L", "L") if channels == 1 else ("RGB", "RGB;L")
        return Image.frombuffer(mode, (width, height), lines.tobytes(), "raw", raw, 0, 1)

    def _lines(self, offset: int, height: int, width: int, channels: int) -> np.ndarray:
        """uint8, H×C×W."""
        return self.bytes[offset : offset + height * width * channels].reshape(height, channels, width)

    def sizes(self, places: np.ndarray) -> np.ndarray:
        """int64, B×2: height, width."""
        chosen = self.index[places]
        return np.stack([chosen["height"], chosen["width"]], 1).astype(np.int64)

    def stack(self, places: np.ndarray) -> np.ndarray:
        """uint8, B×H×C×W, for the largest H, C and W among them; smaller ones end in zeros."""
        if self.stacked is not None:
            return self.stacked[places]
        chosen = self.index[places]
        h, c, w = (int(chosen[name].max()) for name in ("height", "channels", "width"))
        batch = np.zeros((len(places), h, c, w), np.uint8)
        for one, (_, offset, height, width, channels) in zip(batch, chosen.tolist(), strict=True):
            one[:height, :, :width] = self._lines(offset, height, width, channels)
        return batch


def write_pixels(folder: Path, images: Iterable[tuple[int, np.ndarray]]) -> None:
    """Write decoded images, (row, uint8 H×C×W) by rising row; the folder appears when it is complete.

    Raises:
        OSError: it cannot be written.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    index, offset = [], 0
    with (part / PIXELS).open("wb") as file:
        for row, image in images:
            height, channels, width = image.shape
            index.append((row, offset, height, width, channels))
            file.write(image.tobytes())
            offset += image.size
    np.save(part / INDEX, np.array(index, COLUMNS))
    move_into_place(part, folder)


def lines_of(image: Image.Image) -> np.ndarray:
    """An RGB image line by line, uint8 H×C×W; C is 1 where its channels are equal."""
    width, height = image.size
    lines = np.frombuffer(image.tobytes("raw", "RGB;L"), np.uint8).reshape(height, 3, width)
    grey = (lines[:, 1:] == lines[:, :1]).all()
    return lines[:, :1].copy() if grey else lines
