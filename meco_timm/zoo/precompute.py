"""Precompute teacher outputs for every view of every training image, or let training add them to the store."""

import time
from pathlib import Path

import torch
from accelerate import Accelerator

from meco_timm.common import Interrupted, ProgressBar, UserError, get_logger, listen
from meco_timm.data import DataSource
from meco_timm.recipe import Data
from meco_timm.recipe import Store as StoreSettings
from meco_timm.zoo.store import describe, layout, open_store
from meco_timm.zoo.zoo import Zoo

logger = get_logger(__name__)


def use_store(
    zoo: Zoo, store: StoreSettings, settings: Data, data: DataSource, seed: int, accelerator: Accelerator
) -> None:
    """Connect the zoo to the store, if it has a folder: stored outputs are read, missing ones are added.

    If the store is full, the teachers are released. settings: the recipe's section `data`. seed: of the student's
    batches.

    Raises:
        UserError: the store was made from something else.
    """
    if store.folder is None:
        return
    made_from = describe(store, settings, data, zoo.streams, zoo.fingerprints, zoo.temperature, seed)
    layouts = {name: layout(store, zoo.temperature, s, len(data.classes)) for name, s in zoo.streams.items()}
    zoo.store = open_store(Path(store.folder), made_from, layouts, data, accelerator)
    missing = len(zoo.store.missing(_rows(data)))
    if not missing:
        zoo.release()
    state = f"{missing} of {_views(data)} views are missing for some teacher; they are added during training"
    logger.info("store   %s: %s", store.folder, state if missing else "complete; no teacher is loaded")


def precompute_outputs(zoo: Zoo, data: DataSource, batch_size: int, seed: int, accelerator: Accelerator) -> None:
    """Compute all outputs that the zoo's store is missing; each process its share, into shards of its own.

    Raises:
        UserError: the store cannot be written.
        Interrupted: the process was asked to stop; the outputs computed so far are stored.
    """
    assert zoo.store is not None
    missing = zoo.store.missing(_rows(data))[accelerator.process_index :: accelerator.num_processes]
    began = time.monotonic()
    batches = data.chosen(data.train, missing[:, 0], missing[:, 1], batch_size, seed)
    with ProgressBar("store", -(-len(missing) // batch_size), 0) as bar, listen() as stop:
        for done, batch in enumerate(batches, 1):
            zoo.precompute(batch)
            rate = done * batch_size * accelerator.num_processes / (time.monotonic() - began)
            bar.step(done, [f"{rate:.0f} images/s", f"{len(zoo.names)} teacher(s)"])
            if stop.seen or zoo.store.write_error:
                break
    zoo.store.flush()
    if zoo.store.write_error:
        raise UserError(
            f"store.folder: {zoo.store.folder} cannot be written: {zoo.store.write_error}. Free disk space or "
            "fix the folder's permissions, then repeat the command: it continues with the missing outputs."
        )
    if stop.seen:
        raise Interrupted("store: stopped. The outputs computed so far are stored; repeat the command to continue.")
    accelerator.wait_for_everyone()
    logger.info("store   %s: complete: %d views of %d teacher(s)", zoo.store.folder, _views(data), len(zoo.names))


def _rows(data: DataSource) -> torch.Tensor:
    return torch.from_numpy(data.train.rows).long()


def _views(data: DataSource) -> int:
    """Number of (view, image) pairs of all training images."""
    return len(data.train) * data.repeats * (data.train.views or 0)
