"""The plan's tables of networks and blocks."""

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_INCEPTION_MEAN, OPENAI_CLIP_MEAN

from meco_timm.common import Table
from meco_timm.networks import Stream, is_hub_or_folder
from meco_timm.recipe import Network, Recipe, Teacher

BlockShapes = list[tuple[str, list[int], tuple[int, ...]]]  # (module, C×H×W, aligned shape) of each
NORMALISATIONS = {
    IMAGENET_DEFAULT_MEAN: "ImageNet",
    IMAGENET_INCEPTION_MEAN: "0.5",
    OPENAI_CLIP_MEAN: "CLIP",
    (0.0,) * 3: "none",
}


def networks_table(recipe: Recipe, student: Stream, teachers: dict[str, Stream], classes: list[str]) -> Table:
    """Size, input, classes, weights and licence of each network."""
    heads = ["network", "params M", "MACs M", "MiB", "input px", "normalised", "classes", "weights", "licence"]
    networks = zip(teachers.items(), recipe.teachers, strict=True)
    rows = [["student", *_network_cells(recipe.student, student, len(classes))]]
    rows += [[name, *_network_cells(teacher, stream, len(classes))] for (name, stream), teacher in networks]
    return Table(heads, rows, frozenset(heads[1:5]))


def _network_cells(network: Network, stream: Stream, classes: int) -> list[str]:
    mean, std = tuple(stream.data_config["mean"]), tuple(stream.data_config["std"])
    numbers = " / ".join(",".join(f"{v:.3g}" for v in values) for values in (mean, std))
    return [
        f"{stream.parameter_count / 1e6:.2f}",
        f"{stream.multiply_adds() / 1e6:.1f}",
        f"{stream.parameter_count * 4 / 2**20:.1f}",
        str(stream.size),
        NORMALISATIONS.get(mean) or numbers,
        _class_cell(stream, classes),
        _weights_cell(network, stream, classes),
        str(stream.model.pretrained_cfg.get("license") or "–") if network.names_weights else "–",
    ]


def _class_cell(stream: Stream, classes: int) -> str:
    if not stream.has_logits:
        return "none" if stream.has_embedding else "none: blocks only"
    own = stream.model.num_classes
    return f"{own}" if stream.class_map is None else f"{own} mapped to {classes}"


def _weights_cell(network: Network, stream: Stream, classes: int) -> str:
    """Where the weights come from, and whether they are trained first."""
    cfg, is_teacher = stream.model.pretrained_cfg, isinstance(network, Teacher)
    frozen = isinstance(network, Teacher) and not network.train
    if network.object is not None:
        source = "as given"
        new_head = not frozen and network.object.module.num_classes != classes
    else:
        # A timm name with its tag stands in the first column.
        own = "its own" if is_teacher and not is_hub_or_folder(network.model) else network.model
        source = network.weights or (
            own if network.names_weights else f"timm tag {cfg.get('tag')}" * frozen or "random"
        )
        new_head = network.names_weights and not network.weights and cfg.get("num_classes") != classes
    if frozen:
        return source
    first = "fine-tuned first" if network.object is None and network.names_weights else "trained first"
    return ", ".join([source, *(["new head"] if new_head else []), *([first] if is_teacher else [])])


def blocks_table(recipe: Recipe, shapes: dict[str, BlockShapes]) -> Table:
    """`layer2 64×8×8 → 16×4×4` for each block of each network."""
    rows = []
    for name, blocks in shapes.items():
        cells = [f"{module} {'×'.join(map(str, shape))} → {'×'.join(map(str, to))}" for module, shape, to in blocks]
        cells = cells or ["none: logits only"]
        rows.append([name, *cells, *[""] * (recipe.alignment.blocks - len(cells))])
    return Table(["blocks", *map(str, range(recipe.alignment.blocks))], rows)


@torch.no_grad()
def block_shapes(stream: Stream) -> BlockShapes:
    """Module, shape and aligned shape of each block that is compared."""
    if not stream.taps:
        return []
    image = stream.prepare(torch.zeros(1, 3, stream.size, stream.size, device=stream.mean.device))
    maps = stream.model.forward_intermediates(image, indices=stream.taps, output_fmt="NCHW", intermediates_only=True)
    names = [stream.model.feature_info[i].get("module", str(i)) for i in stream.taps]
    return [(name, list(m.shape[1:]), to) for name, m, to in zip(names, maps, stream.block_shapes, strict=True)]
