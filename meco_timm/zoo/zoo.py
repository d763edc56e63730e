"""The model zoo of MEAL (section 3 of the paper): frozen teachers that give the student its targets.

One teacher is drawn at random per iteration, as in the paper, or the mean of all is used. Outputs
are computed or read from the store.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from meco_timm.common import UserError, draw, get_logger, upload
from meco_timm.data import Batch
from meco_timm.distillation import Targets, TeacherBlocks
from meco_timm.networks import Combination, Outputs, Stream, mean_logits, weights_digest
from meco_timm.recipe import Zoo as ZooSettings
from meco_timm.zoo.frozen import freeze
from meco_timm.zoo.offload import Offloader
from meco_timm.zoo.store import Compute, Store

logger = get_logger(__name__)

LOOK_AHEAD = 32  # steps


def written_combination(names: Iterable[str], settings: ZooSettings) -> Combination:
    """How the teachers are combined by what the recipe says, before anything is fitted."""
    equal = Combination.equal(names)
    if not isinstance(settings.weights, list):
        return equal
    return equal._replace(weights=dict(zip(equal.weights, settings.weights, strict=True)))


class DeviceContext:
    """Where teachers run: a device, the number of this process, and the precision of the code around. An
    `accelerate.Accelerator` can stand in its place."""

    def __init__(self, device: torch.device):
        self.device = device
        self.process_index = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that teachers compute in."""
        return nullcontext()


class Zoo:
    """Frozen teachers by name, in eval mode, outside of `accelerator.prepare` and of every checkpoint.

    With a `store`, stored outputs are read and missing ones are computed and added.

    streams: at least one, all with the same alignment. temperature: of the softened logits whose mean is taken.
    load: loads a teacher again by name, as it was before it was frozen.
    """

    def __init__(
        self,
        streams: dict[str, Stream],
        settings: ZooSettings,
        seed: int,
        temperature: float,
        context: DeviceContext | Accelerator,
        load: Callable[[str], Stream] | None = None,
    ):
        self.streams, self.settings, self.seed, self.context = streams, settings, seed, context
        self.temperature = temperature
        self.names = list(streams)
        self.alignment = next(iter(streams.values())).alignment
        self.per_teacher = self.alignment.per_teacher
        self.block_shapes = [stream.block_shapes for stream in streams.values()]
        self.embedding_sizes = [stream.embedding_size for stream in streams.values()]
        self.fingerprints = {name: weights_digest(stream.model) for name, stream in streams.items()}
        limit = settings.resident or len(streams)
        self.offloader = Offloader(limit, context.device) if limit < len(streams) else None
        for name, stream in streams.items():
            changes = freeze(stream, context.device, settings.precision)
            if self.offloader:
                self.offloader.add(name, stream)
            logger.debug("frozen  %s: %s", name, changes)
        self.store: Store | None = None
        self.combine(written_combination(self.names, settings))
        self._step = 0
        self._load = load or self.streams.__getitem__

    def combine(self, combination: Combination) -> None:
        """Draw and average the teachers with these weights, their logits divided by these temperatures. Stored outputs
        stay as the networks gave them."""
        self.combination, self.weights = combination, combination.weights_of(self.names)

    def compile(self, **options: Any) -> None:
        """Compile each teacher on its own, with these options of `torch.compile`: drawing another compiles nothing."""
        limit = max(torch._dynamo.config.cache_size_limit, 2 * len(self.streams) + 2)  # all have one forward in Python
        torch._dynamo.config.cache_size_limit = limit
        for stream in self.streams.values():
            stream.compile(**options)

    def targets(self, batch: Batch, image: Tensor, step: int) -> Targets:
        """Targets of step `step`: outputs of the drawn teacher, or the mean of all.

        `batch`: on the CPU. `image`: B×3×H×W uint8, its images on the device, as the student gets them.
        """
        self._step = step
        with torch.no_grad(), self.context.autocast():
            if self.settings.sampling == "average":
                used = [name for name in self.names if self.combination.weights[name]]
                outputs = {name: self._outputs_of(name, batch.view, batch.row, image) for name in used}
                return self._average(outputs, step)
            drawn = self._drawn(step)
            outputs_of_drawn = self._outputs_of(drawn, batch.view, batch.row, image)
            return Targets.of(outputs_of_drawn, self.names.index(drawn), self.per_teacher)

    @torch.no_grad()
    def embeddings(self, batch: Batch) -> dict[int, Tensor]:
        """The embeddings of all teachers that give one, B×d, by number."""
        image = batch.image.to(self.context.device, non_blocking=True)
        with self.context.autocast():
            outputs = [self._outputs_of(name, batch.view, batch.row, image) for name in self.names]
        return {i: o.embedding for i, o in enumerate(outputs) if o.embedding is not None}

    @torch.no_grad()
    def precompute(self, batch: Batch) -> None:
        """Add the outputs of all teachers for a batch to the store, where they are missing."""
        assert self.store is not None
        image = batch.image.to(self.context.device, non_blocking=True)
        with self.context.autocast():
            for name in self.names:
                self.store.add_missing(name, batch.view, batch.row, self._compute(name, image))

    def to(self, device: torch.device) -> None:
        """Move the teachers to another device.

        Raises:
            UserError: some are offloaded, which is tied to a device.
        """
        if self.offloader is None:
            for stream in self.streams.values():
                stream.to(device)
        elif device.type != self.offloader.device.type:
            raise UserError(
                f"zoo.resident: teachers are offloaded from {self.offloader.device} and cannot move to {device}. Name "
                "the device where the zoo is made."
            )

    def release(self) -> None:
        """Drop the teachers: the store has all of their outputs."""
        self.streams, self.offloader = {}, None

    def flush(self) -> None:
        """Write the outputs to disk that the store has in memory only."""
        if self.store:
            self.store.flush()

    def unfrozen(self) -> dict[str, Stream]:
        """The teachers as they were loaded, for evaluation; drops the frozen ones. On the CPU if they are offloaded."""
        device = torch.device("cpu") if self.offloader else self.context.device
        self.release()
        return {name: self._load(name).to(device).eval() for name in self.names}

    def _outputs_of(self, name: str, view: Tensor, row: Tensor, image: Tensor) -> Outputs:
        """One teacher's outputs for N images on the device; `view` and `row`, N each on the CPU, find stored ones."""
        if self.store is None:
            outputs = self.live(name, image)
        else:
            outputs = self.store.outputs(name, view, row, self._compute(name, image))
        temperature = self.combination.temperatures[name]
        if outputs.logits is None or temperature == 1:
            return outputs
        return outputs._replace(logits=outputs.logits / temperature)

    def _compute(self, name: str, image: Tensor) -> Compute:
        """A function from indices into `image`, on the CPU, to a teacher's outputs."""
        return lambda wanted: self.live(name, image[upload(wanted, image.device)])

    def live(self, name: str, image: Tensor) -> Outputs:
        """A teacher's outputs, computed; then starts loading the teachers that are needed next."""
        if self.offloader is None:
            return self.streams[name](image)
        self.offloader.load([name, *self.offloader.on_device])
        self.offloader.wait(name)
        outputs = self.streams[name](image)
        self.offloader.load([*self._next_names(name), *self.offloader.on_device])
        return outputs

    def _next_names(self, name: str) -> list[str]:
        """Names of the teachers needed next, `name` first."""
        if self.settings.sampling == "random":
            steps = range(self._step, self._step + LOOK_AHEAD)
            return [self._drawn(step) for step in steps]
        index = self.names.index(name)
        return [*self.names[index:], *self.names[:index]]

    def _drawn(self, step: int) -> str:
        return self.names[draw(self.seed, step, len(self.names), weights=self.weights)]

    def _average(self, outputs: dict[str, Outputs], step: int) -> Targets:
        """The mean over those that give logits; embeddings and blocks of the drawn one or of all, or the mean of blocks
        where all share one alignment."""
        logits = {name: o.logits for name, o in outputs.items() if o.logits is not None}
        chosen = list(outputs) if self.alignment.teachers == "all" else [self._drawn(step)]
        numbered = {self.names.index(name): outputs[name] for name in chosen}
        embeddings = {i: o.embedding for i, o in numbered.items() if o.embedding is not None}
        if self.per_teacher:
            blocks = [TeacherBlocks(i, o.blocks) for i, o in numbered.items() if o.blocks]
        else:
            compared = (o.blocks for o in outputs.values() if o.blocks)
            mean = [torch.stack(same).mean(0) for same in zip(*compared, strict=True)]
            blocks = [TeacherBlocks(None, mean)] if mean else []
        if not logits:
            return Targets(blocks, embeddings, None)
        weights = self.combination.weights_of(logits)
        return Targets(blocks, embeddings, mean_logits(list(logits.values()), self.temperature, weights))
