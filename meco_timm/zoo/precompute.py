"""5 · Filling the store: all that the teachers say of all views, ahead of a training or along with it."""

import time

import torch
from accelerate import Accelerator

from meco_timm.common import Ticker, UserError, say
from meco_timm.data import DataSource
from meco_timm.recipe import Recipe
from meco_timm.training import Interrupted, listen
from meco_timm.zoo.store import open_store
from meco_timm.zoo.zoo import Zoo


def use_store(zoo: Zoo, recipe: Recipe, data: DataSource, seed: int, accelerator: Accelerator) -> None:
    """Let the zoo read from the recipe's store, if it names one, and write into it what is not there.

    Where all is there the teachers are let go. `seed`: of the student's batches.

    Raises:
        UserError: the store is of something else.
    """
    if recipe.store.folder is None:
        return
    zoo.store = open_store(recipe, data, zoo.streams, zoo.fingerprints, seed, accelerator)
    lacking, all_views = len(zoo.store.missing(_rows(data))), _views(recipe, data)
    if not lacking:
        zoo.release()
    if accelerator.is_main_process:
        told = f"{lacking} of {all_views} views are not there for every teacher, and are added when they are met"
        say(f"store   {recipe.store.folder}: {told if lacking else 'all is there; no teacher is needed'}")


def fill(zoo: Zoo, recipe: Recipe, data: DataSource, seed: int, accelerator: Accelerator) -> None:
    """Compute what the zoo's store lacks; each process its share, into shards of its own.

    Raises:
        UserError: the disk takes no more.
        Interrupted: asked to stop; what has been computed is kept.
    """
    assert zoo.store is not None
    missing = zoo.store.missing(_rows(data))[accelerator.process_index :: accelerator.num_processes]
    size, began = recipe.loop.batch_size, time.monotonic()
    batches = data.chosen(data.train, missing[:, 0], missing[:, 1], size, seed)
    parts = -(-len(missing) // size)
    with Ticker("store", parts, 0, accelerator.is_main_process) as ticker, listen() as stop:
        for done, batch in enumerate(batches, 1):
            zoo.fill(batch)
            rate = done * size * accelerator.num_processes / (time.monotonic() - began)
            ticker.step(done, f"{rate:.0f} images/s, {len(zoo.names)} teacher(s)")
            if stop.seen or zoo.store.fault:
                break
    zoo.store.flush()
    if zoo.store.fault:
        raise UserError(
            f"store.folder: {zoo.store.folder} cannot be written: {zoo.store.fault}. Make room or mend it; the same "
            "command goes on with what is missing."
        )
    if stop.seen:
        raise Interrupted("store: stopped; what has been computed is kept, the same command goes on.")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        say(f"store   {zoo.store.folder}: {_views(recipe, data)} views of {len(zoo.names)} teacher(s) are there")


def _rows(data: DataSource) -> torch.Tensor:
    return torch.from_numpy(data.train.rows).long()


def _views(recipe: Recipe, data: DataSource) -> int:
    """Views of all training images together."""
    return len(data.train) * data.repeats * (recipe.store.views or 0)
