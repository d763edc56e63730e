"""One process of a launch that trains by the task on its part of every batch."""

import os

import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2

from helpers.timm_loop import CONFIG, batches_of, network, timm_loop
from meco_timm.task import EnsembleDistillation


def main(folder: str, out: str, rank: int = 0, world: int = 1) -> None:
    torch.set_num_threads(1)
    teachers = [network("test_vit"), network("test_resnet", 2)]
    sections = {"alignment": {"blocks": 2}, "losses": {"labels": 0.5}, "discriminators": {"on": "all"}}
    task = EnsembleDistillation(network("test_vit2", 1), teachers, data_config=CONFIG, **sections)
    if world > 1:
        task.prepare_distributed()
    batches = [(input[rank::world], target[rank::world]) for input, target in batches_of(folder, 4)]
    optimizer = create_optimizer_v2(task, "sgd", lr=0.03, weight_decay=0.1)
    losses = torch.tensor([list(step.values()) for step in timm_loop(task, batches, optimizer)])
    if world > 1:
        dist.all_reduce(losses)
    if rank == 0:
        torch.save({"losses": losses / world, "student": task.get_checkpoint_state()["state_dict"]}, out)


def launched(words: list[str]) -> int:
    """FOLDER OUT, in a launch of several processes."""
    dist.init_process_group("gloo")
    main(*words, rank=int(os.environ["RANK"]), world=int(os.environ["WORLD_SIZE"]))
    dist.destroy_process_group()
    return 0
