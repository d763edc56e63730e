"""Find architectures that fit a budget of time, parameters or multiply-adds on this machine."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from accelerate import PartialState

from meco_timm.common import RESULT, UserError, get_logger, located
from meco_timm.evaluation import measure_latency, styled_columns
from meco_timm.networks import LOGITS_ONLY, Stream, student_stream
from meco_timm.recipe import Network

logger = get_logger(__name__)
result = get_logger(RESULT)

UNITS = {"ms": 1.0, "M": 1e6, "MMACS": 1e6, "GMACS": 1e9}
# Families that are made to be small or fast, and the small members of others.
PATTERNS = (
    "mobilenetv[1234]*", "mobilenet_edgetpu*", "efficientnet_b[0-2]", "efficientnet_lite*", "tf_efficientnet_lite*",
    "lcnet*", "tinynet*", "mnasnet*", "ghostnet*", "resnet[12]*", "resnet34", "regnet[xy]_00*", "repvit*", "edgenext*",
    "mobileone*", "starnet*", "shvit*", "fastvit_[ts]*", "efficientvit_[bm]*", "levit*", "vit_tiny*", "deit_tiny*",
    "convnext_atto*", "convnext_femto*", "convnext_pico*", "mobilevit*", "rexnet_*",
)  # fmt: skip
FASTEST = 2e11  # multiply-adds per second and thread that no CPU reaches: larger networks are not timed


class Budget(NamedTuple):
    """The most that a network may cost: milliseconds for one image, parameters, or multiply-adds."""

    most: float
    unit: str


class Candidate(NamedTuple):
    """An architecture. latency_ms: of one image. top1: on ImageNet, in per cent, of its best weights."""

    name: str
    parameters: int
    multiply_adds: int
    latency_ms: float | None = None
    top1: float | None = None


def parse_budget(text: str) -> Budget:
    """`5ms`, `4M` (parameters), `300MMACs` or `1GMACs`.

    Raises:
        UserError: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|M|MMACs|GMACs)\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise UserError(f"--budget: {text!r} is none of 5ms, 4M (parameters), 300MMACs and 1GMACs.")
    unit = found[2] if found[2] in ("ms", "M") else {"MS": "ms"}.get(found[2].upper(), found[2].upper())
    return Budget(float(found[1]) * UNITS[unit], unit)


def find_students(
    budget: Budget, size: int, patterns: Sequence[str] = PATTERNS, results: str | None = None, top: int = 20
) -> list[Candidate]:
    """The architectures of timm within the budget at this input size, at most `top` of them.

    The order is that of ImageNet top-1, best first, if `results` names timm's table (results/results-imagenet.csv of
    its repository); else that of multiply-adds, most first.

    Raises:
        UserError: no architecture matches, none fits, or the table cannot be read.
    """
    names = sorted({name for pattern in patterns for name in timm.list_models(pattern)})
    if not names:
        raise UserError(f"--pattern: no architecture of timm matches {' '.join(patterns)}.")
    known = read_accuracies(results) if results else {}
    found = [c._replace(top1=known.get(c.name)) for c in _costs(names, budget, size)]
    found.sort(key=lambda c: (-(c.top1 or 0), -c.multiply_adds))
    if budget.unit != "ms":
        found = found[:top]
    timed = [c._replace(latency_ms=_latency(c.name, size)) for c in found]
    fitting = [c for c in timed if budget.unit != "ms" or (c.latency_ms or 0) <= budget.most]
    if not fitting:
        raise UserError(f"--budget: none of {len(names)} architectures fits. Raise it, or lower --image-size.")
    return fitting[:top]


def _costs(names: Sequence[str], budget: Budget, size: int) -> Iterator[Candidate]:
    """What is within the budget, as far as it can be said without measuring time."""
    for number, name in enumerate(names, 1):
        try:
            stream = _stream(name, size, weightless=True)
            candidate = Candidate(name, stream.parameter_count, stream.multiply_adds())
        except UserError:  # it cannot take this size
            continue
        if number % 20 == 0:
            logger.info("%d of %d architectures", number, len(names))
        limit = {
            "ms": candidate.multiply_adds <= budget.most / 1000 * FASTEST * torch.get_num_threads(),
            "M": candidate.parameters <= budget.most,
        }
        if limit.get(budget.unit, candidate.multiply_adds <= budget.most):
            yield candidate


def _stream(name: str, size: int, weightless: bool) -> Stream:
    return student_stream(Network(model=name), LOGITS_ONLY, 1000, size, weightless=weightless)


def _latency(name: str, size: int) -> float:
    """Milliseconds of one image on this device, the median."""
    device = PartialState().device
    stream = _stream(name, size, weightless=False).to(device).eval()
    return measure_latency(stream.logits, torch.zeros(1, 3, size, size, device=device), seconds=0.2).median


def read_accuracies(path: str) -> dict[str, float]:
    """Architecture → top-1 of its best weights, from timm's table: a CSV file with columns `model` and `top1`.

    Raises:
        UserError: it cannot be read.
    """
    best: dict[str, float] = {}
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                name = row["model"].partition(".")[0]
                best[name] = max(best.get(name, 0.0), float(row["top1"]))
    except (OSError, KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise UserError(
            f"--results: {located(path)} is not timm's table, with columns model and top1: {error}"
        ) from None
    return best


def print_students(found: Sequence[Candidate], size: int) -> None:
    """Print the table, and the line of a recipe that takes the first."""
    rows: dict[str, list[str]] = {
        "": [c.name for c in found],
        "ImageNet top-1 %": ["" if c.top1 is None else f"{c.top1:.2f}" for c in found],
        "ms": [f"{c.latency_ms:.3g}" for c in found],
        "params M": [f"{c.parameters / 1e6:.2f}" for c in found],
        "MACs M": [f"{c.multiply_adds / 1e6:.1f}" for c in found],
    }
    columns = [[head, *cells] for head, cells in rows.items() if any(cells)]
    threads = torch.get_num_threads()
    where = f"{PartialState().device.type}, {threads} thread{'s' if threads > 1 else ''}"
    result.info(styled_columns(columns, f"\nArchitectures at {size} px; ms of one image in PyTorch, {where}"))
    result.info("\nIn a recipe:\n  student: %s\n  data: {image_size: %d}", found[0].name, size)
