"""The table of a run: each teacher, the true ensemble, student alone, student; accuracy, calibration and cost."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from meco_timm.data import DataSource, Images
from meco_timm.distillation import mean_logits
from meco_timm.evaluation.ensemble import Combination
from meco_timm.evaluation.measures import (
    accuracy,
    balanced_accuracy,
    class_accuracies,
    negative_log_likelihood,
    quality,
)
from meco_timm.evaluation.rows import Row
from meco_timm.networks import Stream

Predictor = Callable[[Tensor], Tensor]  # image uint8 B×3×H×W → logits B×K


class Evaluation(NamedTuple):
    """The table's rows, and what they are computed from: logits N×K by name of the row, labels N."""

    rows: list[Row]
    logits: dict[str, Tensor]
    label: Tensor


@torch.no_grad()
def predict(
    predictors: dict[str, Predictor], data: DataSource, images: Images, accelerator: Accelerator, batch_size: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Logits of each predictor, N×K on the CPU, and labels N of all images; each image once over all processes.

    Raises:
        UserError: an image cannot be read.
    """
    parts: list[list[Tensor]] = []
    for batch in data.in_order(images, batch_size, accelerator.process_index, accelerator.num_processes):
        image = batch.image.to(accelerator.device, non_blocking=True)
        parts.append([batch.row, batch.label, *(f(image).float().cpu() for f in predictors.values())])
    row, label, *logits = (torch.cat(column) for column in _gathered(parts, accelerator))
    order = row.argsort()
    return {name: z[order] for name, z in zip(predictors, logits, strict=True)}, label[order]


def _gathered(parts: list[list[Tensor]], accelerator: Accelerator) -> Iterator[list[Tensor]]:
    """For each column the parts of all processes, which may have different numbers of rows."""
    for column in zip(*parts, strict=True):
        mine = torch.cat(column).to(accelerator.device)
        if accelerator.num_processes == 1:
            yield [mine.cpu()]
            continue
        counts = accelerator.gather(torch.tensor([len(mine)], device=accelerator.device)).tolist()
        padded = accelerator.gather(accelerator.pad_across_processes(mine)).cpu()
        yield [part[:count] for part, count in zip(padded.chunk(len(counts)), counts, strict=True)]


def validate(stream: Stream, data: DataSource, accelerator: Accelerator, batch_size: int) -> dict[str, float]:
    """top1 (per cent) and nll (nats) on the validation split."""
    stream.eval()
    logits, label = predict({"": stream.logits}, data, data.validation, accelerator, batch_size)
    return {"top1": accuracy(logits[""], label), "nll": negative_log_likelihood(logits[""], label)}


def predict_logits(
    streams: Mapping[str, Stream], data: DataSource, images: Images, accelerator: Accelerator, batch_size: int = 64
) -> tuple[dict[str, Tensor], Tensor]:
    """As `predict`, of networks that may wait on the CPU."""
    predictors = {name: _predictor([stream]) for name, stream in streams.items()}
    return predict(predictors, data, images, accelerator, batch_size)


def make_table(
    student: Stream,
    alone: Stream,
    teachers: dict[str, Stream],
    data: DataSource,
    accelerator: Accelerator,
    combination: Combination | None = None,
    batch_size: int = 64,
) -> Evaluation:
    """Evaluate teachers, true ensemble (mean of their softmax), student alone and student on the test split.

    Teachers without logits have no row and are not part of the ensemble. combination: of all teachers, by default
    equal; a teacher with a temperature is evaluated with it, as it teaches.
    """
    combination = combination or Combination.equal(teachers)
    teachers = {name: stream for name, stream in teachers.items() if stream.has_logits}
    streams = {**teachers, "student alone": alone, "student": student}
    logits, label = predict_logits(streams, data, data.test, accelerator, batch_size)
    logits |= {name: logits[name] / combination.temperatures[name] for name in teachers}
    members = {name: [stream] for name, stream in streams.items()}
    used = [name for name in teachers if combination.weights[name]]
    if used:
        members["true ensemble"] = [teachers[name] for name in used]
        logits["true ensemble"] = mean_logits([logits[name] for name in used], weights=combination.weights_of(used))
    order = (*teachers, *(["true ensemble"] if used else []), "student alone", "student")
    rows = [table_row(name, members[name], logits[name], label, accelerator.device, data.classes) for name in order]
    rows = [_with_combination(row, combination, teachers) for row in rows]
    return Evaluation(rows, {name: logits[name] for name in order}, label)


def _with_combination(row: Row, combination: Combination, teachers: Mapping[str, Stream]) -> Row:
    """The row with its temperature and weight, where these are not those of a plain ensemble."""
    calibrated = any(temperature != 1 for temperature in combination.temperatures.values())
    if row.name not in teachers:
        return row
    return row._replace(
        temperature=combination.temperatures[row.name] if calibrated else None,
        weight=combination.weights[row.name] if combination.weights_of(teachers) else None,
    )


def _predictor(streams: list[Stream]) -> Predictor:
    """The mean of the streams' softmax, as logits."""
    for stream in streams:
        stream.eval()

    def predictor(image: Tensor) -> Tensor:
        with on_device(streams, image.device):
            return mean_logits([stream.logits(image) for stream in streams])

    return predictor


@contextmanager
def on_device(streams: list[Stream], device: torch.device) -> Iterator[None]:
    """Move streams that are on the CPU to the device for a while."""
    moved = [stream for stream in streams if stream.mean.device != device]
    for stream in moved:
        stream.to(device)
    yield
    for stream in moved:
        stream.to("cpu")


def table_row(
    name: str, streams: list[Stream], logits: Tensor, label: Tensor, device: torch.device, classes: list[str]
) -> Row:
    """The row of one network, or of the mean softmax of several; measures the speed."""
    with on_device(streams, device):
        speed = images_per_second(_predictor(streams), streams[0].size, device, min(64, len(label)))
    accuracies = class_accuracies(logits, label)
    return Row(
        name,
        **quality(logits, label),  # type: ignore[arg-type]
        parameters=sum(s.parameter_count for s in streams),
        multiply_adds=sum(s.multiply_adds() for s in streams),
        images_per_s=speed,
        balanced=balanced_accuracy(accuracies),
        per_class=dict(zip(classes, accuracies, strict=True)),
    )


@torch.no_grad()
def images_per_second(
    predictor: Predictor, size: int, device: torch.device, batch: int = 64, seconds: float = 0.25
) -> float:
    """Median speed over batches of `batch` images during about `seconds`, after one batch of warm-up."""
    image = torch.zeros(batch, 3, size, size, dtype=torch.uint8, device=device)
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        started = time.perf_counter()
        predictor(image).sum().item()  # .item() waits for the device
        times.append(time.perf_counter() - started)
    return batch / median(times[1:])
