"""3 · A stream: un-normalised image → Outputs, for any timm model, teacher and student alike.

Each stream resizes to its network's own input size and normalises with its own mean and std, so that a teacher sees
images as it was trained to see them. Logits and blocks come from one forward.
"""

import inspect
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from meco_timm.alignment import align, choose_blocks
from meco_timm.errors import UserError, did_you_mean
from meco_timm.randomness import reseed
from meco_timm.recipe import Alignment, Network

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's convert("L")


class Outputs(NamedTuple):
    """blocks: one B×d per compared block, first block first. logits: B×K."""

    blocks: list[Tensor]
    logits: Tensor


class Stream(nn.Module):
    """normalise → size → timm model → taps → alignment. The only forward in the project."""

    model: Any  # a timm model: mypy knows nothing of forward_intermediates and its like
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, alignment: Alignment, size: int, data_config: dict[str, Any]):
        super().__init__()
        self.model, self.alignment, self.size = model, alignment, size
        self.data_config = data_config
        self.resize_mode = "bilinear" if data_config["interpolation"] == "bilinear" else "bicubic"
        self.taps = choose_blocks(len(model.feature_info), alignment.blocks)
        for name in ("mean", "std"):  # not persistent: the state dict is the model's alone
            self.register_buffer(name, torch.tensor(data_config[name]).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Outputs:
        """image B×3×H×W, uint8 or float in [0, 1] → Outputs."""
        x = self.prepare(image)
        if not self.taps:
            return Outputs([], self.model(x))
        final, maps = self.model.forward_intermediates(x, indices=self.taps, output_fmt="NCHW")
        blocks = [align(m, self.alignment.method, self.alignment.length) for m in maps]
        return Outputs(blocks, self.model.forward_head(final))

    def prepare(self, image: Tensor) -> Tensor:
        """The network's own view of the batch: its size, its channels, its normalisation."""
        x = image.float() / 255 if image.dtype == torch.uint8 else image
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode=self.resize_mode, antialias=True).clamp(0, 1)
        if self.mean.shape[1] == 1:
            x = (x * x.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return (x - self.mean) / self.std

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def multiply_adds(self) -> int:
        """Multiply-adds of one image at this stream's input size."""
        image = torch.zeros(1, 3, self.size, self.size, device=self.mean.device)
        was_training = self.training
        self.eval()
        with FlopCounterMode(display=False) as counter:
            self(image)
        self.train(was_training)
        return counter.get_total_flops() // 2


def build_stream(
    network: Network,
    alignment: Alignment,
    classes: int,
    image_size: int,
    *,
    role: str,
    size: int | None = None,
    keep_head: bool = False,
    seed: int = 0,
) -> Stream:
    """The stream of a network of the recipe.

    `keep_head`: the weights' own head and input size stay, as for a pretrained teacher; otherwise the network gets a
    new head for `classes` and sees `image_size`. `role` ("student", "teachers.0") says where an error is.

    Raises:
        UserError: unknown name, class counts that differ, too many blocks, or an image size that it cannot take.
    """
    check_name(network.model, role)
    model_args = dict(network.args) if keep_head else {"num_classes": classes, **network.args}
    probe = _create(network, model_args, role, pretrained=False, device="meta")
    own_size = int(probe.pretrained_cfg["input_size"][-1])
    size = size or (own_size if keep_head else image_size)
    takes_size = "img_size" in inspect.signature(type(probe).__init__).parameters
    if size != own_size and takes_size and probe.pretrained_cfg.get("fixed_input_size"):
        model_args = {"img_size": size, **model_args}
    reseed(seed, "weights")
    model = _create(network, model_args, role, pretrained=network.names_weights)
    if model.num_classes != classes:
        raise UserError(
            f"{role}: {network.model} has {model.num_classes} classes, the data set has {classes}. Choose weights of "
            f"the same classes, or let it learn them with `train: {network.model}`."
        )
    available = len(model.feature_info)
    if alignment.blocks > available:
        raise UserError(
            f"alignment.blocks: {network.model} ({role}) has {available} blocks to compare, not {alignment.blocks}."
        )
    stream = Stream(model, alignment, size, resolve_data_config(pretrained_cfg=model.pretrained_cfg, model=model))
    _try_forward(stream, network.model, role)
    return stream


def check_name(name: str, role: str) -> None:
    """Refuse a name that timm does not know, with the nearest that it does."""
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(f"{role}: timm has no model {name!r}.{did_you_mean(architecture, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        known_tags = ", ".join(tags) or "none"
        raise UserError(f"{role}: timm has no weights {name!r}.{did_you_mean(tag, tags)} Tags of it: {known_tags}.")


def _create(network: Network, args: dict[str, Any], role: str, pretrained: bool, device: str = "cpu") -> Any:
    try:
        with torch.device(device):
            return timm.create_model(network.model, pretrained=pretrained, **args)
    except Exception as error:  # a constructor's own complaint, a missing file, the network: all are the recipe's
        told = str(error).strip().splitlines() or [repr(error)]
        raise UserError(f"{role}: {network.model} cannot be made with {args}: {told[-1]}") from error


def _try_forward(stream: Stream, name: str, role: str) -> None:
    """One image through the network, so that a size it cannot take is found before any training."""
    try:
        with torch.no_grad():
            stream.eval()(torch.zeros(1, 3, stream.size, stream.size))
    except Exception as error:
        key = "data.image_size" if role == "student" else f"{role}.size"
        raise UserError(f"{key}: {name} cannot take images of {stream.size} × {stream.size}: {error}") from error
