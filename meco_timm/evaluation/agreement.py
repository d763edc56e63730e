"""Similarity of the blocks of two networks: centred kernel alignment (CKA, Kornblith et al. 2019).

CKA does not change if features are rotated or scaled. The unbiased estimate is used (Song et al. 2012; Nguyen et al.
2021), because a few hundred images are a small sample.
"""

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from meco_timm.data import DataSource, Images
from meco_timm.evaluation.table import on_device
from meco_timm.networks import Stream

IMAGES = 512  # of the test split, evenly spread


def cka(a: Tensor, b: Tensor) -> float:
    """Unbiased linear CKA of features n×d and n×e of the same n ≥ 4 images.

    1 for equal features up to rotation and scale, about 0 for unrelated ones; nan if either is constant.
    """
    return kernel_cka(*(x.double() @ x.double().T for x in (a, b)))


def kernel_cka(a: Tensor, b: Tensor) -> float:
    """Unbiased CKA of two kernels n×n: the inner products of the features of each two images."""
    norm = _hsic(a, a) * _hsic(b, b)
    return _hsic(a, b) / norm**0.5 if norm > 0 else float("nan")


def _hsic(a: Tensor, b: Tensor) -> float:
    """Unbiased Hilbert-Schmidt independence criterion of two n×n kernels (Song et al. 2012)."""
    n = len(a)
    a, b = (x - torch.diag(x.diag()) for x in (a, b))
    total = (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a.sum(0) @ b.sum(0))
    return (total / (n * (n - 3))).item()


def block_agreement(
    student: Stream, alone: Stream, teachers: dict[str, Stream], data: DataSource, accelerator: Accelerator
) -> dict[str, np.ndarray]:
    """CKA of aligned blocks on at most `IMAGES` images of the test split.

    Returns:
        "student/TEACHER" and "student alone/TEACHER" → float32 S×T, for S blocks of the student and T of the teacher.
        Empty if no blocks are compared or the split has fewer than 4 images.
    """
    teachers = {name: stream for name, stream in teachers.items() if stream.taps}
    images = data.test.subsample(IMAGES)
    images.kept = {}  # read once for all networks
    if not (student.taps and teachers) or len(images) < 4:
        return {}
    students = {
        "student": student,
        "student alone": Stream(alone.model, student.alignment, alone.size, alone.data_config),
    }
    device = accelerator.device
    blocks = {name: _block_features(stream, data, images, device) for name, stream in teachers.items()}
    agreement = {}
    for who, stream in students.items():
        own = _block_features(stream, data, images, device)
        for name, others in blocks.items():
            table = [[cka(a, b) for b in others] for a in own]
            agreement[f"{who}/{name}"] = np.array(table, dtype=np.float32)
    return agreement


@torch.no_grad()
def _block_features(stream: Stream, data: DataSource, images: Images, device: torch.device) -> list[Tensor]:
    """Aligned features of each block for all n images, n×d on the CPU."""
    with on_device([stream.eval()], device):
        parts = [
            [block.flatten(1).cpu() for block in stream(batch.image.to(device)).blocks]
            for batch in data.in_order(images, 64)
        ]
    return [torch.cat(block) for block in zip(*parts, strict=True)]
