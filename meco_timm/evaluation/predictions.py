"""Predictions of all networks on the test split, as a small file: reports are drawn from it without the data.

For every image it has the predicted class, its probability and that of the label; full distributions only for the few
images that the report shows.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from meco_timm.common import UserError, unfinished
from meco_timm.data import DataSource
from meco_timm.evaluation.ensemble import all_but_one, vote
from meco_timm.evaluation.table import Evaluation

EXAMPLES = 6  # images with full distributions
MISTAKES = 12  # images that the student gets wrong


class Predictions(NamedTuple):
    """N test images, M networks (as the table's rows), K classes, I example images.

    label: N. predicted (class), confidence (its probability), of_label (the label's probability): M×N.
    examples: I rows of the test split; images: I×3×H×W uint8; probabilities: I×M×K.
    agreement: "student/TEACHER" and "student alone/TEACHER" → similarity of their blocks, S×T (agreement.py).
    counts: S×T, how often each of T teachers is in the best ensemble of size 1 to S, as chosen on the validation split.
    ensembles: "without/TEACHER" and "size/NUMBER" → class predicted by the true ensemble without this teacher, and by
    the best of this size, N.
    mistakes: J rows of which the student is wrongly surest; mistake_images: J×3×H×W uint8.
    """

    classes: list[str]
    networks: list[str]
    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    of_label: np.ndarray
    examples: np.ndarray
    images: np.ndarray
    probabilities: np.ndarray
    agreement: dict[str, np.ndarray]
    counts: np.ndarray = np.zeros((0, 0), np.float32)
    ensembles: dict[str, np.ndarray] = {}  # noqa: RUF012  never changed
    mistakes: np.ndarray = np.zeros(0, np.int32)
    mistake_images: np.ndarray = np.zeros((0, 3, 1, 1), np.uint8)

    def predicted_by(self, name: str) -> np.ndarray:
        """The classes that this network predicts, N."""
        return self.predicted[self.networks.index(name)]

    def right(self, name: str) -> np.ndarray:
        """Whether this network's predictions are right, N booleans."""
        return self.predicted_by(name) == self.label


def make_predictions(
    evaluation: Evaluation,
    data: DataSource,
    agreement: dict[str, np.ndarray],
    counts: Sequence[Sequence[float]] = (),
    weights: Mapping[str, float] | None = None,
) -> Predictions:
    """Summarise the logits; the examples are the images with the lowest probability of the label by the teachers.

    counts: of the teachers with a row, as in `Predictions`. weights: of teachers in the true ensemble; default: equal.
    """
    logits, label = evaluation.logits, evaluation.label
    summaries = [_summarise(z, label) for z in logits.values()]
    predicted, confidence, of_label = (np.stack(column) for column in zip(*summaries, strict=True))
    teachers = {name: z for name, z in logits.items() if name not in ("true ensemble", "student alone", "student")}
    members = [list(logits).index(name) for name in teachers]
    examples = choose_examples(of_label[members or slice(None)].mean(0), label.numpy())
    student = list(logits).index("student")
    wrong = choose_mistakes(predicted[student], confidence[student], label.numpy())
    return Predictions(
        classes=data.classes,
        networks=list(logits),
        label=label.numpy().astype(np.int32),
        predicted=predicted,
        confidence=confidence,
        of_label=of_label,
        examples=examples.astype(np.int32),
        images=_images(data, examples),
        probabilities=np.stack([z[examples].double().softmax(1).float().numpy() for z in logits.values()], axis=1),
        agreement=agreement,
        counts=np.array(counts, np.float32).reshape(len(counts), len(teachers)),
        ensembles=_predict_ensembles(teachers, label, counts, weights or {}),
        mistakes=wrong.astype(np.int32),
        mistake_images=_images(data, wrong),
    )


def _images(data: DataSource, rows: np.ndarray) -> np.ndarray:
    """Test images, n×3×H×W uint8; all were read for the table, so none is an error."""
    views: list[Any] = data.test.__getitems__(rows.tolist()) if len(rows) else []
    return np.stack([image.numpy() for image, *_ in views]) if views else np.zeros((0, 3, 1, 1), np.uint8)


def _predict_ensembles(
    teachers: dict[str, Tensor], label: Tensor, counts: Sequence[Sequence[float]], weights: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """`Predictions.ensembles`, from the teachers' logits."""
    whole = torch.tensor([weights.get(name, 1.0) for name in teachers])
    rows = {f"without/{name}": row for name, row in zip(teachers, all_but_one(whole), strict=True) if row.sum() > 0}
    rows |= {f"size/{size}": torch.tensor(row) for size, row in enumerate(counts, 1)}
    if not rows:
        return {}
    votes = vote([z.numpy() for z in teachers.values()], label, torch.stack(list(rows.values())))
    return dict(zip(rows, votes.predicted.numpy(), strict=True))


def _summarise(logits: Tensor, label: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits N×K, labels N → predicted class, its probability, that of the label, N each; in parts to save memory."""
    parts = []
    for z, y in zip(logits.split(4096), label.split(4096), strict=True):
        p = z.double().softmax(1)
        best = p.max(1)
        parts.append((best.indices.int(), best.values.float(), p.gather(1, y[:, None])[:, 0].float()))
    predicted, confidence, of_label = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return predicted, confidence, of_label


def choose_examples(of_label: np.ndarray, label: np.ndarray, count: int = EXAMPLES) -> np.ndarray:
    """`count` rows with the lowest probability of the label: first one per class, then the rest. Both arguments: N."""
    order = np.argsort(of_label, kind="stable")
    first = np.unique(label[order], return_index=True)[1]  # where in `order` each class comes first
    rest = np.setdiff1d(np.arange(len(order)), first)
    return order[np.concatenate([np.sort(first), rest])][:count]


def choose_mistakes(
    predicted: np.ndarray, confidence: np.ndarray, label: np.ndarray, count: int = MISTAKES
) -> np.ndarray:
    """`count` rows with a wrong prediction, the surest first. All arguments: N."""
    order = np.argsort(-confidence, kind="stable")
    return order[predicted[order] != label[order]][:count]


def save_predictions(predictions: Predictions, path: Path) -> None:
    """Write the file atomically (rename)."""
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, list[str]] = {}
    for field, value in predictions._asdict().items():
        if isinstance(value, dict):
            arrays |= {f"{field}/{name}": array for name, array in value.items()}
        elif isinstance(value, list):
            names[field] = value
        else:
            arrays[field] = value
    beside = unfinished(path)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(arrays, beside, {"names": json.dumps(names)})
    beside.replace(path)


def load_predictions(path: Path) -> Predictions | None:
    """Read the file; None if there is none.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return None
    fields: dict[str, Any] = {"agreement": {}, "ensembles": {}}
    try:
        with safe_open(path, "numpy") as file:
            fields |= json.loads(file.metadata()["names"])
            for key in file.keys():  # noqa: SIM118  not a dict
                field, slash, name = key.partition("/")
                (fields[field] if slash else fields)[name or field] = file.get_tensor(key)
        return Predictions(**fields)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it to get the report without its images.") from None
