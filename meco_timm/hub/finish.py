"""The files of a finished run: predictions, the student with its card, the table with the facts of the run."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate import Accelerator

from meco_timm.common import is_object, public, source_commit
from meco_timm.data import DataSource
from meco_timm.evaluation import (
    BackboneRow,
    Evaluation,
    Pictures,
    make_predictions,
    save_pictures,
    save_predictions,
)
from meco_timm.hub.card import card_files
from meco_timm.networks import Combination, Stream, export, is_foreign
from meco_timm.recipe import Data
from meco_timm.reporting import PICTURES, Results, read_keys, read_metrics
from meco_timm.training import RunFolder

LIBRARIES = ("torch", "timm", "accelerate", "datasets", "safetensors")


def finish_run(
    folder: RunFolder,
    settings: Data,
    data: DataSource,
    student: Stream,
    evaluated: Evaluation,
    agreement: dict[str, np.ndarray],
    about: dict[str, Any],
) -> None:
    """Write the predictions, the student with its model card, and the table last: it marks the run as finished.

    agreement: similarity of blocks by pair of networks (`block_agreement`). about: `describe_run`.
    """
    predictions = make_predictions(evaluated, data, agreement, about["choices"], about["weights"])
    save_predictions(predictions, folder.predictions)
    metrics = read_metrics(folder.path / "metrics.jsonl")
    results = Results(folder, read_keys(folder), evaluated.rows, about, metrics, predictions)
    export(student, folder.student, data.classes, settings, card_files(results, data.classes))
    folder.finish(evaluated.rows, about)


def finish_backbone_run(
    folder: RunFolder,
    settings: Data,
    student: Stream,
    rows: Sequence[BackboneRow],
    pictures: Pictures | None,
    about: dict[str, Any],
) -> None:
    """Write the pictures, the student with its model card, and the table last: it marks the run as finished."""
    if pictures is not None:
        save_pictures(pictures, folder.path / PICTURES)
    metrics = read_metrics(folder.path / "metrics.jsonl")
    results = Results(folder, read_keys(folder), list(rows), about, metrics, None)
    export(student, folder.student, [], settings, card_files(results, []))
    folder.finish(rows, about)


def describe_run(
    folder: RunFolder,
    data: DataSource,
    teachers: dict[str, Stream],
    combination: Combination,
    measured: dict[str, Any] | None,
    steps: int,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Facts of the run: images, origin and licence of weights, how teachers are combined, steps, device, versions.

    measured: of the teachers on the validation split, as in combination.json.
    """
    recipe = read_keys(folder)
    loop, source = recipe["loop"], recipe["data"]["source"]
    splits = {"train": data.train, "labelled": data.labelled, "validation": data.validation, "test": data.test}
    networks = zip(recipe["teachers"], teachers.items(), strict=True)
    return {
        "images": {name: len(images) for name, images in splits.items()},
        "data_notes": data.notes,
        "local_data": Path(source).is_dir() or is_object(source),
        "origins": {name: describe_origin(keys, stream.model.pretrained_cfg) for keys, (name, stream) in networks},
        "student_origin": describe_origin(recipe["student"], {}),
        "backbone_origins": {
            keys["model"]: describe_origin(keys, {})
            for keys in (recipe["student"].get("backbone") or {"teachers": []})["teachers"]
        },
        "weights": combination.weights,
        "choices": measured["choices"] if measured else [],
        "notes": [*measured["notes"], *measured.get("advice", {}).get("sentences", [])] if measured else [],
        "steps": steps,
        "batch_size": loop["batch_size"] * loop["accumulation"] * accelerator.num_processes,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "hardware": describe_hardware(accelerator),
        "precision": accelerator.mixed_precision,
        "versions": {
            "meco_timm": own_version(),
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    }


def describe_hardware(accelerator: Accelerator) -> str:
    """`2 × NVIDIA A100`, or `x86_64, 4 threads`."""
    if accelerator.device.type == "cuda":
        return f"{accelerator.num_processes} × {torch.cuda.get_device_name()}"
    return f"{platform.machine()}, {accelerator.num_processes * torch.get_num_threads()} thread(s)"


def own_version() -> str:
    """The commit of this program; of an installed one its version."""
    if (commit := source_commit()) != "unknown":
        return f"commit {commit}"
    try:
        return version("meco-timm")
    except PackageNotFoundError:
        return "unknown"


def describe_origin(network: dict[str, Any], config: dict[str, Any]) -> dict[str, str | None]:
    """Origin of a network's initial weights: `start` as text, repository on the `hub`, `licence`; None if unknown.

    network: the recipe's keys of a teacher or the student. config: timm's pretrained config of a network whose weights
    the run does not change.
    """
    model, trained = network["model"], network.get("train", True)
    if trained and not (network["weights"] or "." in model or ":" in model):
        return {"start": "random weights", "hub": None, "licence": None}
    licence, hub = None if trained else config.get("license"), None
    if network["weights"] or model.startswith("local-dir:"):
        start = "a local file"
    elif is_object(model):
        start = "a network of the Python program"
    elif is_foreign(model):
        start = public(model)
    elif ":" in model:
        start = hub = model.partition(":")[2].partition("@")[0]
    else:
        tag = timm.get_pretrained_cfg(model)
        hub, licence = (tag.hf_hub_id, tag.license) if tag else (None, None)
        start = hub or model
    return {"start": start, "hub": hub, "licence": licence}
