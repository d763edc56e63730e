"""5 · The zoo: frozen teachers, one drawn per step or per image, or the mean of all; live or from the store."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from meco_timm.common import derive, say
from meco_timm.data import Batch
from meco_timm.distillation import mean_logits
from meco_timm.networks import Outputs, Stream, weights_digest
from meco_timm.recipe import Recipe
from meco_timm.zoo.frozen import freeze
from meco_timm.zoo.offload import Residents
from meco_timm.zoo.store import Compute, Store

LOOK_AHEAD = 32  # steps


def draw(seed: int, step: int, teachers: int, *key: int) -> int:
    """Which teacher teaches step `step` (on a process, or an image, if given): uniform, a pure function of these."""
    return derive(seed, "teacher", step, *key) % teachers


class Zoo:
    """Frozen teachers by name. They stay outside `accelerator.prepare`, in eval mode and out of every checkpoint.

    With a `store`, what it has is read and the rest kept in it; `release` lets teachers go that it makes needless.
    `load` gives a teacher by name once more.
    """

    def __init__(
        self,
        streams: dict[str, Stream],
        recipe: Recipe,
        accelerator: Accelerator,
        load: Callable[[str], Stream] | None = None,
    ):
        self.names = list(streams)
        self.fingerprints = {name: weights_digest(stream.model) for name, stream in streams.items()}
        self.streams = streams
        limit = recipe.zoo.resident or len(streams)
        self.residents = Residents(limit, accelerator.device) if limit < len(streams) else None
        for name, stream in streams.items():
            told = freeze(stream, accelerator.device, recipe.zoo.precision)
            if self.residents:
                self.residents.admit(name, stream)
            if accelerator.is_main_process:
                say(f"frozen  {name}: {told}")
        self.sampling, self.seed = recipe.zoo.sampling, recipe.seed
        self.scope = (accelerator.process_index,) if recipe.zoo.scope == "process" else ()
        self.temperature, self.accelerator = recipe.losses.temperature, accelerator
        self.store: Store | None = None
        self._step = 0
        self._load = load or self.streams.__getitem__

    def outputs(self, batch: Batch, image: Tensor, step: int) -> Outputs:
        """What step `step` learns from: outputs of the drawn teacher, of one per image, or the mean of all.

        `batch`: on the CPU. `image`: its images on the device, as the student sees them.
        """
        self._step = step
        with torch.no_grad(), self.accelerator.autocast():
            if self.sampling == "average":
                return self._average([self._of(name, batch, image) for name in self.names])
            if self.sampling == "random_image":
                return self._each(batch, image, step)
            return self._of(self._drawn(step), batch, image)

    @torch.no_grad()
    def fill(self, batch: Batch) -> None:
        """Put into the store what it lacks of all teachers for a batch."""
        assert self.store is not None
        image = batch.image.to(self.accelerator.device, non_blocking=True)
        with self.accelerator.autocast():
            for name in self.names:
                self.store.fill(name, batch.view, batch.row, self._on(name, image))

    def release(self) -> None:
        """Let the teachers go: the store has all that they can say."""
        self.streams, self.residents = {}, None

    def flush(self) -> None:
        """Write what the store has in memory only."""
        if self.store:
            self.store.flush()

    def plain(self) -> dict[str, Stream]:
        """The teachers as they were loaded, for the table; the frozen ones are let go. On the host if not all fit."""
        device = torch.device("cpu") if self.residents else self.accelerator.device
        self.release()
        return {name: self._load(name).to(device).eval() for name in self.names}

    def _of(self, name: str, batch: Batch, image: Tensor, places: Tensor | None = None) -> Outputs:
        """One teacher's outputs on the batch, or on some `places` (on the CPU) in it."""
        if self.store is None:
            return self.live(name, image if places is None else image[places.to(image.device)])
        view, row = (batch.view, batch.row) if places is None else (batch.view[places], batch.row[places])
        return self.store.outputs(name, view, row, self._on(name, image, places))

    def _on(self, name: str, image: Tensor, places: Tensor | None = None) -> Compute:
        """A teacher's outputs by place in the batch, or in some `places` in it."""

        def compute(wanted: Tensor) -> Outputs:
            return self.live(name, image[(wanted if places is None else places[wanted]).to(image.device)])

        return compute

    def live(self, name: str, image: Tensor) -> Outputs:
        """A teacher's outputs, computed; then those that come next are sent for."""
        if self.residents is None:
            return self.streams[name](image)
        self.residents.bring([name, *self.residents.here])
        outputs = self.streams[name](image)
        self.residents.bring([*self._coming(name), *self.residents.here])
        return outputs

    def _coming(self, name: str) -> list[str]:
        """Who teaches from now on, as far as it is worth knowing: `name` first."""
        if self.sampling == "random":
            steps = range(self._step, self._step + LOOK_AHEAD)
            return [self._drawn(step) for step in steps]
        at = self.names.index(name)
        return [*self.names[at:], *self.names[:at]]

    def _drawn(self, step: int) -> str:
        return self.names[draw(self.seed, step, len(self.names), *self.scope)]

    def _each(self, batch: Batch, image: Tensor, step: int) -> Outputs:
        """Each image's outputs from a teacher of its own: every teacher sees its share of the batch."""
        drawn = torch.tensor([draw(self.seed, step, len(self.names), row) for row in batch.row.tolist()])
        places = [(drawn == i).nonzero().squeeze(1) for i in range(len(self.names))]
        parts = [self._of(name, batch, image, own) for name, own in zip(self.names, places, strict=True) if len(own)]
        back = torch.cat(places).argsort().to(image.device, non_blocking=True)
        blocks = [torch.cat(same)[back] for same in zip(*(part.blocks for part in parts), strict=True)]
        logits = [part.logits for part in parts if part.logits is not None]
        return Outputs(blocks, torch.cat(logits)[back] if logits else None)

    def _average(self, outputs: list[Outputs]) -> Outputs:
        """The mean over those that give blocks, and over those that give logits."""
        blocks = [torch.stack(same).mean(0) for same in zip(*(o.blocks for o in outputs if o.blocks), strict=True)]
        logits = [o.logits for o in outputs if o.logits is not None]
        return Outputs(blocks, mean_logits(logits, self.temperature) if logits else None)
