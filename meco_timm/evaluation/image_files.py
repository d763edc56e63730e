"""From image files to class names, with any timm network."""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from meco_timm.common import UserError, expand, read_class_names
from meco_timm.evaluation.file_batches import list_files, load_file_network, outputs_of_files
from meco_timm.networks import readable_names

NAMED = 20  # unreadable images in a message
Form = Literal["text", "csv", "json"]


class Prediction(NamedTuple):
    """The most probable classes of an image, best first, with their probabilities; `fault`: why it cannot be read."""

    file: str
    classes: list[str]
    probabilities: list[float]
    fault: str | None = None


def predict(
    model: str,
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    top: int = 3,
    classes: str | None = None,
    batch_size: int = 64,
) -> list[Prediction]:
    """Classify image files, or all images in folders, with the network's own timm transform.

    model: a timm name, `hf-hub:owner/name`, `local-dir:path` or the folder of a run. top: classes of each image.
    classes: a file with the network's class names, one a line, where its config has none.

    Raises:
        UserError: the network cannot be loaded or has no head, a path is not there, a folder holds no images, or the
            file of class names does not fit.
    """
    paths = [files] if isinstance(files, str | os.PathLike) else files
    return list(iter_predictions(model, [str(path) for path in paths], top, classes, batch_size))


def iter_predictions(
    model: str, paths: list[str], top: int = 3, classes: str | None = None, batch_size: int = 64
) -> Iterator[Prediction]:
    """Classify images as `predict` does, and yield each prediction once its batch is computed."""
    files, network = list_files(paths, "predict"), load_file_network(model, "predict")
    if not network.model.num_classes:
        raise UserError(f"predict: {model} has no head, so it gives no classes.")
    names = _class_names(network.model, classes)
    for file, p in outputs_of_files(network, lambda x: network.model(x).float().softmax(1), files, batch_size):
        if isinstance(p, str):
            yield Prediction(file, [], [], p)
            continue
        best = p.topk(min(top, len(names)))
        yield Prediction(file, [names[i] for i in best.indices.tolist()], best.values.tolist())


def _class_names(network: Any, file: str | None) -> list[str]:
    """Names from the file, else from the network's config; the classes' numbers where nothing names them."""
    if file is None:
        return readable_names(network) or [str(i) for i in range(network.num_classes)]
    names = read_class_names(Path(expand(file)), "--classes")
    if len(names) != network.num_classes:
        raise UserError(f"--classes: {file} has {len(names)} names, the network {network.num_classes} classes.")
    return names


def print_predictions(predictions: Iterable[Prediction], form: Form = "text") -> None:
    """Print a line for each image. csv: the columns file, class, share, class_2, share_2, …; json: an object a line,
    with file, classes and probabilities, or file and fault.

    Raises:
        UserError: at the end, if images could not be read; names them.
    """
    faults, writer, head = [], csv.writer(sys.stdout, lineterminator="\n"), False
    for one in predictions:
        best = list(zip(one.classes, one.probabilities, strict=True))
        if one.fault:
            faults.append(f"{one.file}: {one.fault}")
        if form == "json":
            fault = {"file": one.file, "fault": one.fault}
            print(json.dumps(fault if one.fault else {**one._asdict(), "fault": None}))
        elif one.fault:
            continue
        elif form == "csv":
            if not head:
                later = [f"{word}_{n}" for n in range(2, len(best) + 1) for word in ("class", "share")]
                writer.writerow(["file", "class", "share", *later])
                head = True
            writer.writerow([one.file, *(cell for name, p in best for cell in (name, f"{p:.6f}"))])
        else:
            print(f"{one.file}: {', '.join(f'{name} {p:.1%}' for name, p in best)}")
    if faults:
        raise UserError("\n".join([f"predict: {len(faults)} image(s) cannot be read:", *faults[:NAMED]]))
