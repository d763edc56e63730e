"""Teacher offloading: a limited number of teachers is on the device, the others are in the host's memory."""

from collections.abc import Iterable

import torch
from torch import Tensor

from meco_timm.networks import Stream


class Offloader:
    """Keeps at most `limit` streams on `device`. Weights never change, so moving one off the device needs no copy.

    Copies to the device are asynchronous, from pinned memory; on a CPU nothing is copied. Tested on CPUs only.
    """

    def __init__(self, limit: int, device: torch.device):
        self.limit, self.device = limit, device
        self.on_device: list[str] = []
        self._weights: dict[str, list[tuple[Tensor, Tensor]]] = {}  # (tensor, its value on the host) of each stream

    def add(self, name: str, stream: Stream) -> None:
        """Register a stream and offload it."""
        tensors = [*stream.parameters(), *stream.buffers()]
        self._weights[name] = [(tensor, self._on_host(tensor.data)) for tensor in tensors]
        self._unload(name)

    def load(self, names: Iterable[str]) -> None:
        """Have the first `limit` distinct streams of `names` on the device, and no others."""
        wanted: list[str] = []
        for name in names:
            if name not in wanted:
                wanted.append(name)
            if len(wanted) == self.limit:
                break
        for name in set(self.on_device) - set(wanted):
            self._unload(name)
        for name in wanted:
            if name not in self.on_device:
                self._load(name)
        self.on_device = wanted

    def _on_host(self, tensor: Tensor) -> Tensor:
        return tensor.cpu().pin_memory() if self.device.type == "cuda" else tensor.cpu()

    def _load(self, name: str) -> None:
        for tensor, value in self._weights[name]:
            tensor.data = value.to(self.device, non_blocking=True)

    def _unload(self, name: str) -> None:
        for tensor, value in self._weights[name]:
            tensor.data = value
