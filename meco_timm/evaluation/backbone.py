"""Evaluate a backbone: its features before and after training, beside those of its teachers.

With labels: k-NN and linear probe on pooled features. Always: agreement with each teacher on held-out images, as CKA of
the embeddings and as mean cosine through the learned projection. No label has been used for training.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn

from meco_timm.data import DataSource, Images
from meco_timm.evaluation.agreement import kernel_cka
from meco_timm.evaluation.features import knn_accuracy, probe_accuracy
from meco_timm.evaluation.rows import BackboneRow
from meco_timm.evaluation.table import images_per_second, on_device
from meco_timm.networks import Stream, teacher_stream
from meco_timm.recipe import Alignment, Teacher

EMBEDDING_ONLY = Alignment(blocks=0, embedding="linear")
REFERENCE, QUERIES, HELD_OUT = 20_000, 5_000, 2_048  # images at most, evenly spread
BATCH = 64


class Labelled(NamedTuple):
    """Images with labels for the evaluation: `reference` to compare with, `query` to be classified."""

    data: DataSource
    reference: Images
    query: Images


def labelled_images(data: DataSource) -> Labelled | None:
    """The labelled images of a data set, not augmented; None if it has no labels to compare."""
    reference, query = (_with_labels(images, data.test.transform) for images in (data.labelled, data.test))
    if len(data.classes) < 2 or not (len(reference) and len(query)):
        return None
    return Labelled(data, reference.subsample(REFERENCE), query.subsample(QUERIES))


def _with_labels(images: Images, transform: object) -> Images:
    rows = images.rows[images.labels[images.rows] >= 0]
    return Images(images.split, images.labels, rows, transform, max_bad=images.max_bad)


def embedding_stream(stream: Stream) -> Stream:
    """The same network as a stream that gives its embedding only."""
    return Stream(stream.model, EMBEDDING_ONLY, stream.size, stream.data_config, gives="blocks")


@torch.no_grad()
def compute_embeddings(
    stream: Stream, data: DataSource, images: Images, device: torch.device, batch_size: int = BATCH
) -> tuple[Tensor, Tensor]:
    """Embeddings N×d, float32 on the CPU, and labels N, in order."""
    stream = embedding_stream(stream).eval()
    parts: list[tuple[Tensor, Tensor]] = []
    with on_device([stream], device):
        for batch in data.in_order(images, batch_size):
            embedding = stream(batch.image.to(device)).embedding
            assert embedding is not None
            parts.append((embedding.cpu(), batch.label))
    embeddings, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return embeddings, labels


def evaluate_backbone(
    student: Stream,
    before: Stream,
    teachers: Mapping[str, Stream],
    data: DataSource,
    labelled: Labelled | None,
    projections: Mapping[str, nn.Module],
    device: torch.device,
) -> list[BackboneRow]:
    """Measure the teachers, the student before training and the student; in one process.

    Teachers that give no embedding have no row. projections: by the teacher's name, from both embeddings, B×d and B×e,
    to what was compared in training.
    """
    pooled = {name: stream for name, stream in teachers.items() if stream.has_embedding}
    networks = {**pooled, "student before": before, "student": student}
    held_out = data.test.subsample(HELD_OUT)
    held_out.kept = {}  # read once for all networks
    found = {name: compute_embeddings(stream, data, held_out, device)[0] for name, stream in networks.items()}
    rows = []
    for name, stream in networks.items():
        row = _measure_features(name, stream, labelled, device)
        if name in pooled:
            row = row._replace(
                cka_before=_cka(found["student before"], found[name]),
                cka=_cka(found["student"], found[name]),
                cosine=_mean_cosine(projections.get(name), found[name], found["student"]),
            )
        rows.append(row)
    return rows


def measure_knn(model: str, data: DataSource) -> float | None:
    """k-NN accuracy in per cent of a network's embeddings, by its timm name; None without labels."""
    labelled, device = labelled_images(data), PartialState().device
    if labelled is None:
        return None
    stream = teacher_stream(Teacher(model=model), EMBEDDING_ONLY, [], role="model").to(device)
    reference, query = (compute_embeddings(stream, data, images, device) for images in labelled[1:])
    return knn_accuracy(*reference, *query)


def _measure_features(name: str, stream: Stream, labelled: Labelled | None, device: torch.device) -> BackboneRow:
    knn, probe = None, None
    if labelled:
        reference = compute_embeddings(stream, labelled.data, labelled.reference, device)
        query = compute_embeddings(stream, labelled.data, labelled.query, device)
        knn, probe = knn_accuracy(*reference, *query), probe_accuracy(*reference, *query)
    pooled = embedding_stream(stream).eval()
    with on_device([pooled], device):
        speed = images_per_second(lambda image: pooled(image).embedding, pooled.size, device)
    return BackboneRow(name, knn, probe, pooled.parameter_count, pooled.multiply_adds(), speed)


def _cka(a: Tensor, b: Tensor) -> float | None:
    """Unbiased linear CKA of embeddings; None of fewer than four images, or of constant ones."""
    if len(a) < 4:
        return None
    value = kernel_cka(*(x.double() @ x.double().T for x in (a - a.mean(0), b - b.mean(0))))
    return None if np.isnan(value) else value


def _mean_cosine(projection: nn.Module | None, teacher: Tensor, student: Tensor) -> float | None:
    """Mean cosine of the student's projected embedding with the teacher's standardised one; None without a map."""
    if projection is None or any(hasattr(p, "full_tensor") for p in projection.parameters()):  # sharded
        return None
    device = next(projection.parameters()).device
    with torch.no_grad():
        target, projected = projection(teacher.to(device), student.to(device))
    return F.cosine_similarity(target, projected, dim=1).mean().item()
