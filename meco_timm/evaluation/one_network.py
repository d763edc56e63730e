"""Evaluate one timm network on any data set, with the same measures as the table of a run."""

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from timm.data import resolve_data_config

from meco_timm.data import DataSource, whole_split
from meco_timm.evaluation.table import Row, table_row
from meco_timm.networks import LOGITS_ONLY, make_network, teacher_stream
from meco_timm.recipe import Data, Teacher


@torch.no_grad()
def evaluate(
    model: str | Teacher, data: str | Path | Data | DataSource, split: str | None = None, batch_size: int = 64
) -> Row:
    """Accuracy, calibration and cost of a network on a split of a data set; one process, one device.

    model: a timm name, `hf-hub:owner/name` or `local-dir:path`, or a `Teacher` (input size, class map, weights).
    data: a source as in a recipe's `data.source`, read with the network's own size, crop and filter; or a recipe's
    `Data`; or a `DataSource`, of which the test split is used. split: by default `test`, else `validation`, else the
    first.

    Returns:
        top1, top5 and ece in per cent, nll in nats, multiply_adds of one image, images_per_s measured on this device.

    Raises:
        UserError: the network or the data cannot be loaded, or their classes do not match.
    """
    teacher = Teacher.model_validate(model) if isinstance(model, str) else model
    if isinstance(data, str | Path):
        data = _data_for(teacher, str(data))
    source = whole_split(data, split) if isinstance(data, Data) else data
    device = PartialState().device
    stream = teacher_stream(teacher, LOGITS_ONLY, source.classes, role="model").to(device).eval()
    batches = [
        (stream.logits(b.image.to(device)).float().cpu(), b.label) for b in source.in_order(source.test, batch_size)
    ]
    logits, label = (torch.cat(column) for column in zip(*batches, strict=True))
    return table_row(teacher.model, [stream], logits, label, device)


def _data_for(teacher: Teacher, source: str) -> Data:
    """The data set with the image size, crop and filter of the network's config."""
    model, size = make_network(teacher, {}, True, teacher.size, "model", weightless=True)
    config = resolve_data_config(pretrained_cfg=model.pretrained_cfg, model=model)
    wanted = config["interpolation"]
    filtered: Any = wanted if wanted in ("bilinear", "bicubic", "nearest") else "bicubic"
    return Data(source=source, image_size=size, crop_pct=min(float(config["crop_pct"]), 1.0), interpolation=filtered)
