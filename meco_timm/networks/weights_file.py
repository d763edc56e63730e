"""The local file that a network's weights come from. Nothing here imports torch."""

from pathlib import Path

from meco_timm.common import FOLDERS, digest_of
from meco_timm.recipe import Network


def weights_file_digest(network: Network) -> str | None:
    """Digest of the local weights file that a network starts from; None if there is none."""
    place = network.model.partition(":")[2] if network.model.startswith(FOLDERS) else ""
    file = Path(network.weights or f"{place}/model.safetensors")
    return digest_of(file) if (network.weights or place) and file.is_file() else None
