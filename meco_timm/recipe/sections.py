"""The sections `data` and `loop` of a recipe.

Nothing here imports torch.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from meco_timm.common import expand, get_logger
from meco_timm.recipe.shipped import shipped_data

logger = get_logger(__name__)

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
FilePath = Annotated[str, AfterValidator(expand)]  # a file, a folder, or a Hub id, none of which begins with ~
NotNegative = Annotated[float, Field(ge=0)]
Switch = Literal["auto", True, False]
SWITCH = {"yes": True, "on": True, "no": False, "off": False}
# Keys of a loop that do not change its result, but for its rounding.
WATCHING = ("log_every", "checkpoint_minutes", "checkpoint_steps", "compile")


AnyObjectSection = TypeVar("AnyObjectSection", bound="ObjectSection")


class Section(BaseModel):
    """Strict: an unknown key, a value of another type and a non-finite number are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any, info: ValidationInfo) -> Any:
        """`yes` and `off` are texts, and truth values where a key has no other."""
        is_switch = cls.model_fields[str(info.field_name)].annotation in (bool, Switch)
        return SWITCH.get(value.lower(), value) if is_switch and isinstance(value, str) else value


class ObjectSection(Section):
    """A section for which a Python caller may give an object in place of a name.

    The object is no part of the YAML, which has `object:NAME@DIGEST` instead, so that a run is continued only with the
    same object.
    """

    _object: Any = PrivateAttr(default=None)

    @property
    def object(self) -> Any:
        """The object; None where the YAML says everything."""
        return self._object

    def with_object(self: AnyObjectSection, held: Any, **changes: Any) -> AnyObjectSection:
        """A copy with this object, and with these keys changed."""
        copy = self.model_copy(update=changes)
        copy._object = held
        return copy


class Augmentation(Section):
    """Random views of a training image, made by `timm.data.create_transform`."""

    crop_mode: Literal["rrc", "rkrc", "rkrr"] = "rrc"
    """timm's `train_crop_mode`: random resized crop, or resize keeping the ratio and then crop."""
    scale: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [0.08, 1.0]
    """Area of the random crop, as a share of the image: [smallest, largest]."""
    ratio: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [0.75, 1.3333]
    """Aspect ratio of the random crop: [smallest, largest]."""
    hflip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of a horizontal flip. Digits and letters want 0."""
    vflip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of a vertical flip."""
    color_jitter: NotNegative = 0.0
    """Strength of brightness, contrast and saturation jitter; 0 is none."""
    auto_augment: str | None = None
    """timm's name of a policy, for example `rand-m9-mstd0.5` (RandAugment) or `3a`."""
    repeats: Annotated[int, Field(gt=0)] = 1
    """Views of each image within one batch (repeated augmentation); an epoch then takes `repeats` times the steps."""

    @model_validator(mode="after")
    def _in_order(self) -> "Augmentation":
        for key in ("scale", "ratio"):
            smallest, largest = getattr(self, key)
            if smallest > largest:
                raise ValueError(f"{key} is written [smallest, largest], but {smallest} is larger than {largest}")
        return self


def _number_of_labels(value: Any) -> int | str:
    text = str(value)
    if not re.fullmatch(r"[1-9]\d*( per class)?", text):
        raise ValueError("write a number above 0, or for example 10 per class")
    return text if text.endswith("class") else int(text)


class Data(ObjectSection):
    """Where the images come from and how they reach the networks: un-normalised, at `image_size`."""

    source: Annotated[FilePath, AfterValidator(shipped_data)]
    """A Hub id (`zalando-datasets/fashion_mnist`), a folder of class folders (directly, or under `train/` and
    `test/`), or a folder of parquet files or webdataset tars named `train*` and `test*`. Where labels are numbers, a
    file `classes.txt` in it may name the classes, one a line."""
    subset: str | None = None
    """Which of several data sets under one Hub id (its "subset" or configuration), as `cropped_digits` of SVHN."""
    buffer: Annotated[int, Field(gt=0)] | None = None
    """Number of consecutive images that are shuffled together; null for all of them. For parquet files of many GB: with
    2048, each is read from its beginning to its end, and the order of the files is drawn anew each epoch. Each loader
    process keeps about this many undecoded images of parquet files in memory (110 kB each for ImageNet)."""
    unlabelled: FilePath | None = None
    """More images, whose labels are not known or not looked at: a Hub id or folder as `source` may be, or a folder of
    plain image files. The student learns from them too; teachers and the student alone do not see them."""
    max_bad: Annotated[int, Field(ge=0)] = 0
    """Largest number of unreadable training images in a run: each is named and replaced by the next readable one. One
    more stops the run. Validation and test images must all be readable."""
    verify: Literal["auto", "all", "none"] = "auto"
    """Decode every image once before the first training, so that all unreadable ones are listed at the start: `auto` up
    to 200,000 images, `all`, or `none`. The result is kept in the folder `.images` of `zoo.folder`."""
    copies: Literal["warn", "drop"] = "warn"
    """Images that are in two splits, or in two classes, are counted and named before training. `drop` takes those
    that are also test or validation images, and those in two classes, out of the training images."""
    image_column: str | None = None
    """Column of images, or their extension in tars; found automatically if there is only one."""
    label_column: str | None = None
    """Column of class labels, or an extension or a json key in tars; found automatically if there is only one."""
    train_split: str = "train"
    """Split to train on; the validation images are taken out of it."""
    test_split: str | None = None
    """Split that is used once, at the end. By default `test`, else `validation`; a source with neither gives
    `test_fraction` of its images."""
    test_fraction: Fraction = 0.2
    """Share of the images held out for the test when the source has no such split."""
    validation: Fraction = 0.1
    """Share of the training images held out to choose the best weights; 0 keeps the last weights."""
    labelled: Annotated[int | str, BeforeValidator(_number_of_labels)] | None = None
    """Training labels to keep (seeded): their number, stratified by class, or for example `10 per class`. Teachers and
    the student alone train on these images; the student on all, since soft labels need no label. Validation labels are
    extra."""
    images: Annotated[int, Field(gt=0)] | None = None
    """Only so many training images for the student and the student alone (stratified by class, seeded): few images of
    your own, and teachers that have learned from more. Teachers train on all; validation images are extra."""
    sampling: Literal["natural", "balanced"] = "natural"
    """Of trainings on labels (teachers, the student alone): `natural` shows every image once an epoch; `balanced` shows
    each class alike, images of rare classes several times an epoch, each time in another view, and of frequent ones
    some. An epoch is as long either way."""
    student_sees: Literal["all", "labelled"] = "all"
    """Whether the student also learns from the training images whose labels `labelled` hides."""
    image_size: Annotated[int, Field(gt=0)] = 224
    """Height and width of the batch and of the student's input, in pixels."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation resizes to `image_size / crop_pct` and crops the centre, as timm does."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bicubic"
    """Resizing filter."""
    background: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)] = [
        255,
        255,
        255,
    ]
    """Red, green and blue of what transparent images are laid on, white by default. Predictions do the same."""
    cache: Literal["auto", "memory", "none"] = "auto"
    """Decode training and validation images once, into a file in the folder `.images` of `zoo.folder`, which the
    processes of a machine share in memory: `auto` where they take at most a tenth of the free memory, `memory` always,
    or `none`. Results do not depend on it."""
    augment_on: Literal["auto", "loader", "device"] = "auto"
    """How the views of cached images are made: `loader` by timm's transform, image by image; `auto` a batch at a time,
    resized on a GPU or by what is faster on a CPU; `device` the same, always by matrix products. The pixels are the
    same. Views with more than crops and flips are made by timm's transform."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Loader processes per device; results do not depend on it."""
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="before")
    @classmethod
    def _read_in_place(cls, keys: Any) -> Any:
        if isinstance(keys, dict) and "streaming" in keys:
            logger.warning("data.streaming: files are always read in place now; take the key out")
            return {name: value for name, value in keys.items() if name != "streaming"}
        return keys

    @model_validator(mode="after")
    def _unlabelled_are_seen(self) -> "Data":
        if self.unlabelled is not None and self.student_sees == "labelled":
            raise ValueError("unlabelled images are for the student, which sees only the labelled ones; drop one key")
        if self.images is not None and self.labelled is not None:
            raise ValueError("images limits what the student sees, labelled what the teachers do; drop one key")
        return self


class Loop(Section):
    """One training run: of the student, of the student alone, and, changed by `zoo.loop`, of each teacher."""

    epochs: Positive | None = None
    """Passes over the student's training images. Give this or `steps`."""
    steps: Annotated[int, Field(gt=0)] | None = None
    """Optimizer steps. Give this or `epochs`; 100 epochs when neither is given."""
    min_steps: Annotated[int, Field(ge=0)] = 0
    """Smallest number of steps, where the `epochs` of few images are fewer."""
    batch_size: Annotated[int, Field(gt=0)] = 128
    """Images per step, per process and per accumulated part."""
    accumulation: Annotated[int, Field(gt=0)] = 1
    """Parts (micro-batches) whose gradients are added up into one step."""
    optimizer: str = "adamw"
    """Any name of `timm.optim.list_optimizers()`."""
    lr: Positive = 1e-3
    """Highest learning rate; not scaled by batch size or processes."""
    weight_decay: NotNegative = 0.05
    """Not applied to norms and biases."""
    momentum: Fraction = 0.9
    """For optimizers that have it."""
    schedule: Literal["cosine", "step", "multistep", "poly", "tanh", "none"] = "cosine"
    """timm's schedule, counted in steps."""
    milestones: list[Fraction] = [0.5, 0.8333]
    """For `multistep`: the learning rate is cut to a tenth at these shares of the run."""
    warmup: Fraction = 0.05
    """Share of the run in which the learning rate rises from 0."""
    clip_grad: Positive | None = 1.0
    """Largest gradient norm; null for no clipping."""
    label_smoothing: Fraction = 0.0
    """For training on labels."""
    class_weights: Literal["none", "balanced"] = "none"
    """Of cross-entropy with the labels: `balanced` weighs a class by N / (K · its images), N labelled images of K
    classes, so that rare classes count as much as frequent ones."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from each layer to the one before it, for pretrained networks; null for none."""
    mixup: NotNegative = 0.0
    """Alpha of mixup; teacher and student see the same mixed image. 0 for none."""
    cutmix: NotNegative = 0.0
    """Alpha of cutmix; with mixup, each is drawn half of the time. 0 for none."""
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a rectangle of an image is set to black."""
    gradient_checkpointing: bool = False
    """Trade time for memory, in networks for which timm supports it. Batch norm then updates its statistics twice per
    step."""
    channels_last: Switch = "auto"
    """Memory format of the network that is trained: `auto` is true on a CUDA device in mixed precision for a network
    with convolutions over neighbours, else false. Teachers always have it."""
    compile: Switch = "auto"
    """Compile the network that is trained and each teacher (`torch.compile`), which takes minutes: `auto` on a CUDA
    device from 10,000 steps on. An interrupted run goes on as it began; a value written here may change meanwhile."""
    ema: Fraction = 0.0
    """Decay of the weights' moving average, which is then evaluated and kept; 0 for none."""
    validations: Annotated[int, Field(gt=0)] = 20
    """Number of validations per run, evenly spread."""
    best: Literal["top1", "nll"] = "top1"
    """Validation measure that decides which weights are kept."""
    patience: Annotated[int, Field(gt=0)] | None = None
    """Stop after this many validations without improvement; null for never."""
    checkpoint_minutes: Positive = 5.0
    """Minutes between two checkpoints, from which an interrupted run continues exactly; the last two are kept."""
    checkpoint_steps: Annotated[int, Field(gt=0)] | None = None
    """Steps between two checkpoints, in addition to `checkpoint_minutes`."""
    log_every: Annotated[int, Field(gt=0)] = 10
    """Steps between two lines of metrics.jsonl; the only moments when the loss is read from the device."""

    @model_validator(mode="after")
    def _one_budget(self) -> "Loop":
        return self._with_one_budget()

    def _with_one_budget(self) -> "Loop":
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps exclude each other; keep one")
        if self.min_steps and self.steps is not None:
            raise ValueError("min_steps goes with epochs, and steps says the number itself; keep one")
        return self

    def changed_by(self, other: "Loop") -> "Loop":
        """These settings, changed by the keys that are written in `other`.

        Raises:
            ValueError: `other` has min_steps, and these settings steps.
        """
        changes = {key: getattr(other, key) for key in other.model_fields_set}
        if changes.get("steps") is not None or changes.get("epochs") is not None:
            changes = {"steps": None, "epochs": None, "min_steps": 0} | changes
        return self.model_copy(update=changes)._with_one_budget()
