"""Create a timm network from the recipe: a timm tag, `hf-hub:`, `local-dir:`, or an architecture and a state dict.

Weights that are missing or have other shapes are an error; a head is never replaced by a random one without notice.
"""

import hashlib
import inspect
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants
from torch import Tensor, nn

from meco_timm.common import UserError, did_you_mean, first_line, is_object, located, reseed
from meco_timm.networks.foreign import is_foreign, make_foreign
from meco_timm.networks.state_dicts import read_weights
from meco_timm.recipe import Network

# Their forward calls `.item()`, which the meta device does not support: they get random weights instead.
NEED_VALUES = ("timm.models.gemma4_vit",)


def make_network(
    network: Network,
    args: dict[str, Any],
    pretrained: bool,
    size: int | None,
    role: str,
    seed: int = 0,
    weightless: bool = False,
) -> tuple[Any, int]:
    """(the timm model on the CPU, its input size in pixels).

    args: arguments for `timm.create_model`; those of the recipe take precedence.
    size: input size in pixels; None for that of the weights. A network of fixed size is created with `img_size`, if it
    has that argument.
    role: key in the recipe, for messages: "student", "teachers.0".
    seed: of random weights.
    weightless: create it on the meta device, without values.

    Raises:
        UserError: unknown name or argument, or weights that are missing, unsafe or do not fit.
    """
    if is_foreign(network.model):
        return make_foreign(network, pretrained, size, role, weightless)
    check_name(network.model, role)
    args = {**args, **network.args}
    if network.weights:
        state = read_weights(network.weights, role)
        names = set(_create(network.model, args, role, pretrained=False, device="meta").state_dict())
        prefix = _find_prefix(state, names, f"{role}.weights: {network.weights}")
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        args["num_classes"] = network.args.get("num_classes", _classes_in(state, network, args, role))
    probe = _create(network.model, args, role, pretrained=False, device="meta")
    own_size = _own_size(args.get("img_size") or probe.pretrained_cfg["input_size"])
    if network.weights:
        _check_fit(probe, state, network.weights, role, prefix)
    elif pretrained and not (is_hub_or_folder(network.model) or timm.is_model_pretrained(network.model)):
        raise UserError(f"{role}: timm has no weights of {network.model}. Name a file with `weights:`, or `train:` it.")
    size = size or own_size
    if size != own_size and _takes_argument(type(probe), "img_size") and probe.pretrained_cfg.get("fixed_input_size"):
        args = {**args, "img_size": size} if network.weights else {"img_size": size, **args}
        probe = _create(network.model, args, role, pretrained=False, device="meta")
    if weightless and type(probe).__module__ not in NEED_VALUES:
        return probe, size
    reseed(seed, "weights")
    model = _create(network.model, args, role, pretrained=pretrained and not (network.weights or weightless))
    if network.weights and not weightless:
        _load(model, state, network, size, role)
    return model, size


def _takes_argument(kind: type, name: str) -> bool:
    """Whether a class or, if it passes on all arguments, its base has an argument of that name."""
    for base in kind.__mro__:
        parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        if name in parameters:
            return True
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            return False
    return False


def _own_size(size: Any) -> int:
    return int(size[-1] if isinstance(size, (list, tuple)) else size)


def _find_prefix(state: dict[str, Tensor], names: set[str], where: str) -> str:
    """Prefix of the network's names in a checkpoint of a module that wraps it (`model.`, `backbone.`, …).

    names: of the network's tensors. The prefix is the one under which most of them are found, at least half; other
    tensors belong to the wrapper. Empty if there is none.

    Raises:
        UserError: several networks in it fit equally well.
    """
    found: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        found.update(".".join([*parts[:i], ""]) for i in range(len(parts)) if ".".join(parts[i:]) in names)
    most = max(found.values(), default=0)
    best = sorted(prefix for prefix, count in found.items() if count == most)
    if "" in best or 2 * most < len(names):
        return ""
    if len(best) > 1:
        raise UserError(f"{where} holds {len(best)} networks that fit, under {' and '.join(best)}. Save one of them.")
    return best[0]


def _classes_in(state: dict[str, Tensor], network: Network, args: dict[str, Any], role: str) -> int:
    """Number of classes of a state dict's head; 0 without a head."""
    probe = _create(network.model, args, role, pretrained=False, device="meta")
    heads = probe.pretrained_cfg.get("classifier") or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        for name in (f"{head}.weight", f"{head}.bias"):
            if name in state:
                return state[name].shape[0]
    return 0


def _check_fit(model: Any, state: dict[str, Tensor], file: str, role: str, prefix: str) -> None:
    own = model.state_dict()
    wrong = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    odd = sorted(own.keys() - state.keys()) or sorted(state.keys() - own.keys()) or sorted(wrong)
    if odd:
        state_only = odd[0] not in own
        problem = "lacks" if odd[0] not in state else "also has" if state_only else "has another shape of"
        raise UserError(
            f"{role}.weights: {file} does not fit: it {problem} {prefix}{odd[0]} ({len(odd)} such). Is `model` the "
            "right architecture, with the right `args`?"
        )


def _load(model: Any, state: dict[str, Tensor], network: Network, size: int, role: str) -> None:
    """Load the weights; for another input size, timm resamples position embeddings."""
    own = model.state_dict()
    if any(own[name].shape != tensor.shape for name, tensor in state.items()):
        resample = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", lambda state, model: state)
        state = resample(state, model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{role}: the weights of {network.model} cannot be adapted to images of {size} × {size}: {_why(error)}"
        ) from error


def check_name(name: str, role: str) -> None:
    """Raises: UserError: timm has no network or weights of this name, or the folder is none; names the nearest."""
    if is_object(name):
        raise UserError(
            f"{role}: {name} is a network of a Python program. Give it to `distill` again (student=, teachers=)."
        )
    if name.startswith("local-dir:") and not (Path(name.removeprefix("local-dir:")) / "config.json").is_file():
        raise UserError(f"{role}: {located(name)} is not a folder with a timm config.json.")
    if is_hub_or_folder(name):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(f"{role}: timm has no model {name!r}.{did_you_mean(architecture, timm.list_models())}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        all_tags = ", ".join(tags) or "none"
        raise UserError(f"{role}: timm has no weights {name!r}.{did_you_mean(tag, tags)} Tags of it: {all_tags}.")


def is_hub_or_folder(name: str) -> bool:
    """Whether it is a Hub repository or a folder, not a timm name."""
    return name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))


def _create(name: str, args: dict[str, Any], role: str, pretrained: bool, device: str = "cpu") -> Any:
    try:
        with torch.device(device):
            return timm.create_model(name, pretrained=pretrained, **args)
    except Exception as error:  # whatever a constructor or a download raises, the recipe's entry is the cause
        what = "its weights cannot be loaded" if pretrained else f"cannot be made{f' with {args}' if args else ''}"
        raise UserError(f"{role}: {name}{':' * pretrained} {what}: {_why(error, _hub_page(name))}") from error


def _hub_page(name: str) -> str:
    """Where the terms of a network's weights are accepted."""
    config = timm.get_pretrained_cfg(name) if ":" not in name else None
    repo = name.partition(":")[2].partition("@")[0] if config is None else config.hf_hub_id
    return f"{constants.ENDPOINT}/{repo}" if repo else constants.ENDPOINT


HINTS = {
    "GatedRepoError": "The repository is gated: accept its terms on {page}, then `hf auth login`.",
    "RepositoryNotFoundError": "There is no such repository, or it is private: check the name, then `hf auth login`.",
    "RevisionNotFoundError": "The repository has no such revision.",
    "LocalEntryNotFoundError": "The weights are not in the local cache and the Hub cannot be reached. Run once with a "
    "connection, or name a file with `weights:` or a folder with `local-dir:`.",
}
HINTS |= dict.fromkeys(("OfflineModeIsEnabled", "ConnectError", "ConnectionError"), HINTS["LocalEntryNotFoundError"])


def _why(error: BaseException, page: str = constants.ENDPOINT) -> str:
    """The error's first line, and for failures of the Hub what to do. page: of the weights."""
    chain: list[BaseException] = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(deeper)
    message = first_line(error)
    hints = [HINTS[type(e).__name__] for e in chain if type(e).__name__ in HINTS]
    return f"{message} {hints[0].format(page=page)}" if hints else message


def weights_digest(model: nn.Module) -> str:
    """Digest of a network's parameters and buffers with their names: 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
