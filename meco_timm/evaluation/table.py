"""Evaluate the networks of a run: each teacher, the true ensemble, the student alone, the student."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from meco_timm.data import DataSource, Images
from meco_timm.evaluation.measures import accuracy, class_accuracies, mean_of_known, negative_log_likelihood, quality
from meco_timm.evaluation.rows import Row
from meco_timm.networks import Combination, Stream, mean_logits

Predictor = Callable[[Tensor], Tensor]  # image uint8 B×3×H×W → logits B×K


class Evaluation(NamedTuple):
    """The table's rows, and what they are computed from: logits N×K by name of the row, labels N."""

    rows: list[Row]
    logits: dict[str, Tensor]
    label: Tensor


@torch.no_grad()
def compute_logits(
    predictors: Mapping[str, Predictor | Stream],
    data: DataSource,
    images: Images,
    accelerator: Accelerator,
    batch_size: int = 64,
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute each network's logits, N×K on the CPU, and collect the labels N; each image once over all processes.

    A stream may wait on the CPU; it is moved to the device for each batch.

    Raises:
        UserError: an image cannot be read.
    """
    functions = [_mean_logits([p]) if isinstance(p, Stream) else p for p in predictors.values()]
    parts: list[list[Tensor]] = []
    for batch in data.in_order(images, batch_size, accelerator.process_index, accelerator.num_processes):
        image = batch.image.to(accelerator.device, non_blocking=True)
        parts.append([batch.row, batch.label, *(f(image).float().cpu() for f in functions)])
    row, label, *logits = (_gather(torch.cat(column), accelerator) for column in zip(*parts, strict=True))
    order = row.argsort()
    return {name: z[order] for name, z in zip(predictors, logits, strict=True)}, label[order]


def _gather(mine: Tensor, accelerator: Accelerator) -> Tensor:
    """Concatenate the rows of all processes, which may differ in number."""
    if accelerator.num_processes == 1:
        return mine
    mine = mine.to(accelerator.device)
    counts = accelerator.gather(torch.tensor([len(mine)], device=accelerator.device)).tolist()
    padded = accelerator.gather(accelerator.pad_across_processes(mine)).cpu()
    return torch.cat([part[:count] for part, count in zip(padded.chunk(len(counts)), counts, strict=True)])


def validate(stream: Stream, data: DataSource, accelerator: Accelerator, batch_size: int) -> dict[str, float]:
    """Measure top1 (per cent) and nll (nats) on the validation split."""
    stream.eval()
    logits, label = compute_logits({"": stream.logits}, data, data.validation, accelerator, batch_size)
    return {"top1": accuracy(logits[""], label), "nll": negative_log_likelihood(logits[""], label)}


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
    logits, label = compute_logits(streams, data, data.test, accelerator, batch_size)
    logits |= {name: logits[name] / combination.temperatures[name] for name in teachers}
    members = {name: [stream] for name, stream in streams.items()}
    used = [name for name in teachers if combination.weights[name]]
    if used:
        members["true ensemble"] = [teachers[name] for name in used]
        logits["true ensemble"] = mean_logits([logits[name] for name in used], weights=combination.weights_of(used))
    order = (*teachers, *(["true ensemble"] if used else []), "student alone", "student")
    rows = [
        table_row(
            name, members[name], logits[name], label, accelerator.device, data.classes,
            latency=name in ("true ensemble", "student"),
        )
        for name in order
    ]  # fmt: skip
    calibrated = any(temperature != 1 for temperature in combination.temperatures.values())
    weighted = combination.weights_of(teachers) is not None
    rows = [
        row._replace(
            temperature=combination.temperatures[row.name] if calibrated else None,
            weight=combination.weights[row.name] if weighted else None,
        )
        if row.name in teachers
        else row
        for row in rows
    ]
    return Evaluation(rows, {name: logits[name] for name in order}, label)


def _mean_logits(streams: list[Stream]) -> Predictor:
    """The streams in evaluation mode as one function: the mean of their softmax, as logits."""
    for stream in streams:
        stream.eval()

    def predictor(image: Tensor) -> Tensor:
        with on_device(streams, image.device):
            return mean_logits([stream.logits(image) for stream in streams])

    return predictor


@contextmanager
def on_device(streams: list[Stream], device: torch.device) -> Iterator[None]:
    """Move streams to the device inside the block, and those that were elsewhere to the CPU after it."""
    moved = [stream for stream in streams if stream.mean.device != device]
    for stream in moved:
        stream.to(device)
    yield
    for stream in moved:
        stream.to("cpu")


def table_row(
    name: str,
    streams: list[Stream],
    logits: Tensor,
    label: Tensor,
    device: torch.device,
    classes: list[str],
    predictor: Predictor | None = None,
    latency: bool = False,
) -> Row:
    """Measure one network, or the mean softmax of several, and its speed.

    predictor: what computes the logits, if it is not the streams themselves. latency: also time one image.
    """
    size, function = streams[0].size, predictor or _mean_logits(streams)
    with on_device(streams, device):
        speed = images_per_second(function, size, device, min(64, len(label)))
        single = images_per_second(function, size, device, 1, 0.1) if latency else None
    accuracies = class_accuracies(logits, label)
    return Row(
        name,
        **quality(logits, label),  # type: ignore[arg-type]
        parameters=sum(s.parameter_count for s in streams),
        multiply_adds=sum(s.multiply_adds() for s in streams),
        images_per_s=speed,
        balanced=mean_of_known(accuracies),
        per_class=dict(zip(classes, accuracies, strict=True)),
        latency_ms=single and 1000 / single,
    )


@torch.no_grad()
def images_per_second(
    predictor: Predictor, size: int, device: torch.device, batch: int = 64, seconds: float = 0.25
) -> float:
    """Measure the median speed over batches of `batch` images during about `seconds`, after one batch of warm-up."""
    image = torch.zeros(batch, 3, size, size, dtype=torch.uint8, device=device)
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        started = time.perf_counter()
        predictor(image).sum().item()  # .item() waits for the device
        times.append(time.perf_counter() - started)
    return batch / median(times[1:])
