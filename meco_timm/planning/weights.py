"""Pretrained weights that a recipe asks for: which are on this machine, what is to be downloaded, from where."""

import threading
import time
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from torchvision.models import get_model_weights

from meco_timm.common import UserError, first_line
from meco_timm.networks import Stream
from meco_timm.planning.cost import Workload
from meco_timm.recipe import Network, Recipe, named_teachers
from meco_timm.training import LabelTraining, trained_teacher

FILES = ("model.safetensors", "pytorch_model.bin")
PROBE_SECONDS = 5.0  # for an answer of a server
LONGEST = 8.0  # seconds for all of them: looking up the name of a server can take longer


class Weights(NamedTuple):
    """Weights of a network in the recipe. key: the network's. address: of their page or file. here: on this machine."""

    key: str
    name: str
    address: str
    megabytes: float
    here: bool

    @property
    def place(self) -> str:
        """The address without the protocol."""
        return self.address.partition("://")[2]


def find_weights(work: Workload) -> list[Weights]:
    """The weights that timm, the Hub or torchvision have; not those in local files. Sizes are of float32."""
    networks: list[tuple[str, Network, Stream]] = [("student", work.recipe.student, work.student)]
    pairs = zip(work.recipe.teachers, work.teachers.values(), strict=True)
    networks += [(f"teachers.{i}", teacher, stream) for i, (teacher, stream) in enumerate(pairs)]
    found = []
    for key, network, stream in networks:
        if network.names_weights and not network.weights and network.object is None:
            address, here = _source(network, stream)
            if address:
                found.append(Weights(key, network.model, address, stream.parameter_count * 4 / 1e6, here))
    return found


def _source(network: Network, stream: Stream) -> tuple[str, bool]:
    """(the address of a network's weights, whether they are on this machine); no address for a folder."""
    prefix, _, name = network.model.rpartition(":")
    if prefix == "local-dir" or (prefix == "transformers" and Path(name).is_dir()):
        return "", True
    if prefix == "torchvision":
        architecture, _, tag = name.partition("@")
        url = get_model_weights(architecture)[tag].url
    else:
        repo = name.partition("@")[0] if prefix else stream.model.pretrained_cfg.get("hf_hub_id")
        if repo:
            here = any(isinstance(try_to_load_from_cache(repo, file), str) for file in FILES)
            return f"{constants.ENDPOINT}/{repo}", here
        url = stream.model.pretrained_cfg.get("url") or ""
    return url, (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file()


def weights_lines(weights: list[Weights]) -> list[str]:
    """The plan's lines: what is here, and what is to be downloaded."""
    here, missing = [w for w in weights if w.here], [w for w in weights if not w.here]
    lines = [f"weights on this machine: {', '.join(w.name for w in here)}"] if here else []
    if missing:
        total = sum(w.megabytes for w in missing)
        each = ", ".join(f"{w.megabytes:.0f} MB from {w.place}" for w in missing)
        lines.append(f"weights to download: about {total:.0f} MB: {each}")
    return lines


def require_weights(weights: list[Weights], recipe: Recipe, training: LabelTraining) -> None:
    """Check that all weights that are not here can be reached, all at once, before the first is downloaded.

    Teachers that are trained already need none.

    Raises:
        UserError: names all that cannot be reached, and what to do.
    """
    trained = {
        f"teachers.{i}"
        for i, (name, teacher) in enumerate(named_teachers(recipe.teachers).items())
        if teacher.train and trained_teacher(name, teacher, training)
    }
    missing = [w for w in weights if not w.here and w.key not in trained]
    faults: dict[str, str] = {}
    threads = [threading.Thread(target=_probe, args=(w.address, faults), daemon=True) for w in missing]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LONGEST
    for thread, w in zip(threads, missing, strict=True):
        thread.join(max(deadline - time.monotonic(), 0))
        if thread.is_alive():
            faults[w.address] = "no answer"
    lost = [w for w in missing if w.address in faults]
    if lost:
        raise UserError(_refusal(lost, faults[lost[0].address]))


def _probe(address: str, faults: dict[str, str]) -> None:
    """Ask for the address. A page that is not there or not open has its own message later."""
    try:
        if address.startswith(constants.ENDPOINT):
            answer = get_session().head(address, timeout=PROBE_SECONDS)
            if answer.status_code >= 500:  # also of a proxy that reaches nothing
                faults[address] = f"status {answer.status_code}"
        else:
            urlopen(Request(address, method="HEAD"), timeout=PROBE_SECONDS).close()
    except Exception as error:  # of several libraries, which have no class in common; each means no connection
        faults[address] = first_line(error)


def _refusal(lost: list[Weights], why: str) -> str:
    size = max(len(w.name) for w in lost)
    named = "\n".join(f"  {w.key + ':':<12} {w.name:<{size}}  {w.megabytes:6.0f} MB from {w.place}" for w in lost)
    repos = [w.place.partition("/")[2] for w in lost if w.address.startswith(constants.ENDPOINT)]
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else why
    return (
        f"weights: {len(lost)} network(s) need weights that are not here and cannot be downloaded ({reason}):\n"
        f"{named}\nWhat you can do:\n"
        "  with a connection: repeat the command. Without HF_HUB_OFFLINE; HF_ENDPOINT names a mirror of the Hub\n"
        f"  with another machine: `hf download {repos[0] if repos else 'REPO'}` there; copy the folder, and name it as "
        "local-dir:FOLDER\n"
        "  without any weights: networks without a tag start from random ones, as `train: resnet18`; the recipe "
        "own_images_small has small ones"
    )
