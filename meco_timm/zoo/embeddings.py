"""Mean and deviation of each teacher's embedding over some training images, by which it is standardised."""

from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from meco_timm.common import Status
from meco_timm.data import DataSource
from meco_timm.zoo.zoo import Zoo

FILE = "embeddings.safetensors"  # in the run folder, so that a resumed run has the same
IMAGES = 1024


def embedding_moments(
    zoo: Zoo, data: DataSource, batch_size: int, seed: int, folder: Path, accelerator: Accelerator
) -> dict[int, tuple[Tensor, Tensor]]:
    """(mean, deviation) of each dimension by the teacher's number, as kept in `folder`; measured if it is not there.

    On the first view of at most `IMAGES` training images, evenly spread; all processes must call it.
    """
    numbers = [i for i, length in enumerate(zoo.embedding_sizes) if length is not None]
    if not numbers:
        return {}
    file = folder / FILE
    if accelerator.is_main_process and not file.exists():
        with Status("measuring the teachers' embeddings"):
            save_file(_measured(zoo, data, batch_size, seed), file)
    accelerator.wait_for_everyone()
    kept = load_file(file)
    return {i: (kept[f"{i}.mean"], kept[f"{i}.deviation"]) for i in numbers}


def _measured(zoo: Zoo, data: DataSource, batch_size: int, seed: int) -> dict[str, Tensor]:
    rows = torch.from_numpy(data.train.subsample(IMAGES).rows).long()
    parts: dict[int, list[Tensor]] = {}
    for batch in data.chosen(data.train, torch.zeros_like(rows), rows, batch_size, seed):
        for i, embedding in zoo.embeddings(batch).items():
            parts.setdefault(i, []).append(embedding.double().cpu())
    found: dict[str, Tensor] = {}
    for i, part in parts.items():
        deviation, mean = torch.std_mean(torch.cat(part), 0, correction=0)
        found |= {f"{i}.mean": mean.float(), f"{i}.deviation": deviation.float()}
    return found
