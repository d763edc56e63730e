"""Randomness is a function of what it is for, not a state: a resumed run repeats the uninterrupted one bit for bit."""

import hashlib
import random


def derive(seed: int, *key: int | str) -> int:
    """A 63-bit number that is a pure function of `seed` and `key`, alike on every machine and in every process."""
    words = "/".join(map(str, (seed, *key))).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1


def reseed(seed: int, *key: int | str) -> None:
    """Put torch's, numpy's and Python's generators into the state that (seed, key) stands for."""
    import numpy as np  # not at the top: nothing imports torch before the recipe has been read
    import torch

    value = derive(seed, *key)
    torch.default_generator.manual_seed(value)  # torch.manual_seed costs 0.4 ms, too much for every image
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)
