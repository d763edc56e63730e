"""Evaluate one timm network on any data set, with the same measures as the table of a run."""

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from timm.data import resolve_data_config
from torch import Tensor

from meco_timm.common import get_logger, join_names
from meco_timm.data import DataSource, whole_split
from meco_timm.evaluation.class_check import check_classes
from meco_timm.evaluation.rows import Row
from meco_timm.evaluation.table import table_row
from meco_timm.networks import LOGITS_ONLY, Stream, known_by_name, make_network, teacher_stream
from meco_timm.recipe import Data, Teacher

logger = get_logger(__name__)


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
        data = data_for(teacher, str(data))
    source = whole_split(data, split) if isinstance(data, Data) else data
    device = PartialState().device
    stream = teacher_stream(teacher, LOGITS_ONLY, source.classes, role="model").to(device).eval()
    batches = [
        (stream.logits(b.image.to(device)).float().cpu(), b.label) for b in source.in_order(source.test, batch_size)
    ]
    logits, label = (torch.cat(column) for column in zip(*batches, strict=True))
    _report_class_order(teacher, stream, source.classes, logits, label)
    return table_row(teacher.model, [stream], logits, label, device, source.classes)


def data_for(teacher: Teacher, source: str) -> Data:
    """The data set with the image size, crop and filter of the network's config."""
    model, size = make_network(teacher, {}, True, teacher.size, "model", weightless=True)
    config = resolve_data_config(pretrained_cfg=model.pretrained_cfg, model=model)
    wanted = config["interpolation"]
    interpolation: Any = wanted if wanted in ("bilinear", "bicubic", "nearest") else "bicubic"
    crop_pct = min(float(config["crop_pct"]), 1.0)
    return Data(source=source, image_size=size, crop_pct=crop_pct, interpolation=interpolation)


def _report_class_order(teacher: Teacher, stream: Stream, classes: list[str], logits: Tensor, label: Tensor) -> None:
    """Log where the order of the network's classes is assumed, and where another fits better."""
    if not teacher.classes and stream.class_map is None and not known_by_name(stream.model, classes):
        logger.info(
            "note: %s has %d classes without names; they are taken to be in the order of the data set: %s",
            teacher.model, len(classes), join_names(classes, 5),
        )  # fmt: skip
    check = check_classes(logits, label, classes, stream.class_map)
    if check.other:
        logger.warning(
            "%s: %s, but %.1f %% with its classes in %s (%s). Write its class names in that order into a file, one a "
            "line, and name it with --classes (in a recipe: `classes:` of the teacher).",
            teacher.model, check, check.other.accuracy, check.other.name, join_names(check.other.names, 3),
        )  # fmt: skip
    elif check.at_chance:
        logger.warning("%s: %s: it does not know these classes, or has them in another order.", teacher.model, check)
