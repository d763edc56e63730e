"""Seeds as functions of their purpose, so that a resumed run equals an uninterrupted one bit for bit."""

import hashlib
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


def derive(seed: int, *key: int | str) -> int:
    """A 63-bit seed: a pure function of `seed` and `key`, the same on every machine and in every process."""
    words = "/".join(map(str, (seed, *key))).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1


def draw(seed: int, step: int, teachers: int, weights: Sequence[float] | None = None) -> int:
    """Index of the teacher drawn for `step`, as MEAL does at every iteration; a pure function of its arguments.

    weights: each teacher is drawn in proportion to its own; by default all alike.
    """
    value = derive(seed, "teacher", step)
    if weights is None:
        return value % teachers
    ends = list(accumulate(weights))
    return bisect_right(ends, (value >> 10) / 2**53 * ends[-1])


def student_seed(seed: int) -> int:
    """Seed of the student's initial weights and of its training, in a run with this seed."""
    return derive(seed, "role=student")


def batch_seed(seed: int) -> int:
    """Seed of the student's batches and their views, which a store depends on, in a run with this seed."""
    return derive(student_seed(seed), "batches")


def reseed(seed: int, *key: int | str) -> None:
    """Seed the global generators of torch, numpy and Python with `derive(seed, *key)`."""
    import numpy as np  # not at the top: nothing imports torch before the recipe has been read
    import torch

    value = derive(seed, *key)
    torch.default_generator.manual_seed(value)  # torch.manual_seed costs 0.4 ms, too much for every image
    for device in (torch.cuda, torch.xpu):
        if device.is_initialized():
            device.manual_seed(value)
    if torch.backends.mps.is_available() and not torch.mps._is_in_bad_fork():  # not in a loader's process
        torch.mps.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)
