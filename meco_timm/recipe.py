"""1 · The recipe: what can be written in the YAML, with types, defaults and meaning.

Nothing here imports torch, so a wrong recipe is refused in well under a second. `reading.py` puts YAML, command-line
overrides and error messages on top. Sections are named as the modules that read them.
"""

from math import isqrt
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Similarity = Literal["l1", "l2", "kl", "ce"]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
WATCHING = ("log_every", "checkpoint_minutes", "checkpoint_steps")  # keys of a loop that do not change its result
NotNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Strict: an unknown key or a value of another type is an error, never ignored; no infinite number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


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
    """timm's word for a policy, for example `rand-m9-mstd0.5` (RandAugment) or `3a`."""
    repeats: Annotated[int, Field(gt=0)] = 1
    """Views of each image within one batch (repeated augmentation); an epoch then takes so many times the steps."""


class Data(Section):
    """Where the images come from and how they reach the networks: un-normalised, at `image_size`."""

    source: str
    """A Hub id (`zalando-datasets/fashion_mnist`), a folder of class folders (directly, or under `train/` and
    `test/`), or a folder of parquet files named `train*` and `test*`."""
    image_column: str | None = None
    """Column of images; found by itself when there is only one."""
    label_column: str | None = None
    """Column of class labels; found by itself when there is only one."""
    train_split: str = "train"
    """Split to train on; the validation images are taken out of it."""
    test_split: str | None = None
    """Split that is used once, at the end. By default `test`, else `validation`; a source with neither gives
    `test_fraction` of its images."""
    test_fraction: Fraction = 0.2
    """Share of the images held out for the test when the source has no such split."""
    validation: Fraction = 0.1
    """Share of the training images held out to choose the best weights; 0 keeps the last weights."""
    labelled: Annotated[int, Field(gt=0)] | None = None
    """Keep only so many training labels (stratified by class, seeded). Teachers and the student alone train on
    these images; the student trains on all of them, since soft labels need no label. Validation labels are extra."""
    student_sees: Literal["all", "labelled"] = "all"
    """Whether the student also learns from the training images whose labels `labelled` hides."""
    image_size: Annotated[int, Field(gt=0)] = 224
    """Height and width of the batch and of the student's input, in pixels."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation resizes to `image_size / crop_pct` and crops the centre, as timm does."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bicubic"
    """Resizing filter."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Loader processes per device; results do not depend on it."""
    augmentation: Augmentation = Augmentation()


class Loop(Section):
    """One training run: of the student, of the student alone, and, changed by `zoo.loop`, of each teacher."""

    epochs: Positive | None = None
    """Passes over the student's training images. Give this or `steps`."""
    steps: Annotated[int, Field(gt=0)] | None = None
    """Optimizer steps. Give this or `epochs`; 100 epochs when neither is given."""
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
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from each layer to the one before it, for pretrained networks; null for none."""
    mixup: NotNegative = 0.0
    """Alpha of mixup; teacher and student see the same mixed image. 0 for none."""
    cutmix: NotNegative = 0.0
    """Alpha of cutmix; with mixup, each is drawn half of the time. 0 for none."""
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a rectangle of an image is blackened."""
    gradient_checkpointing: bool = False
    """Trade time for memory, in networks that timm can do it for."""
    channels_last: bool = False
    """Memory format of the networks that are trained; faster for CNNs on GPUs with mixed precision."""
    ema: Fraction = 0.0
    """Decay of the weights' moving average, which then is what is evaluated and kept; 0 for none."""
    validations: Annotated[int, Field(gt=0)] = 20
    """How often per run the validation split is looked at, evenly spread."""
    best: Literal["top1", "nll"] = "top1"
    """What of the validation split decides which weights are kept."""
    patience: Annotated[int, Field(gt=0)] | None = None
    """Stop after so many validations without a better one; null for never."""
    checkpoint_minutes: Positive = 5.0
    """Minutes between two checkpoints, from which an interrupted run goes on exactly; the last two are kept."""
    checkpoint_steps: Annotated[int, Field(gt=0)] | None = None
    """Steps between two checkpoints, besides."""
    log_every: Annotated[int, Field(gt=0)] = 10
    """Steps between two lines of metrics.jsonl; the only moments when the loss is read from the device."""

    @model_validator(mode="after")
    def _one_budget(self) -> "Loop":
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps exclude each other; keep one")
        return self

    def changed_by(self, other: "Loop") -> "Loop":
        """These settings with what `other` says explicitly on top."""
        said = {key: getattr(other, key) for key in other.model_fields_set}
        if said.get("steps") is not None or said.get("epochs") is not None:
            said = {"steps": None, "epochs": None} | said
        return self.model_copy(update=said)


class Network(Section):
    """A timm network. A name with a tag (`resnet18.a1_in1k`), `hf-hub:` or `local-dir:` names weights, a bare
    architecture (`resnet18`) does not."""

    model: str
    """timm name, `hf-hub:owner/name[@revision]` or `local-dir:path`."""
    args: dict[str, Any] = {}
    """Keyword arguments for `timm.create_model`, for example `{drop_path_rate: 0.1}`."""
    weights: str | None = None
    """A state dict of this network, `.safetensors` or `.pth`; a pickle that holds more than tensors is refused."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @property
    def names_weights(self) -> bool:
        return self.weights is not None or "." in self.model or ":" in self.model


class Teacher(Network):
    """A member of the zoo: `resnet18.a1_in1k` brings its weights; `train: resnet18` is first trained on the labels."""

    train: bool = False
    """Trained on the data set's labels first: from random weights, or from the named ones (fine-tuning)."""
    size: Annotated[int, Field(gt=0)] | None = None
    """Input size in pixels; by default the size it was trained at, `data.image_size` for a network trained here.
    The batch is resized for it."""
    gives: Literal["all", "blocks", "logits"] = "all"
    """What the student learns from it. A network without a head (DINO, CLIP, SAM encoders) gives its blocks only."""
    classes: str | list[int | str] | None = None
    """Where its class set differs: a file with the teacher's class names, one a line, or a list with the teacher's
    class (number or name) for each class of the data set. By default found by name, if its config has names."""
    missing: Literal["error", "mask"] = "error"
    """Classes of the data set that the teacher does not know: refused, or `mask`: it never speaks of them."""
    loop: Loop = Loop()
    """What differs from `zoo.loop` in this teacher's training."""

    @model_validator(mode="before")
    @classmethod
    def _from_train(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("train"), str) and "model" not in value:
            return value | {"model": value["train"], "train": True}
        return value


class Zoo(Section):
    """The teachers' house: how they are drawn, and how and where those that need it are trained."""

    sampling: Literal["random", "average"] = "random"
    """`random`: one teacher per step, drawn from (seed, step), as in the paper. `average`: the mean of all, every
    step, at the cost of all (MEAL V2)."""
    scope: Literal["all", "process"] = "all"
    """Of `random`, on several processes: one teacher for `all` in a step, or one for each `process`."""
    folder: str = "zoo"
    """Trained teachers are kept here, each under a name with a hash of all that made it, and used again."""
    loop: Loop = Loop()
    """What differs from `loop` while teachers are trained."""


class Alignment(Section):
    """How feature maps of any shape become vectors of one length (alignment.py)."""

    blocks: Annotated[int, Field(ge=0)] = 4
    """Blocks compared per network, chosen by relative depth; 0 compares logits only."""
    method: Literal["flatten", "channel_mean", "grid", "attention"] = "grid"
    """`flatten`: adaptive pooling of all values in a row (the paper). `channel_mean`: pooled over positions, mean over
    channels (the released code). `grid`: channels and positions pooled apart, so positions are kept. `attention`:
    energy per position, comparable between any two networks."""
    length: Annotated[int, Field(ge=16)] = 256
    """d, the aligned length: a multiple of 16 for `grid` (4 × 4 positions), a square for `attention`."""
    projection: bool = False
    """A learned linear map on the student's side, thrown away after training."""

    @model_validator(mode="after")
    def _length_fits(self) -> "Alignment":
        if self.method == "grid" and self.length % 16:
            raise ValueError(f"length {self.length} is not a multiple of 16, which method grid needs (4 × 4 positions)")
        if self.method == "attention" and isqrt(self.length) ** 2 != self.length:
            raise ValueError(f"length {self.length} is not a square, which method attention needs")
        return self


class Losses(Section):
    """Similarity between teacher and student (losses.py)."""

    similarity: Literal["l1", "l2", "kl", "ce", "dist"] = "ce"
    """Between softened logits. The paper found `ce` best of its four; `dist` compares correlations instead."""
    temperature: Positive = 4.0
    """Softens both sides; `ce`, `kl` and `dist` are multiplied by its square."""
    logits: NotNegative = 1.0
    """Weight of the logits' similarity."""
    block_similarity: Similarity = "l2"
    """Between aligned blocks: l1 and l2 on standardised vectors, kl and ce on their softmax."""
    blocks: NotNegative | list[NotNegative] = 0.3
    """Weight of the blocks' similarity: one for all or a list, first block first."""
    labels: NotNegative = 0.0
    """Weight of cross-entropy with the labels, on images that have one. The paper's form is 0: soft labels only."""


class Discriminators(Section):
    """One small classifier per block, teacher or student? The student is trained against them (discriminators.py)."""

    adversary: Literal["minimax", "non_saturating", "cooperative", "none"] = "minimax"
    """`minimax`: the paper's game, by gradient reversal. `non_saturating`: the usual GAN loss for the student.
    `cooperative`: what the paper's released code does, the student helps the discriminator. `none`."""
    on: Literal["blocks", "logits", "all"] = "all"
    """Which outputs have a discriminator."""
    weight: Positive = 0.1
    """Strength of the adversary's gradient on the student; the discriminators themselves always learn at full."""
    lr: Positive = 1e-3
    """Learning rate of the discriminators."""


class Recipe(Section):
    """Teachers, a student, a data set, and how the knowledge goes from one to the other."""

    seed: int = 0
    """Initial weights, splits, batches, augmentation and the teacher of each step are functions of it."""
    run: str | None = None
    """The run folder; by default `runs/<recipe>-<hash of the recipe>`."""
    trackers: list[str] = []
    """Accelerate's words for trackers (`tensorboard`, `trackio`, `wandb`, …), besides metrics.jsonl."""
    precision: Literal["no", "bf16", "fp16"] | None = None
    """Mixed precision; by default what `accelerate launch` was told."""
    data: Data
    teachers: Annotated[list[Teacher], Field(min_length=1)]
    """The ensemble: change this list to change the experiment."""
    student: Network
    zoo: Zoo = Zoo()
    alignment: Alignment = Alignment()
    losses: Losses = Losses()
    discriminators: Discriminators = Discriminators()
    loop: Loop = Loop()

    @field_validator("losses")
    @classmethod
    def _some_similarity(cls, losses: Losses) -> Losses:
        if losses.logits == 0 and losses.labels == 0:
            raise ValueError("logits and labels both have weight 0, so nothing would train the student's head")
        return losses

    @model_validator(mode="after")
    def _block_weights(self) -> "Recipe":
        weights, blocks = self.losses.blocks, self.alignment.blocks
        if isinstance(weights, list) and len(weights) != blocks:
            raise ValueError(f"losses.blocks has {len(weights)} weights but alignment.blocks is {blocks}")
        return self

    @model_validator(mode="after")
    def _inherit_loops(self) -> "Recipe":
        """zoo.loop changes loop, a teacher's loop changes zoo.loop; written out, so that the saved recipe is whole."""
        if self.loop.epochs is None and self.loop.steps is None:
            self.loop = self.loop.model_copy(update={"epochs": 100.0})
        self.zoo = self.zoo.model_copy(update={"loop": self.loop.changed_by(self.zoo.loop)})
        self.teachers = [t.model_copy(update={"loop": self.zoo.loop.changed_by(t.loop)}) for t in self.teachers]
        return self

    @property
    def block_weights(self) -> list[float]:
        """One weight per block."""
        weights = self.losses.blocks
        return weights if isinstance(weights, list) else [weights] * self.alignment.blocks
