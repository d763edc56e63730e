"""Pictures of what a backbone sees: its patch features as colours, and the nearest images, beside its teachers'."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from meco_timm.common import UserError, unfinished
from meco_timm.data import DataSource, Images
from meco_timm.evaluation.backbone import compute_embeddings
from meco_timm.evaluation.features import nearest, pca_colours
from meco_timm.evaluation.table import on_device
from meco_timm.networks import Stream

EXAMPLES, QUERIES, NEIGHBOURS, POOL = 6, 4, 5, 2_048
POSITIONS = 49  # of a map, at least, to be worth looking at: the deepest map that has as many
LARGEST = 96  # pixels of a stored image


class Pictures(NamedTuple):
    """networks: teachers, `student before`, `student`. images: I×H×W×3 uint8, held out. colours: by network
    I×h×w×3 uint8. neighbours: by network Q×(1 + 5)×H×W×3 uint8, an image and those nearest to it."""

    networks: list[str]
    images: np.ndarray
    colours: dict[str, np.ndarray]
    neighbours: dict[str, np.ndarray]


def make_pictures(networks: Mapping[str, Stream], data: DataSource, device: torch.device) -> Pictures | None:
    """Compute the pictures on held-out images; None of fewer than two."""
    pool = data.test.subsample(POOL)
    if len(pool) < 2:
        return None
    pool.kept = {}  # read once for all networks
    pixels = torch.cat([_shrink(batch.image) for batch in data.in_order(pool, 64)])
    examples = data.test.subsample(EXAMPLES)
    queries = np.linspace(0, len(pool) - 1, num=min(QUERIES, len(pool))).astype(int)
    neighbours = {}
    for name, stream in networks.items():
        embeddings = compute_embeddings(stream, data, pool, device)[0]
        places = nearest(embeddings, embeddings[queries], NEIGHBOURS + 1)[1]  # an image is nearest to itself
        neighbours[name] = pixels[places].numpy()
    images = torch.cat([_shrink(batch.image) for batch in data.in_order(examples, 64)]).numpy()
    colours = {name: pca_colours(patch_features(s, data, examples, device)).numpy() for name, s in networks.items()}
    return Pictures(list(networks), images, colours, neighbours)


def _shrink(image: Tensor) -> Tensor:
    """uint8 B×3×H×W → B×h×w×3 of at most `LARGEST` pixels."""
    if image.shape[-1] > LARGEST:
        image = F.interpolate(image.float(), (LARGEST, LARGEST), mode="bilinear", antialias=True).round().byte()
    return image.permute(0, 2, 3, 1)


@torch.no_grad()
def patch_features(stream: Stream, data: DataSource, images: Images, device: torch.device) -> Tensor:
    """The deepest feature maps with at least `POSITIONS` positions, or else the largest, B×C×h×w."""
    with on_device([stream.eval()], device):
        (batch,) = data.in_order(images, len(images))
        maps = stream.model.forward_intermediates(
            stream.prepare(batch.image.to(device)), output_fmt="NCHW", intermediates_only=True
        )
    sizes = [one.shape[-1] * one.shape[-2] for one in maps]
    deep = [i for i, size in enumerate(sizes) if size >= min(POSITIONS, max(sizes))]
    return maps[deep[-1]].float().cpu()


def save_pictures(pictures: Pictures, path: Path) -> None:
    """Write the file atomically (rename)."""
    arrays = {"images": pictures.images}
    for field in ("colours", "neighbours"):
        arrays |= {f"{field}/{name}": array for name, array in getattr(pictures, field).items()}
    beside = unfinished(path)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(arrays, beside, {"networks": json.dumps(pictures.networks)})
    beside.replace(path)


def load_pictures(path: Path) -> Pictures | None:
    """Read the file; None if there is none.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return None
    fields: dict[str, Any] = {"colours": {}, "neighbours": {}}
    try:
        with safe_open(path, "numpy") as file:
            networks = json.loads(file.metadata()["networks"])
            for key in file.keys():  # noqa: SIM118  not a dict
                field, slash, name = key.partition("/")
                (fields[field] if slash else fields)[name or field] = file.get_tensor(key)
        return Pictures(networks, **fields)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it to get the report without its pictures.") from None
