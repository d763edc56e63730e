"""A stream: un-normalised image → Outputs, for any timm model, teacher or student.

Each stream resizes to its network's own input size and normalises with its own mean and std, so that a teacher sees
images as it was trained to see them. Logits and blocks come from one forward.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from meco_timm.common import UserError, get_logger, reseed
from meco_timm.networks.alignment import block_forms, choose_blocks
from meco_timm.networks.class_maps import MISSING, find_map
from meco_timm.networks.configs import data_config
from meco_timm.networks.factory import is_hub_or_folder, make_network
from meco_timm.networks.foreign import LogitsOnly
from meco_timm.networks.stream_check import check_stream
from meco_timm.recipe import Alignment, Network, Teacher

logger = get_logger(__name__)

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's convert("L")
LOGITS_ONLY = Alignment(blocks=0, embedding="none")
NEVER = -1e4  # logit of a class that a teacher does not have: finite, so that no loss becomes 0 · ∞


class Outputs(NamedTuple):
    """blocks: of each compared block, first block first, B×d by the paper's alignments, B×C×h×w by `projection`.
    embedding: B×d, float32, pooled features before the head. logits: B×K. Each is missing where nothing compares it or
    the network does not give it: no blocks, None.
    """

    blocks: list[Tensor]
    embedding: Tensor | None
    logits: Tensor | None


class Stream(nn.Module):
    """normalise → size → timm model → taps → alignment. The only forward in the project."""

    model: Any  # a timm model: mypy knows nothing of forward_intermediates and its like
    mean: Tensor
    std: Tensor

    class_map: Tensor | None

    def __init__(
        self,
        model: Any,
        alignment: Alignment,
        size: int,
        data_config: dict[str, Any],
        gives: str = "all",
        class_map: list[int] | None = None,
        as_teacher: bool = False,
    ):
        super().__init__()
        self.model, self.alignment, self.size = model, alignment, size
        self._shapes: tuple[list[tuple[int, ...]], int | None] | None = None
        self.data_config = data_config
        self.resize_mode = "bilinear" if data_config["interpolation"] == "bilinear" else "bicubic"
        self.taps = choose_blocks(len(model.feature_info), alignment.blocks) if gives != "logits" else []
        self.align = block_forms(alignment, [model.feature_info[i]["num_chs"] for i in self.taps], as_teacher)
        self.has_logits = gives != "blocks"
        self.has_embedding = alignment.embedding != "none" and gives != "logits"
        self.dtype = next((p.dtype for p in model.parameters()), torch.float32)  # of the network's weights
        self._multiply_adds: int | None = None
        self.unknown = [i for i, place in enumerate(class_map or []) if place == MISSING]
        self.register_buffer("class_map", None if class_map is None else torch.tensor(class_map), persistent=False)
        for name in ("mean", "std"):  # not persistent: the state dict is the model's alone
            self.register_buffer(name, torch.tensor(data_config[name]).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Outputs:
        """image B×3×H×W, uint8 or float in [0, 1] → Outputs."""
        x = self.prepare(image)
        if not (self.taps or self.has_embedding):
            return Outputs([], None, self.mapped(self.model(x)))
        wanted: dict[str, Any] = {"indices": self.taps, "output_fmt": "NCHW"}
        if not (self.has_logits or self.has_embedding):
            maps = self.model.forward_intermediates(x, **wanted, intermediates_only=True)
            return Outputs(self.aligned(maps), None, None)
        if self.taps:
            final, maps = self.model.forward_intermediates(x, **wanted)
        else:
            final, maps = self.model.forward_features(x), []
        embedding = self.model.forward_head(final, pre_logits=True).float() if self.has_embedding else None
        logits = self.mapped(self.model.forward_head(final)) if self.has_logits else None
        return Outputs(self.aligned(maps), embedding, logits)

    def logits(self, image: Tensor) -> Tensor:
        """image as for `forward` → logits B×K; the network must have a head."""
        logits = self(image).logits
        assert logits is not None
        return logits

    def aligned(self, maps: list[Tensor]) -> list[Tensor]:
        """The network's own maps, B×C×H×W each → blocks."""
        return [form(block) for form, block in zip(self.align, maps, strict=True)]

    def mapped(self, logits: Tensor) -> Tensor:
        """Logits of the network's classes → B×K, of the data set's classes."""
        if self.class_map is None:
            return logits
        return logits[:, self.class_map].masked_fill(self.class_map == MISSING, NEVER)

    def prepare(self, image: Tensor) -> Tensor:
        """image as for `forward` → resized to the network's size, in its channels, normalised."""
        x = image.float().div_(255) if image.dtype == torch.uint8 else image
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode=self.resize_mode, antialias=True).clamp(0, 1)
        if self.mean.shape[1] == 1:
            x = (x * x.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return (x - self.mean).div_(self.std).to(self.dtype)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def multiply_adds(self) -> int:
        """Multiply-adds of one image at this stream's input size; counted once."""
        if self._multiply_adds is None:
            with FlopCounterMode(display=False) as counter:
                self._keep_shapes(self.try_out())
            self._multiply_adds = counter.get_total_flops() // 2
        return self._multiply_adds

    @property
    def block_shapes(self) -> list[tuple[int, ...]]:
        """Of one image's blocks, first block first: (d,) each, or (C, h, w) with `projection`; found once."""
        return self._output_shapes()[0]

    @property
    def embedding_size(self) -> int | None:
        """Length of an image's embedding; None if it gives none; found once."""
        return self._output_shapes()[1]

    def _output_shapes(self) -> tuple[list[tuple[int, ...]], int | None]:
        if self._shapes is None and self.mean.is_meta:
            self.multiply_adds()  # which a plan asks for too
        elif self._shapes is None:
            self._keep_shapes(self.try_out())
        assert self._shapes is not None
        return self._shapes

    def _keep_shapes(self, outputs: Outputs) -> None:
        length = None if outputs.embedding is None else outputs.embedding.shape[1]
        self._shapes = [tuple(block.shape[1:]) for block in outputs.blocks], length

    @torch.no_grad()
    def try_out(self) -> Outputs:
        """The outputs on one black image; the stream is left as it was.

        The weights are detached: a view of a parameter, as the query of an attention pool, requires a gradient also
        under `no_grad`, but has no graph, at which the hooks of `FlopCounterMode` fail.
        """
        was_training = self.training
        self.eval()
        weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
        outputs = functional_call(self, weights, torch.zeros(1, 3, self.size, self.size, device=self.mean.device))
        self.train(was_training)
        return outputs


def student_stream(
    network: Network,
    alignment: Alignment,
    classes: int,
    image_size: int,
    *,
    role: str = "student",
    seed: int = 0,
    gives: str = "all",
    weightless: bool = False,
    as_teacher: bool = False,
) -> Stream:
    """A trainable stream with a head for `classes`, or with 0 without a head, that sees `image_size` pixels.

    From the weights that the network names, with a new head where their classes are not as many; else from random
    ones, a function of `seed`. `role` says where an error is. `as_teacher`: a teacher in the making, which then
    `gives` these outputs.

    Raises:
        UserError: unknown name, too many blocks, an image size that the network cannot take, or no head.
    """
    if role == "student" and alignment.blocks and network.args.get("patch_drop_rate"):
        raise UserError(
            f"{role}.args: patch_drop_rate leaves holes in the maps that alignment.blocks compares. Leave it out, or "
            "compare logits only with alignment.blocks=0."
        )
    wanted = {"num_classes": classes}
    if network.object is None:
        model, size = make_network(network, wanted, network.names_weights, image_size, role, seed, weightless)
    else:
        model, size = network.object.trainable(network, role), image_size
        reseed(seed, "weights")  # of a new head
    if isinstance(model, LogitsOnly):
        raise UserError(f"{role}: {network.model} is not a timm network, so it cannot be trained here, only teach.")
    if network.object is not None and not classes and model.num_classes:
        raise UserError(
            f"{role}: the network has a head of {model.num_classes} classes, a backbone none. Create it with "
            "num_classes=0."
        )
    if model.num_classes != classes and not hasattr(model, "reset_classifier"):
        raise UserError(
            f"{role}: {network.model} is an encoder only, with no place for a head to classify with. As a teacher it "
            "can give its blocks."
        )
    if model.num_classes != classes:
        model.reset_classifier(classes)
    gives = gives if classes else "blocks"
    stream = Stream(model, alignment, size, data_config(model, role), gives, as_teacher=as_teacher)
    return check_stream(stream, network.model, role)


def teacher_stream(
    teacher: Teacher, alignment: Alignment, classes: list[str], *, role: str = "teachers.0", weightless: bool = False
) -> Stream:
    """The stream of a network whose weights are ready, with their own head, input size, and a map of its classes.

    Raises:
        UserError: as for a student, or the classes do not match (class_maps.py).
    """
    if teacher.object is not None:
        return teacher.object.teacher(teacher, alignment, classes, role, notes=not weightless)
    own = teacher.args.get("num_classes")
    model, size = make_network(teacher, {}, True, teacher.size, role, weightless=weightless)
    in_weights = model.num_classes if teacher.weights else model.pretrained_cfg.get("num_classes")
    if own is not None and own != in_weights:
        raise UserError(
            f"{role}.args: num_classes {own} would replace the head of {teacher.model} by a random one. Leave it out, "
            f"and map its classes with {role}.classes."
        )
    if is_hub_or_folder(teacher.model) and model.num_classes != in_weights:
        raise UserError(
            f"{role}: the config of {teacher.model} contradicts itself: the network has {model.num_classes} classes, "
            f"its weights {in_weights}. Its head would be random."
        )
    return make_teacher_stream(model, size, teacher, alignment, classes, data_config(model, role), role)


def bare_stream(network: Network, size: int | None = None) -> Stream:
    """The stream of a network with its own weights and classes, logits only. size: by default its own."""
    model, size = make_network(network, {}, network.names_weights, size, "network")
    stream = Stream(model, LOGITS_ONLY, size, data_config(model, "network"))
    return check_stream(stream, network.model, "network")


def make_teacher_stream(
    model: Any,
    size: int,
    teacher: Teacher,
    alignment: Alignment,
    classes: list[str],
    config: dict[str, Any],
    role: str,
) -> Stream:
    """The stream of a network that has its weights; `config`: timm's data config, `size` its input size."""
    gives = teacher.gives
    if isinstance(model, LogitsOnly):
        if gives == "blocks":
            raise UserError(f"{role}: {teacher.model} has no forward_intermediates, so it gives logits only.")
        gives = "logits"
    if not classes:
        if gives == "logits":
            raise UserError(f"{role}: {teacher.model} gives logits only, from which a backbone learns nothing.")
        gives = "blocks"
    if gives != "blocks" and not model.num_classes:
        if gives == "logits":
            raise UserError(f"{role}: {teacher.model} has no head, so it gives blocks only, not logits.")
        gives = "blocks"
    mapped = None if gives == "blocks" else find_map(model, classes, teacher.classes, teacher.missing, role)
    stream = Stream(model, alignment, size, config, gives, mapped, as_teacher=True)
    return check_stream(stream, teacher.model, role)
