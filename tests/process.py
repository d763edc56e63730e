"""One process of a launch (torch.distributed.run) that takes 20 steps and says what it saw; test_processes.py reads it.

process.py SOURCE OUT BATCH_SIZE ACCUMULATION
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from meco_timm.data import load_data
from meco_timm.distiller import Distiller
from meco_timm.loop import Training
from meco_timm.randomness import reseed
from meco_timm.recipe import Recipe
from meco_timm.streams import student_stream
from meco_timm.teachers import Zoo

STEPS = 20


def main(source: str, out: str, batch_size: int, accumulation: int) -> None:
    torch.set_num_threads(1)
    recipe = Recipe.model_validate(
        {
            "data": {"source": source, "image_size": 32, "workers": 0, "validation": 0},
            "teachers": ["test_resnet.r160_in1k", "test_vit.r160_in1k"],  # random weights below: any teacher will do
            "student": "test_vit2",  # layer norm: batch norm would see each process's part only
            "alignment": {"length": 32},
            "losses": {"labels": 0.5},
            "loop": {"steps": STEPS, "batch_size": batch_size, "accumulation": accumulation, "lr": 1e-3},
        }
    )  # fmt: skip
    data = load_data(recipe.data, 0)
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False),
    )

    def stream(i: int, network: Any) -> Any:
        network = network.model_copy(update={"model": network.model.split(".")[0]})
        return student_stream(network, recipe.alignment, len(data.classes), 32, seed=i)

    zoo = Zoo({str(i): stream(i, teacher) for i, teacher in enumerate(recipe.teachers)}, recipe, accelerator)
    student = stream(7, recipe.student)
    reseed(0)
    distiller = Distiller(student, recipe, len(data.classes))
    parts: list[dict[str, torch.Tensor]] = []
    distiller.register_forward_hook(lambda module, args, found: parts.append(found) if "total" in found else None)
    training = Training(distiller, recipe.loop, accelerator, data=data, images=data.train, steps=STEPS, seed=3,
                        folder=Path(out).parent, title="student", teach=zoo.outputs, discriminator_lr=1e-3)  # fmt: skip
    batches = training._batches()
    accelerator.gradient_accumulation_steps = accumulation
    losses = []
    for _ in range(STEPS):
        parts.clear()
        training._one_step(batches)
        training.step += 1
        mean = {name: torch.stack([part[name].detach() for part in parts]).mean() for name in sorted(parts[0])}
        losses.append({name: accelerator.reduce(value, "mean").item() for name, value in mean.items()})
    if accelerator.is_main_process:
        state = accelerator.unwrap_model(training.objective).state_dict()
        torch.save({"losses": losses, "state": state, "processes": accelerator.num_processes}, out)


if __name__ == "__main__":
    source, out, batch_size, accumulation = sys.argv[1:]
    main(source, out, int(batch_size), int(accumulation))
