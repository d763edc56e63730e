"""5 · Fewer teachers on the device than there are: the others wait in the host's memory until their step is near."""

from collections.abc import Iterable

import torch
from torch import Tensor

from meco_timm.networks import Stream


class Residents:
    """At most `limit` of some streams on `device`. Weights never change, so that leaving costs no copy.

    Copies are queued on the device behind the work that it has, and wait for nothing; on a CPU there are none. Run on
    CPUs only, never on GPUs.
    """

    def __init__(self, limit: int, device: torch.device):
        self.limit, self.device = limit, device
        self.here: list[str] = []
        self._weights: dict[str, list[tuple[Tensor, Tensor]]] = {}  # tensors of a stream, and their values on the host

    def admit(self, name: str, stream: Stream) -> None:
        """Take a stream in; it waits on the host."""
        tensors = [*stream.parameters(), *stream.buffers()]
        self._weights[name] = [(tensor, self._on_host(tensor.data)) for tensor in tensors]
        self._leave(name)

    def bring(self, names: Iterable[str]) -> None:
        """Have the first `limit` different streams of `names` on the device, and none else."""
        wanted: list[str] = []
        for name in names:
            if name not in wanted:
                wanted.append(name)
            if len(wanted) == self.limit:
                break
        for name in set(self.here) - set(wanted):
            self._leave(name)
        for name in wanted:
            if name not in self.here:
                self._arrive(name)
        self.here = wanted

    def _on_host(self, tensor: Tensor) -> Tensor:
        return tensor.cpu().pin_memory() if self.device.type == "cuda" else tensor.cpu()

    def _arrive(self, name: str) -> None:
        for tensor, value in self._weights[name]:
            tensor.data = value.to(self.device, non_blocking=True)

    def _leave(self, name: str) -> None:
        for tensor, value in self._weights[name]:
            tensor.data = value
