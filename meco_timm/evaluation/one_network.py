"""Evaluate one timm network on any data set, with the same measures as the table of a run."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from timm.data import resolve_data_config
from torch import Tensor

from meco_timm.common import ProgressBar, Status, UserError, get_logger, join_names
from meco_timm.data import DataSource, load_data, whole_split
from meco_timm.evaluation.class_check import check_classes
from meco_timm.evaluation.measures import class_accuracies, mean_of_known, quality
from meco_timm.evaluation.own_run import OwnRun, count_trained_on, find_network, read_own_run, same_source
from meco_timm.evaluation.rows import Row
from meco_timm.evaluation.table import table_row
from meco_timm.networks import LOGITS_ONLY, NEVER, Stream, assumed_pairs, known_by_name, make_network, teacher_stream
from meco_timm.recipe import Data, Teacher

logger = get_logger(__name__)
COMMAND = "evaluate"  # in messages
VIEW = {"image_size", "crop_pct", "interpolation"}  # keys of `data` that follow from the network


class Measured(NamedTuple):
    """A network on a split. title: the split, its number of images, and how many its own run trained on.

    rows: among the classes of the data set, and, where the network has others, before it among all of the network's.
    """

    rows: list[Row]
    title: str


class Chosen(NamedTuple):
    """The images to evaluate on (`data.test`), a name for them, and how many its own run trained on, in words."""

    data: DataSource
    name: str
    trained_on: str = ""


def evaluate(
    model: str | Teacher, data: str | Path | Data | DataSource, split: str | None = None, batch_size: int = 64
) -> Row:
    """Accuracy, calibration and cost of a network on a split of a data set; one process, one device.

    model: a timm name, `hf-hub:owner/name` or `local-dir:path`, the folder of a run for its student, or a `Teacher`
    (input size, class map, weights).
    data: a source as in a recipe's `data.source`, read with the network's own size, crop and filter; or a recipe's
    `Data`; or a `DataSource`, of which the test split is used. split: by default `test`, else `validation`, else the
    images that the network's own run held out for the test, else the first.

    Returns:
        top1, top5 and ece in per cent, nll in nats, multiply_adds of one image, images_per_s measured on this device.
        Of a network with other classes too: among those of the data set.

    Raises:
        UserError: the network or the data cannot be loaded, or their classes do not match.
    """
    return measure(model, data, split, batch_size).rows[-1]


@torch.no_grad()
def measure(
    model: str | Teacher, data: str | Path | Data | DataSource, split: str | None = None, batch_size: int = 64
) -> Measured:
    """Evaluate a network as `evaluate` does, and say on which images and among which classes."""
    network = Teacher(model=model) if isinstance(model, str) else model
    name = network.model
    place, folder = find_network(name, COMMAND)
    network = network.model_copy(update={"model": place})
    with Status("reading the data"):
        chosen = _choose_images(network, data, split, read_own_run(folder) if folder else None)
    device, classes = PartialState().device, chosen.data.classes
    stream = teacher_stream(network, LOGITS_ONLY, classes, role=COMMAND).to(device).eval()
    class_map, stream.class_map = stream.class_map, None
    outputs, labels = [], []
    with ProgressBar("images evaluated", len(chosen.data.test)) as bar:
        for batch in chosen.data.in_order(chosen.data.test, batch_size):
            outputs.append(stream.logits(batch.image.to(device)).float().cpu())
            labels.append(batch.label)
            bar.step(sum(map(len, labels)))
    logits, label = torch.cat(outputs), torch.cat(labels)
    # A class that the network lacks has a logit of its own, so that its images count as errors.
    logits = torch.cat([logits, torch.full((len(logits), 1), NEVER)], 1)
    columns = torch.arange(len(classes)) if class_map is None else class_map.cpu() % logits.shape[1]
    present = logits[:, columns]
    _report_class_order(network, stream, classes, present, label, class_map)
    row = table_row(name, [stream], present, label, device, classes)
    title = f"{chosen.name}: {len(label):,} images{chosen.trained_on}"
    if stream.model.num_classes <= len(classes):
        return Measured([row], title)
    accuracies = class_accuracies(logits, columns[label])
    accuracies = [accuracies[column] for column in columns]
    whole = row._replace(
        name=f"{name}, among its {stream.model.num_classes:,} classes",
        **quality(logits, columns[label]),  # type: ignore[arg-type]
        balanced=mean_of_known(accuracies),
        per_class=dict(zip(classes, accuracies, strict=True)),
    )
    return Measured([whole, row._replace(name=f"{name}, among the {len(classes):,} of the data")], title)


def _choose_images(
    network: Teacher, data: str | Path | Data | DataSource, split: str | None, run: OwnRun | None
) -> Chosen:
    if isinstance(data, DataSource):
        return Chosen(data, "Test split")
    settings = data if isinstance(data, Data) else data_for(network, str(data))
    same = run is not None and same_source(settings.source, run.settings.source)
    if run and same and not isinstance(data, Data):
        settings = run.settings.model_copy(update=settings.model_dump(include=VIEW))
    source, name = whole_split(settings, split)
    title = f"{name[:1].upper()}{name[1:]} split of {settings.source}"
    if run is None:
        return Chosen(source, title)
    if same and split is None and name == settings.train_split:
        held_out = load_data(settings, run.seed)
        return Chosen(held_out, f"The test images of its run, of {settings.source}", ", none of which it trained on")
    try:
        count = count_trained_on(source.test, run)
    except UserError as error:
        return Chosen(source, title, f"; how many of them its run trained on is not known ({error})")
    return Chosen(source, title, f", of which its run trained on {f'{count:,}' if count else 'none'}")


def data_for(network: Teacher, source: str) -> Data:
    """The data set with the image size, crop and filter of the network's config."""
    model, size = make_network(network, {}, True, network.size, COMMAND, weightless=True)
    config = resolve_data_config(pretrained_cfg=model.pretrained_cfg, model=model)
    wanted = config["interpolation"]
    interpolation: Any = wanted if wanted in ("bilinear", "bicubic", "nearest") else "bicubic"
    crop_pct = min(float(config["crop_pct"]), 1.0)
    return Data(source=source, image_size=size, crop_pct=crop_pct, interpolation=interpolation)


def _report_class_order(
    network: Teacher, stream: Stream, classes: list[str], logits: Tensor, label: Tensor, class_map: Tensor | None
) -> None:
    """Log where the order of the network's classes is assumed, and where another fits better."""
    if pairs := [] if network.classes or class_map is not None else assumed_pairs(stream.model, classes):
        logger.warning(
            "%s: classes of other names are taken to be the same: %s. If they are not: --mask, or --classes FILE.",
            network.model, join_names(pairs),
        )  # fmt: skip
    elif not network.classes and class_map is None and not known_by_name(stream.model, classes):
        logger.info(
            "note: %s has %d classes without names; they are taken to be in the order of the data set: %s",
            network.model, len(classes), join_names(classes, 5),
        )  # fmt: skip
    check = check_classes(logits, label, classes, class_map)
    if check.other:
        logger.warning(
            "%s: %s, but %.1f %% with its classes in %s (%s). Write its class names in that order into a file, one a "
            "line, and name it with --classes (in a recipe: `classes:` of the teacher).",
            network.model, check, check.other.accuracy, check.other.name, join_names(check.other.names, 3),
        )  # fmt: skip
    elif check.at_chance:
        logger.warning("%s: %s: it does not know these classes, or has them in another order.", network.model, check)
