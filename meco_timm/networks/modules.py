"""A stream around a network that the caller already has: a timm model, or any module that classifies images.

Blocks are compared of networks with timm's `forward_intermediates`, `forward_head` and `feature_info`. Of any other
module only the logits are used: its `forward`, float images B×3×H×W → B×K.
"""

from copy import deepcopy
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from meco_timm.common import UserError, first_line, get_logger, short_name
from meco_timm.networks.configs import data_config
from meco_timm.networks.foreign import LogitsOnly, adapt_module, logits_in
from meco_timm.networks.stream_check import check_stream
from meco_timm.networks.streams import Stream, make_teacher_stream
from meco_timm.recipe import Alignment, Network, Teacher

logger = get_logger(__name__)
_NOTED: WeakSet[nn.Module] = WeakSet()  # modules of which it was said what is assumed

OF_TIMM = ("forward_intermediates", "forward_head", "feature_info", "pretrained_cfg", "num_classes")
NORMALISATION = ("mean", "std")


class ModuleEntry(NamedTuple):
    """A network that a Python caller has, in place of a name in the recipe: the `object` of the recipe's entry.

    config: keys of timm's data config that its `pretrained_cfg` does not have, or has otherwise.
    """

    module: nn.Module
    config: dict[str, Any] = {}  # noqa: RUF012  never changed

    def teacher(
        self, teacher: Teacher, alignment: Alignment, classes: list[str], role: str, notes: bool = True
    ) -> Stream:
        """As `wrap_teacher`; `teacher`: the recipe's entry."""
        _check_entry(teacher, role)
        named = teacher.model_copy(update={"model": short_name(teacher.model)})
        return wrap_teacher(self.module, named, alignment, classes, role=role, config=self.config, notes=notes)

    def trainable(self, network: Network, role: str) -> Any:
        """A copy to be trained, so that the caller's network stays as it is; all of it, if it is frozen as a whole.

        Raises:
            UserError: it is not a timm network.
        """
        _check_entry(network, role)
        model = _unwrapped(self.module)
        _require_timm(model, role)
        copy = deepcopy(model)
        return copy if any(p.requires_grad for p in copy.parameters()) else copy.requires_grad_(True)


def _check_entry(network: Network, role: str) -> None:
    if network.args or network.weights:
        key = "args" if network.args else "weights"
        raise UserError(f"{role}.{key}: for networks by name. A module has its arguments and weights already.")


def wrap_student(
    module: nn.Module, alignment: Alignment, config: dict[str, Any] | None = None, headless: bool = False
) -> Stream:
    """A trainable stream around a timm network, which is trained in place.

    config: timm's data config, for keys that are not the network's own (`input_size`, `mean`, `std`). headless: it is
    to be a backbone.

    Raises:
        UserError: not a timm network, too many blocks, or an input size that it cannot take.
    """
    model: Any = _unwrapped(module)
    role = "student"
    _require_timm(model, role)
    name = architecture_name(model)
    if headless != (not model.num_classes):
        head = "a head, which a backbone has not" if headless else "no head to classify with"
        raise UserError(f"{role}: {name} has {head}: create it with num_classes={'0' if headless else 'K'}.")
    training, gives = model.training, "blocks" if headless else "all"
    stream = Stream(model, alignment, input_size(model, config, role), data_config(model, role, config), gives)
    check_stream(stream, name, role)
    check_logits(stream, role)
    return stream.train(training)


def wrap_teacher(
    module: nn.Module,
    teacher: Teacher,
    alignment: Alignment,
    classes: list[str],
    *,
    role: str = "teachers.0",
    config: dict[str, Any] | None = None,
    notes: bool = True,
) -> Stream:
    """The stream of a teacher that is there already; it is frozen in place, and moves with the stream.

    teacher: its settings: `size`, `gives`, `classes`, `missing`; `model` is its name. classes: names of the data set's.
    config: as of `wrap_student`; a module without timm's `pretrained_cfg` needs it, or gets ImageNet's mean and std.
    notes: freeze it, and log that and what is assumed of it; not for a plan.

    Raises:
        UserError: it gives something else than logits B×K, or its classes do not match (class_maps.py).
    """
    whole = _unwrapped(module)
    model, own = adapt_module(whole)
    config = own | (config or {})
    if teacher.size:
        config["input_size"] = (3, teacher.size, teacher.size)
    if notes:
        _freeze(whole, teacher.model, role)
    if not is_timm(model):
        if notes:
            _note_input(model, teacher.model, alignment, config, role)
        model = _logits_only(model, teacher.model, config, role)
    stream = make_teacher_stream(
        model, input_size(model, config, role), teacher, alignment, classes, data_config(model, role, config), role
    )
    check_logits(stream, role)
    return stream


def architecture_name(module: nn.Module) -> str:
    """timm's name of the architecture, else the name of the class."""
    config = getattr(module, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(module).__name__)


def is_timm(module: nn.Module) -> bool:
    """Whether it has all that blocks and logits from one forward need."""
    return not _missing_attributes(module)


def input_size(model: nn.Module, config: dict[str, Any] | None, role: str) -> int:
    """Height and width in pixels.

    Raises:
        UserError: they differ.
    """
    _, height, width = (config or {}).get("input_size") or get_model_input_config(model)["input_size"]
    if height != width:
        raise UserError(f"{role}: images of {height} × {width} are not square, which streams need.")
    return int(height)


def check_logits(stream: Stream, role: str) -> None:
    """Raises: UserError: the network gives a tuple, a dict or a map instead of logits B×K."""
    if stream.has_logits:
        count_classes(stream.try_out().logits, architecture_name(stream.model), role)


def count_classes(output: Any, name: str, role: str) -> int:
    """The number of classes K of logits 1×K.

    Raises:
        UserError: `output` is something else.
    """
    if isinstance(output, Tensor) and output.ndim == 2:
        return output.shape[1]
    if isinstance(output, Tensor):
        what = f"a tensor of {output.ndim} dimensions"
    elif isinstance(output, dict):
        what = f"a dict ({', '.join(map(str, output))})"
    else:
        what = f"a {type(output).__name__}"
    raise UserError(
        f"{role}: {name} gives {what} instead of logits, one tensor B×K. Write a module around it whose forward "
        "returns the logits."
    )


def _unwrapped(module: nn.Module) -> Any:
    """The network in torch's wrappers; any other module around it may change what it gives, and stays."""
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return _unwrapped(module.module)
    return getattr(module, "_orig_mod", module)  # of torch.compile


def _missing_attributes(module: nn.Module) -> list[str]:
    return [name for name in OF_TIMM if not hasattr(module, name)]


def _require_timm(module: nn.Module, role: str) -> None:
    if missing := _missing_attributes(module):
        raise UserError(
            f"{role}: {architecture_name(module)} is not a timm network: it has no {missing[0]}. So it cannot be "
            "trained here, only teach. Create it with timm.create_model, or leave out `train` of a teacher."
        )


def _note_input(module: nn.Module, name: str, alignment: Alignment, config: dict[str, Any], role: str) -> None:
    """Say once what is assumed of a module of another library: a plan and a run both open it."""
    if module in _NOTED:
        return
    _NOTED.add(module)
    own = dict(getattr(module, "pretrained_cfg", None) or {}) | config
    if missing := [key for key in NORMALISATION if key not in own]:
        logger.warning(
            f"{role}: {name} has no pretrained_cfg: its images get ImageNet's {' and '.join(missing)}. Give its own if "
            "they differ."
        )
    if alignment.blocks:
        logger.info("%s: %s has no %s, so it gives logits only", role, name, _missing_attributes(module)[0])


def _logits_only(module: nn.Module, name: str, config: dict[str, Any], role: str) -> LogitsOnly:
    """The module in timm's form."""
    own = dict(getattr(module, "pretrained_cfg", None) or {}) | config
    size = input_size(module, own, role)
    own["input_size"] = (3, size, size)
    count = count_classes(_output(module, size, name, role), name, role)
    return LogitsOnly(module, count, own | {"num_classes": count})


@torch.no_grad()
def _output(module: nn.Module, size: int, name: str, role: str) -> Any:
    """What its forward gives for one image, in eval mode."""
    parameter = next(module.parameters(), torch.empty(0))
    try:
        return logits_in(module.eval()(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)))
    except Exception as error:  # whatever a module of the caller's raises, its entry is the cause
        reason = first_line(error)
        raise UserError(f"{role}.size: {name} cannot take images of {size} × {size}: {reason}") from error


def _freeze(module: nn.Module, name: str, role: str) -> None:
    """Put a teacher into eval mode without gradients, and say so if it was not."""
    state = ["in train mode"] * module.training
    state += ["with gradients"] * any(p.requires_grad for p in module.parameters())
    if state:
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        logger.info("%s: %s (%s, on %s) is frozen on the training's device", role, name, ", ".join(state), device)
    module.eval().requires_grad_(False)
