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

from meco_timm.common import UserError
from meco_timm.data import DataSource
from meco_timm.evaluation.ensemble import all_but_one, vote
from meco_timm.evaluation.table import Evaluation

SHOWN = 6  # images with full distributions


class Predictions(NamedTuple):
    """N test images, M networks (as the table's rows), K classes, I images to show.

    label: N. predicted (class), confidence (its probability), of_label (the label's probability): M×N.
    shown: I rows of the test split; images: I×3×H×W uint8; shares: I×M×K probabilities.
    agreement: "student/TEACHER" and "student alone/TEACHER" → similarity of their blocks, S×T (agreement.py).
    counts: S×T, how often each of T teachers is in the best ensemble of size 1 to S, as chosen on the validation split.
    ensembles: "without/TEACHER" and "size/NUMBER" → class predicted by the true ensemble without this teacher, and by
    the best of this size, N. Both are empty of runs that ended before they were stored.
    """

    classes: list[str]
    networks: list[str]
    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    of_label: np.ndarray
    shown: np.ndarray
    images: np.ndarray
    shares: np.ndarray
    agreement: dict[str, np.ndarray]
    counts: np.ndarray = np.zeros((0, 0), np.float32)
    ensembles: dict[str, np.ndarray] = {}  # noqa: RUF012  never changed

    def right(self, name: str) -> np.ndarray:
        """Whether this network's predictions are right, N booleans."""
        return self.predicted[self.networks.index(name)] == self.label


def make_predictions(
    evaluation: Evaluation,
    data: DataSource,
    agreement: dict[str, np.ndarray],
    counts: Sequence[Sequence[float]] = (),
    weights: Mapping[str, float] | None = None,
) -> Predictions:
    """Summarise the logits; the images shown are those with the lowest probability of the label by the teachers.

    counts: of the teachers with a row, as in `Predictions`. weights: of teachers in the true ensemble; default: equal.
    """
    logits, label = evaluation.logits, evaluation.label
    seen = [_summary(z, label) for z in logits.values()]
    predicted, confidence, of_label = (np.stack(column) for column in zip(*seen, strict=True))
    named = [name for name in logits if name not in ("true ensemble", "student alone", "student")]
    teachers = [list(logits).index(name) for name in named]
    shown = choose(of_label[teachers or slice(None)].mean(0), label.numpy())
    views: list[Any] = data.test.__getitems__(shown.tolist())  # all were read for the table, so none is an error
    return Predictions(
        classes=data.classes,
        networks=list(logits),
        label=label.numpy().astype(np.int32),
        predicted=predicted,
        confidence=confidence,
        of_label=of_label,
        shown=shown.astype(np.int32),
        images=np.stack([image.numpy() for image, *_ in views]),
        shares=np.stack([z[shown].double().softmax(1).float().numpy() for z in logits.values()], axis=1),
        agreement=agreement,
        counts=np.array(counts, np.float32).reshape(len(counts), len(named)),
        ensembles=_ensembles({name: logits[name] for name in named}, label, counts, weights or {}),
    )


def _ensembles(
    logits: dict[str, Tensor], label: Tensor, counts: Sequence[Sequence[float]], weights: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """`Predictions.ensembles`, from the teachers' logits."""
    whole = torch.tensor([weights.get(name, 1.0) for name in logits])
    rows = {f"without/{name}": row for name, row in zip(logits, all_but_one(whole), strict=True) if row.sum() > 0}
    rows |= {f"size/{size}": torch.tensor(row) for size, row in enumerate(counts, 1)}
    if not rows:
        return {}
    votes = vote([z.numpy() for z in logits.values()], label, torch.stack(list(rows.values())))
    return dict(zip(rows, votes.predicted.numpy(), strict=True))


def _summary(logits: Tensor, label: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits N×K, labels N → predicted class, its probability, that of the label, N each; in parts to save memory."""
    parts = []
    for z, y in zip(logits.split(4096), label.split(4096), strict=True):
        p = z.double().softmax(1)
        best = p.max(1)
        parts.append((best.indices.int(), best.values.float(), p.gather(1, y[:, None])[:, 0].float()))
    predicted, confidence, of_label = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return predicted, confidence, of_label


def choose(of_label: np.ndarray, label: np.ndarray, count: int = SHOWN) -> np.ndarray:
    """`count` rows with the lowest probability of the label: first one per class, then the rest. Both arguments: N."""
    order = np.argsort(of_label, kind="stable")
    first = np.unique(label[order], return_index=True)[1]  # where in `order` each class comes first
    rest = np.setdiff1d(np.arange(len(order)), first)
    return order[np.concatenate([np.sort(first), rest])][:count]


def save_predictions(predictions: Predictions, path: Path) -> None:
    """Write the file atomically (rename)."""
    arrays = {name: value for name, value in predictions._asdict().items() if isinstance(value, np.ndarray)}
    arrays |= {f"agreement/{pair}": value for pair, value in predictions.agreement.items()}
    arrays |= {f"ensembles/{name}": value for name, value in predictions.ensembles.items()}
    names = json.dumps({"classes": predictions.classes, "networks": predictions.networks})
    beside = path.with_name(path.name + ".tmp")
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, beside, {"names": names})
    beside.replace(path)


def load_predictions(path: Path) -> Predictions | None:
    """Read the file; None if there is none.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            names = json.loads(file.metadata()["names"])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
        agreement, ensembles = (_taken_out(arrays, prefix) for prefix in ("agreement/", "ensembles/"))
        return Predictions(**names, **arrays, agreement=agreement, ensembles=ensembles)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it to get the report without its images.") from None


def _taken_out(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose name has this prefix, by the rest of it; they are removed from `arrays`."""
    return {key.removeprefix(prefix): arrays.pop(key) for key in list(arrays) if key.startswith(prefix)}
