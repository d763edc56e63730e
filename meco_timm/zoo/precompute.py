"""Precompute teacher outputs for every view of every training image, or let training add them to the store."""

import time

import torch
from accelerate import Accelerator

from meco_timm.common import Ticker, UserError, get_logger
from meco_timm.data import DataSource
from meco_timm.recipe import Recipe
from meco_timm.training import Interrupted, listen
from meco_timm.zoo.store import open_store
from meco_timm.zoo.zoo import Zoo

logger = get_logger(__name__)


def use_store(zoo: Zoo, recipe: Recipe, data: DataSource, seed: int, accelerator: Accelerator) -> None:
    """Connect the zoo to the recipe's store, if it names one: stored outputs are read, missing ones are added.

    If the store is full, the teachers are released. `seed`: seed of the student's batches.

    Raises:
        UserError: the store was made from something else.
    """
    if recipe.store.folder is None:
        return
    zoo.store = open_store(recipe, data, zoo.streams, zoo.fingerprints, seed, accelerator)
    missing, total = len(zoo.store.missing(_rows(data))), _views(recipe, data)
    if not missing:
        zoo.release()
    state = f"{missing} of {total} views are missing for some teacher; they are added during training"
    logger.info("store   %s: %s", recipe.store.folder, state if missing else "complete; no teacher is loaded")


def precompute_outputs(zoo: Zoo, recipe: Recipe, data: DataSource, seed: int, accelerator: Accelerator) -> None:
    """Compute all outputs that the zoo's store is missing; each process its share, into shards of its own.

    Raises:
        UserError: the store cannot be written.
        Interrupted: the process was asked to stop; the outputs computed so far are stored.
    """
    assert zoo.store is not None
    missing = zoo.store.missing(_rows(data))[accelerator.process_index :: accelerator.num_processes]
    size, began = recipe.loop.batch_size, time.monotonic()
    batches = data.chosen(data.train, missing[:, 0], missing[:, 1], size, seed)
    parts = -(-len(missing) // size)
    with Ticker("store", parts, 0) as ticker, listen() as stop:
        for done, batch in enumerate(batches, 1):
            zoo.precompute(batch)
            rate = done * size * accelerator.num_processes / (time.monotonic() - began)
            ticker.step(done, f"{rate:.0f} images/s, {len(zoo.names)} teacher(s)")
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
    views = _views(recipe, data)
    logger.info("store   %s: complete: %d views of %d teacher(s)", zoo.store.folder, views, len(zoo.names))


def _rows(data: DataSource) -> torch.Tensor:
    return torch.from_numpy(data.train.rows).long()


def _views(recipe: Recipe, data: DataSource) -> int:
    """Number of (view, image) pairs of all training images."""
    return len(data.train) * data.repeats * (recipe.store.views or 0)
