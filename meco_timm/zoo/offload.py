"""Teacher offloading: a limited number of teachers is on the device, the others are in the host's memory."""

from collections.abc import Iterable

import torch
from torch import Tensor

from meco_timm.networks import Stream


class Offloader:
    """Keeps at most `limit` streams on `device`. Weights never change, so moving one off the device needs no copy.

    On a GPU copies go from pinned memory and on a stream of their own, beside the student's step; on a CPU nothing is
    copied.
    """

    def __init__(self, limit: int, device: torch.device):
        self.limit, self.device = limit, device
        self.on_device: list[str] = []
        self._weights: dict[str, list[tuple[Tensor, Tensor]]] = {}  # (tensor, its value on the host) of each stream
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._arrived: dict[str, torch.cuda.Event] = {}

    def add(self, name: str, stream: Stream) -> None:
        """Register a stream and offload it."""
        tensors = [*stream.parameters(), *stream.buffers()]
        self._weights[name] = [(tensor, self._on_host(tensor.data)) for tensor in tensors]
        self._unload(name)

    def load(self, names: Iterable[str]) -> None:
        """Have the first `limit` distinct streams of `names` on the device, and no others; they may still be on their
        way (`wait`)."""
        wanted = list(dict.fromkeys(names))[: self.limit]
        for name in set(self.on_device) - set(wanted):
            self._unload(name)
        if missing := [name for name in wanted if name not in self.on_device]:
            self._load(missing)
        self.on_device = wanted

    def wait(self, name: str) -> None:
        """Have the device's work from here on wait until this stream's weights have arrived; the host does not wait."""
        if event := self._arrived.pop(name, None):
            torch.cuda.current_stream(self.device).wait_event(event)

    def _on_host(self, tensor: Tensor) -> Tensor:
        return tensor.cpu().pin_memory() if self.device.type == "cuda" else tensor.cpu()

    def _load(self, names: list[str]) -> None:
        if self._copies is None:
            for name in names:
                self._copy(name)
            return
        # Memory of teachers just unloaded may be written to: only after the work on them that is under way.
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            for name in names:
                self._copy(name)
                self._arrived[name] = self._copies.record_event()

    def _copy(self, name: str) -> None:
        for tensor, value in self._weights[name]:
            tensor.data = value.to(self.device, non_blocking=True)

    def _unload(self, name: str) -> None:
        self._arrived.pop(name, None)
        for tensor, value in self._weights[name]:
            tensor.data = value
