"""Opening a data set and reading its batches, in a line each."""

from pathlib import Path
from typing import Any

import pytest
import torch

from meco_timm.common.errors import UserError
from meco_timm.data.loading import Batch, DataSource, load_data
from meco_timm.data.views import Steps
from meco_timm.recipe.sections import Data

PLAIN: dict[str, Any] = {"image_size": 32, "crop_pct": 1.0, "workers": 0, "validation": 0.25}


def load(source: Path | str, seed: int = 0, **changes: Any) -> DataSource:
    return load_data(Data.model_validate(PLAIN | {"source": str(source)} | changes), seed)


def refused(source: Path | str, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(source, **changes)
    return str(caught.value)


def seen(data: DataSource, images: Any, stop: int, start: int = 0, batch: int = 4, seed: int = 5, **rank: int) -> Batch:
    """Training batches `start` to `stop` in one."""
    return Batch(*map(torch.cat, zip(*data.batches(images, Steps(batch, seed, start, stop, **rank)), strict=True)))
