"""Measure how long a network takes for one call: median and 95th percentile."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Latency(NamedTuple):
    """Of one call, in milliseconds."""

    median: float
    p95: float


@torch.inference_mode()
def measure_latency(
    network: Callable[[Tensor], Tensor], image: Tensor, seconds: float = 0.5, least: int = 10
) -> Latency:
    """Time calls with this batch for about `seconds`, and at least `least` calls, after three of warm-up."""
    for _ in range(3):
        _wait(network(image))
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        began = time.perf_counter()
        _wait(network(image))
        times.append(1000 * (time.perf_counter() - began))
    return Latency(float(np.median(times)), float(np.percentile(times, 95)))


def _wait(output: Tensor) -> None:
    """Wait until the device has computed it."""
    if output.is_cuda:
        torch.cuda.synchronize(output.device)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
