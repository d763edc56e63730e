"""10 · Where blocks of two networks agree: centred kernel alignment, blind to rotation and scale of the features.

The unbiased estimate (Song et al. 2012; Nguyen et al. 2021), since a few hundred images are fewer than one would like.
"""

from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from meco_timm.data import DataSource, Images
from meco_timm.evaluation.table import visiting
from meco_timm.networks import Stream

IMAGES = 512  # of the test split, evenly spread


def cka(a: Tensor, b: Tensor) -> float:
    """Similarity of two sets of features of the same n ≥ 4 images, n×d and n×e: 1 for alike, about 0 for unrelated."""
    a, b = (x.double() @ x.double().T for x in (a, b))
    norm = _hsic(a, a) * _hsic(b, b)
    return _hsic(a, b) / norm**0.5 if norm > 0 else float("nan")


def _hsic(a: Tensor, b: Tensor) -> float:
    """Unbiased Hilbert-Schmidt independence criterion of two n×n kernels."""
    n = len(a)
    a, b = (x - torch.diag(x.diag()) for x in (a, b))
    total = (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a.sum(0) @ b.sum(0))
    return (total / (n * (n - 3))).item()


def block_agreement(
    student: Stream, alone: Stream, teachers: dict[str, Stream], data: DataSource, accelerator: Accelerator
) -> dict[str, np.ndarray]:
    """ "student/TEACHER" and "student alone/TEACHER" → CKA of each of their blocks with each of the teacher's, S×T.

    Of aligned blocks, which is what the student learned from. Empty where no blocks are compared.
    """
    teachers = {name: stream for name, stream in teachers.items() if stream.taps}
    images = evenly_spread(data.test, IMAGES)
    if not (student.taps and teachers) or len(images) < 4:
        return {}
    learners = {
        "student": student,
        "student alone": Stream(alone.model, student.alignment, alone.size, alone.data_config),
    }
    blocks: dict[str, list[Tensor]] = {}
    for name, stream in (learners | {f"teacher/{name}": stream for name, stream in teachers.items()}).items():
        with visiting([stream], accelerator.device):
            blocks[name] = _blocks_of(stream.eval(), data, images)
    return {
        f"{who}/{teacher}": np.array(
            [[cka(a, b) for b in blocks[f"teacher/{teacher}"]] for a in blocks[who]], dtype=np.float32
        )
        for who in learners
        for teacher in teachers
    }


def evenly_spread(images: Images, count: int) -> Images:
    """At most `count` of the images, evenly spread over them, since they may lie in the order of their classes."""
    places = np.linspace(0, len(images) - 1, num=min(count, len(images))).astype(int)
    return Images(images.split, images.labels, images.rows[places], images.transform)


@torch.no_grad()
def _blocks_of(stream: Stream, data: DataSource, images: Images) -> list[Tensor]:
    """Each block's aligned features of all images, n×d on the CPU."""

    def parts() -> Iterator[list[Tensor]]:
        for batch in data.in_order(images, 64):
            yield [block.cpu() for block in stream(batch.image.to(stream.mean.device)).blocks]

    return [torch.cat(block) for block in zip(*parts(), strict=True)]
