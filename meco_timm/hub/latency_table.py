"""Measure the latency of networks in PyTorch and ONNX Runtime, in float32 and eight bits."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from meco_timm.common import RESULT, UserError, get_logger, short_name
from meco_timm.evaluation import Latency, OnnxNetwork, measure_latency, quantise, styled_columns, torch_threads
from meco_timm.hub.exporting import FLOAT32, INT8
from meco_timm.networks import Stream, bare_stream, write_onnx
from meco_timm.recipe import Network
from meco_timm.training import RunFolder

logger = get_logger(__name__)
BATCHES = (1, 32)


class Timed(NamedTuple):
    """The latency of a network in a runtime, for a batch of so many images, on so many threads."""

    network: str
    runtime: str
    batch: int
    threads: int
    latency: Latency


def measure_networks(networks: Sequence[str], size: int | None = None, seconds: float = 0.5) -> list[Timed]:
    """Time every network on one thread and on all; print the table.

    networks: finished runs, whose students are meant, or timm names, `hf-hub:` or `local-dir:`. size: input size in
    pixels; by default each network's own. Ranges of eight bits are set by random images, which changes no time.

    Raises:
        UserError: a network cannot be made.
    """
    counts = sorted({1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1})
    if find_spec("onnxruntime") is None:
        logger.warning("only PyTorch is measured; for ONNX Runtime: pip install onnx onnxscript onnxruntime")
    found = [timed for network in networks for timed in _measure(network, size, counts, seconds)]
    columns = {
        "": [t.network for t in found],
        "runtime": [t.runtime for t in found],
        "batch": [str(t.batch) for t in found],
        "threads": [str(t.threads) for t in found],
        "median ms": [f"{t.latency.median:.3g}" for t in found],
        "95 % ms": [f"{t.latency.p95:.3g}" for t in found],
        "images/s": [f"{1000 * t.batch / t.latency.median:,.0f}" for t in found],
    }
    title = "\nLatency of a batch on the CPU: median and 95th percentile"
    get_logger(RESULT).info(styled_columns([[head, *cells] for head, cells in columns.items()], title))
    return found


def _measure(network: str, size: int | None, counts: Sequence[int], seconds: float) -> Iterator[Timed]:
    folder = RunFolder(Path(network))
    name, model = (folder.path.name, f"local-dir:{folder.student.resolve()}") if folder.table.exists() else (
        short_name(network), network
    )  # fmt: skip
    stream = bare_stream(Network(model=model), size)
    with tempfile.TemporaryDirectory() as scratch:
        for threads in counts:
            for runtime, call in _runtimes(stream, Path(scratch), threads).items():
                for batch in BATCHES:
                    image = torch.rand(batch, stream.mean.shape[1], stream.size, stream.size)
                    with torch_threads(threads):
                        yield Timed(name, runtime, batch, threads, measure_latency(call, image, seconds))


def _runtimes(stream: Stream, scratch: Path, threads: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """What computes the logits of normalised images, by runtime; the files are written once."""
    calls: dict[str, Callable[[Tensor], Tensor]] = {"PyTorch": stream.model}
    if find_spec("onnxruntime") is None:
        return calls
    exact, eight = scratch / FLOAT32, scratch / INT8
    try:
        if not exact.exists():
            write_onnx(stream, exact, None)
            noise = torch.rand(4, 8, stream.mean.shape[1], stream.size, stream.size)
            quantise(exact, eight, noise)
        calls["ONNX Runtime"] = OnnxNetwork(exact, threads)
        calls["ONNX Runtime, int8"] = OnnxNetwork(eight, threads)
    except UserError as error:
        logger.warning("%s", error)
    return calls
