"""Export a network to ONNX, compare the file with PyTorch, and quantise it to eight bits."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from meco_timm.common import RESULT, UserError, get_logger
from meco_timm.data import DataSource, load_data
from meco_timm.evaluation import OnnxNetwork, Row, data_for, quantise, styled_table, table_row
from meco_timm.networks import LOGITS_ONLY, Stream, bare_stream, readable_names, teacher_stream, write_onnx
from meco_timm.recipe import Data, Teacher
from meco_timm.reporting import Results, read_results, report
from meco_timm.training import RunFolder

result = get_logger(RESULT)

TOLERANCE = 1e-3  # of a logit, or of the largest logit where that is above 1
CALIBRATION = 256  # images
FLOAT32, INT8 = "model.onnx", "model_int8.onnx"  # where transformers.js and others look for them


class Source(NamedTuple):
    """A network to export: its stream, the names of its classes, images, if some are known, and the run it is of."""

    name: str
    stream: Stream
    classes: list[str] | None
    data: DataSource | None
    folder: Path
    run: RunFolder | None = None


class Export(NamedTuple):
    """The files, the largest difference from PyTorch's logits, and their rows of a table, if there are images."""

    file: Path
    int8: Path | None
    difference: float
    rows: list[Row]


def export_onnx(
    network: str | Path,
    output: Path | None = None,
    *,
    int8: bool = False,
    preprocess: bool = False,
    data: str | None = None,
    size: int | None = None,
) -> Export:
    """Write `model.onnx`, and with `int8` also `model_int8.onnx`, and compare them with PyTorch on the test images.

    Args:
        network: folder of a finished run, whose student is exported; or a timm name, `hf-hub:…` or `local-dir:…`.
        output: folder of the files; by default `student/onnx` in the run folder, or `onnx`.
        preprocess: the graph takes RGB in [0, 1] and normalises it.
        data: source of images for a network that is no run's. Without it random images are compared, and `int8`,
            which sets the range of each activation by training images, cannot be had.
        size: input size in pixels of a network that is no run's; by default its own.

    Raises:
        UserError: the extra `export` is not installed, the network cannot be exported, or ONNX Runtime gives other
            logits than PyTorch.
    """
    source = _student_of(read_results(network), output) if _is_run(network) else _open(str(network), output, data, size)
    if int8 and source.data is None:
        raise UserError("export: --int8 needs images, which set the range of each activation. Name them with --data.")
    prepare = _as_float if preprocess else source.stream.prepare
    file = source.folder / FLOAT32
    write_onnx(source.stream, file, source.classes, preprocess)
    row, difference = _check(source, file, prepare)
    rows, eight = [row] if row else [], None
    if int8 and source.data:
        eight = source.folder / INT8
        images = source.data.in_order(source.data.labelled.subsample(CALIBRATION), 32)
        quantise(file, eight, (prepare(batch.image) for batch in images))
        rows.append(_row(source, eight, prepare, *_logits(source, eight, prepare)[1:]))
    if rows and source.data:
        result.info(styled_table(rows, f"\nONNX Runtime on the {len(source.data.test):,} test images, one thread"))
    if eight:
        result.info("\n%s", compare_int8(*rows))
    if source.run:
        source.run.add_exports(rows)
        result.info("\nReport: %s", report(source.run.path))
    return Export(file, eight, difference, rows)


def compare_int8(exact: Row, eight: Row) -> str:
    """The accuracy that eight bits cost, in a sentence; a loss above one point is called one."""
    change, smaller = eight.top1 - exact.top1, (exact.megabytes or 0) / (eight.megabytes or 1)
    faster = (exact.latency_ms or 0) / (eight.latency_ms or 1)
    loss = " This is a loss: export without --int8, or train with more steps." if change < -1 else ""
    points = f"{change:+.2f}".replace("-", "−")
    return f"With eight bits: {points} points of top-1, {smaller:.1f} times smaller, {faster:.1f} times as fast.{loss}"


def preprocessor_config(student: Path) -> dict[str, Any]:
    """How transformers.js prepares images for the exported student: timm's resizing, crop and normalisation."""
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    size = config["input_size"][-1]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": len(config["mean"]) == 3,
        "do_resize": True,
        "size": {"shortest_edge": math.floor(size / config["crop_pct"])},
        "resample": {"nearest": 0, "bilinear": 2}.get(config["interpolation"], 3),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": config["mean"],
        "image_std": config["std"],
    }


def _is_run(network: str | Path) -> bool:
    return (Path(network) / "recipe.yaml").is_file()


def _student_of(results: Results, output: Path | None) -> Source:
    """The student of a finished run, with the run's images; of a backbone without, since it has no classes."""
    student = results.folder.student
    if results.is_backbone:
        return _open(f"local-dir:{student.resolve()}", output or student / "onnx", None, None)
    data = load_data(Data.model_validate(results.recipe["data"]), results.recipe["seed"])
    stream = teacher_stream(Teacher(model=f"local-dir:{student.resolve()}"), LOGITS_ONLY, data.classes, role="student")
    return Source("student", stream, data.classes, data, output or student / "onnx", results.folder)


def _open(network: str, output: Path | None, source: str | None, size: int | None) -> Source:
    """Any network, with the images of `source`."""
    teacher = Teacher(model=network, size=size)
    folder = output or Path("onnx")
    if source is None:
        stream = bare_stream(teacher, size)
        return Source(network, stream, readable_names(stream.model), None, folder)
    data = load_data(data_for(teacher, source), 0)
    stream = teacher_stream(teacher, LOGITS_ONLY, data.classes, role="export")
    return Source(network, stream, readable_names(stream.model) or data.classes, data, folder)


def _as_float(image: Tensor) -> Tensor:
    return image.float() / 255


def _check(source: Source, file: Path, prepare: Callable[[Tensor], Tensor]) -> tuple[Row | None, float]:
    """Compare the file with PyTorch and say so; its row, if there are images, and the largest difference of a logit."""
    expected, logits, label = _logits(source, file, prepare)
    difference = ((logits - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    if not difference <= TOLERANCE:
        file.unlink()
        raise UserError(
            f"export: ONNX Runtime's logits of {file} differ from PyTorch's by {difference:.1e}; at most {TOLERANCE:g} "
            "is allowed."
        )
    same = int((logits.argmax(1) == expected.argmax(1)).sum())
    what = "random images" if source.data is None else "test images"
    result.info(
        "%s: ONNX Runtime predicts PyTorch's class for %s of %s %s; largest difference of a logit %.1e.",
        file, f"{same:,}", f"{len(logits):,}", what, difference,
    )  # fmt: skip
    return (_row(source, file, prepare, logits, label) if source.data else None), difference


@torch.inference_mode()
def _logits(source: Source, file: Path, prepare: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's logits N×K, those of the file, labels N: of the test images, or of eight random ones."""
    stream, network = source.stream, OnnxNetwork(file)
    if source.data is None:
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (8, 3, stream.size, stream.size), dtype=torch.uint8, generator=generator)
        batches: Any = [(image, torch.zeros(8, dtype=torch.long))]
    else:
        batches = ((batch.image, batch.label) for batch in source.data.in_order(source.data.test, 64))
    parts = [(stream.logits(image), stream.mapped(network(prepare(image))), label) for image, label in batches]
    expected, logits, label = (torch.cat(column) for column in zip(*parts, strict=True))
    return expected, logits, label


def _row(source: Source, file: Path, prepare: Callable[[Tensor], Tensor], logits: Tensor, label: Tensor) -> Row:
    """The file's row of a table, with its size and its speed in ONNX Runtime on one thread."""
    assert source.data is not None
    network, kind = OnnxNetwork(file, threads=1), "int8" if file.name == INT8 else "ONNX"
    row = table_row(
        f"{source.name}, {kind}", [source.stream], logits, label, torch.device("cpu"), source.data.classes,
        predictor=lambda image: network(prepare(image)), latency=True,
    )  # fmt: skip
    return row._replace(megabytes=file.stat().st_size / 1e6)
