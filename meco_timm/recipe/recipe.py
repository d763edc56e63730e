"""The recipe: all keys that can be written in the YAML, with types, defaults and meaning.

Nothing here imports torch, so errors in a recipe are found in well under a second. `reading.py` adds YAML, overrides
from the command line and error messages.
"""

import re
from math import isqrt
from typing import Annotated, Any, Literal

from huggingface_hub.utils import validate_repo_id
from pydantic import Field, field_validator, model_validator

from meco_timm.common import expand
from meco_timm.recipe.sections import Data, FilePath, Fraction, Loop, NotNegative, Positive, Section, Store

Similarity = Literal["l1", "l2", "kl", "ce"]


class Network(Section):
    """A timm network. A name with a tag (`resnet18.a1_in1k`), `hf-hub:` or `local-dir:` names weights, a bare
    architecture (`resnet18`) does not."""

    model: FilePath
    """timm name, `hf-hub:owner/name[@revision]` or `local-dir:path`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for `timm.create_model`, for example `{drop_path_rate: 0.1}`."""
    weights: FilePath | None = None
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
    """Train it on the labels of the data set first: from random weights, or from the named ones (fine-tuning).
    `train: NAME` stands for `{model: NAME, train: true}`."""
    size: Annotated[int, Field(gt=0)] | None = None
    """Input size in pixels; by default the size it was trained at, `data.image_size` for a network trained here.
    The batch is resized for it."""
    gives: Literal["all", "blocks", "logits"] = "all"
    """Which outputs the student learns from. A network without a head (DINO, CLIP, SAM encoders) gives blocks only."""
    classes: str | list[int | str] | None = None
    """If its class set differs: a file with the teacher's class names, one a line, or a list with the teacher's
    class (number or name) for each class of the data set. By default found by name, if its config has names."""
    missing: Literal["error", "mask"] = "error"
    """For a teacher that lacks classes of the data set: `error` refuses it, `mask` gives these classes no
    probability."""
    trust: bool = False
    """Use the teacher although its accuracy on labelled images is that of chance, or higher in another order of the
    classes. Teachers that are not trained here are measured on up to 1,000 labelled images before the training."""
    loop: Loop = Loop()
    """Keys that differ from `zoo.loop` in this teacher's training."""

    @field_validator("classes")
    @classmethod
    def _file_of_classes(cls, classes: str | list[int | str] | None) -> str | list[int | str] | None:
        return expand(classes) if isinstance(classes, str) else classes

    @model_validator(mode="before")
    @classmethod
    def _from_train(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("train"), str) and "model" not in value:
            return value | {"model": value["train"], "train": True}
        return value


class Zoo(Section):
    """How teachers are sampled, and how those that need it are trained and kept."""

    sampling: Literal["random", "random_image", "average"] = "average"
    """`random`: one teacher per step, drawn from (seed, step), as in the paper. `random_image`: one per image of a
    step, drawn from (seed, step, image): each teacher gets its part of the batch, which is slow where parts are
    small; free of cost from a store. `average`: the mean of all, every step, at the cost of all (MEAL V2)."""
    scope: Literal["all", "process"] = "all"
    """For `random` on several processes: in a step all use the same teacher (`all`), or each draws its own
    (`process`)."""
    resident: Annotated[int, Field(gt=0)] | None = None
    """Number of teachers kept on the device; the others are in host memory. From 2 on, those of the next steps are
    moved ahead of time. Null keeps all on the device. No effect on a CPU."""
    precision: Literal["no", "bf16", "fp16"] | None = None
    """Precision of the teachers' weights during distillation; by default `bf16` on a CUDA device that has it, else
    float32. Half the memory, and up to twice the speed on devices that compute in it, some CPUs among them. Final
    evaluation is in float32."""
    folder: FilePath = "zoo"
    """Trained teachers are kept here, each under a name with a hash of all that made it, and used again."""
    loop: Loop = Loop()
    """Keys that differ from `loop` when teachers are trained."""


class Alignment(Section):
    """How blocks of the student and of its teachers are brought into a form in which they can be compared."""

    blocks: Annotated[int, Field(ge=0)] = 4
    """Blocks compared per network, chosen by relative depth; 0 compares logits only. When it is not written: 4 where
    `losses.blocks` or a discriminator looks at blocks, else 0."""
    method: Literal["projection", "flatten", "channel_mean", "grid", "attention"] = "grid"
    """`projection`: maps pooled to 4 × 4 positions, and a learned 1 × 1 convolution per teacher and block from the
    student's channels to the teacher's, thrown away after training. Without parameters: `flatten`: adaptive pooling of
    all values in a row (the paper). `channel_mean`: pooled over positions, mean over channels (the released code).
    `grid`: channels and positions pooled apart, so positions are kept. `attention`: energy per position, comparable
    between any two networks."""
    length: Annotated[int, Field(ge=16)] = 256
    """Numbers per block: a multiple of 16 for `grid` (4 × 4 positions), a square for `attention`. For `projection` the
    most of a teacher, whose channels are reduced to length / 16 by a fixed random orthogonal projection."""
    projection: bool = False
    """Of the methods without parameters: a learned linear map on the student's side, one for all teachers, thrown away
    after training."""
    teachers: Literal["drawn", "all"] = "drawn"
    """Of `projection` with `zoo.sampling: average`: whose blocks a step compares, those of one teacher drawn as by
    `random`, or those of all."""

    @model_validator(mode="after")
    def _length_fits(self) -> "Alignment":
        if self.method in ("grid", "projection") and self.length % 16:
            raise ValueError(
                f"length {self.length} is not a multiple of 16, which method {self.method} needs (4 × 4 positions)"
            )
        if self.method == "projection" and self.projection:
            raise ValueError("projection: true is for the other methods; method projection has its own per teacher")
        if self.method == "attention" and isqrt(self.length) ** 2 != self.length:
            raise ValueError(f"length {self.length} is not a square, which method attention needs")
        return self

    @property
    def channels(self) -> int | None:
        """Most channels that a teacher's map keeps; None where maps become vectors."""
        return self.length // 16 if self.method == "projection" else None


class Losses(Section):
    """Similarity between teacher and student (losses.py)."""

    similarity: Literal["l1", "l2", "kl", "ce", "dist"] = "ce"
    """Between softened logits. The paper found `ce` best of its four; `dist` compares correlations instead."""
    temperature: Positive = 4.0
    """Softens both sides; `ce`, `kl` and `dist` are multiplied by its square."""
    logits: NotNegative = 1.0
    """Weight of the logits' similarity."""
    block_similarity: Similarity = "l2"
    """Between aligned blocks: l1 and l2 on standardised vectors (so that l2 is 2 − 2 · cosine), kl and ce on their
    softmax."""
    blocks: NotNegative | list[NotNegative] = 0.0
    """Weight of the blocks' similarity: one for all or a list, first block first. 0, the default, compares logits
    only; 0.3 is a fair start."""
    labels: NotNegative = 0.0
    """Weight of cross-entropy with the labels, on images that have one. The paper's form is 0: soft labels only."""


class Discriminators(Section):
    """Small classifiers that tell teacher outputs from student outputs; the student is trained against them."""

    adversary: Literal["minimax", "non_saturating", "cooperative", "none"] = "none"
    """`minimax`: the paper's game, by gradient reversal. `non_saturating`: the usual GAN loss for the student.
    `cooperative`: what the paper's released code does, the student helps the discriminator. `none`."""
    on: Literal["blocks", "logits", "all"] = "all"
    """Which outputs have a discriminator."""
    form: Literal["patch", "vector"] | None = None
    """Of blocks: `patch` judges each position of a map by itself (1 × 1 convolutions, 64 wide), `vector` a block as a
    whole (the paper). By default `patch` with alignment method `projection`, which it needs, else `vector`."""
    condition: Literal["none", "logits"] = "none"
    """`logits`: a discriminator also sees the teachers' softmax of the image, so it judges whether a block fits it."""
    weight: Positive = 0.1
    """Factor of the adversary's gradient on the student; the discriminators' own gradient is not scaled."""
    lr: Positive = 1e-3
    """Learning rate of the discriminators."""
    spectral_norm: bool = False
    """Divide weights by their largest singular value: a weaker discriminator, whose gradient does not vanish."""
    smoothing: Fraction = 0.0
    """One-sided label smoothing: the target for teacher outputs is 1 − `smoothing`."""
    r1: NotNegative = 0.0
    """Weight of the R1 penalty on the discriminators' gradient at teacher outputs, which also weakens them."""


class Publish(Section):
    """Upload of the student to the Hub when the run has ended. Not part of the run's identity."""

    repo: str
    """`owner/name`; created if it does not exist."""
    private: bool = False
    """Whether a newly created repository is private."""
    revision: str | None = None
    """Branch to publish on; `main` by default."""
    overwrite: bool = False
    """Whether another model in the repository may be replaced."""
    license: str | None = None
    """The student's licence, an identifier of the Hub's (`apache-2.0`, `cc-by-nc-4.0`, `other`); yours to decide."""
    card: FilePath | None = None
    """Your own template of the card, in place of meco_timm/reporting/templates/card.md."""

    @field_validator("repo")
    @classmethod
    def _owner_and_name(cls, repo: str) -> str:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
            raise ValueError("repo is written owner/name, of letters, digits, '-', '_' and '.'")
        validate_repo_id(repo)
        return repo


class Recipe(Section):
    """Teachers, a student, a data set, and how the student is trained."""

    seed: int = 0
    """Initial weights, splits, batches, augmentation and the teacher of each step are functions of it."""
    run: FilePath | None = None
    """The run folder; by default `runs/<recipe>-<hash of the recipe>`."""
    trackers: list[str] = Field(default_factory=list)
    """Accelerate's names of trackers (`tensorboard`, `trackio`, `wandb`, …), besides metrics.jsonl."""
    precision: Literal["no", "bf16", "fp16"] | None = None
    """Mixed precision; by default the option of `accelerate launch`."""
    data: Data
    teachers: Annotated[list[Teacher], Field(min_length=1)]
    """The ensemble: change this list to change the experiment."""
    student: Network
    zoo: Zoo = Zoo()
    alignment: Alignment = Alignment()
    losses: Losses = Losses()
    discriminators: Discriminators = Discriminators()
    loop: Loop = Loop()
    store: Store = Store()
    publish: Publish | None = None
    """Null for no upload."""

    @field_validator("losses")
    @classmethod
    def _some_similarity(cls, losses: Losses) -> Losses:
        if losses.logits == 0 and losses.labels == 0:
            raise ValueError("logits and labels both have weight 0, so nothing would train the student's head")
        return losses

    @model_validator(mode="after")
    def _patches_need_maps(self) -> "Recipe":
        maps = self.alignment.method == "projection"
        if self.discriminators.form == "patch" and not maps:
            raise ValueError("discriminators.form patch needs maps: write alignment.method=projection, or form vector")
        if self.discriminators.form is None:
            form = "patch" if maps else "vector"
            self.discriminators = self.discriminators.model_copy(update={"form": form})
        return self

    @model_validator(mode="after")
    def _block_weights(self) -> "Recipe":
        weights, blocks = self.losses.blocks, self.alignment.blocks
        if isinstance(weights, list) and len(weights) != blocks:
            raise ValueError(f"losses.blocks has {len(weights)} weights but alignment.blocks is {blocks}")
        return self

    @model_validator(mode="after")
    def _no_idle_blocks(self) -> "Recipe":
        """Without a loss on blocks none are computed or stored."""
        if not self.compares_blocks and "blocks" not in self.alignment.model_fields_set:
            self.alignment = self.alignment.model_copy(update={"blocks": 0})
        return self

    @model_validator(mode="after")
    def _nothing_is_mixed(self) -> "Recipe":
        mixed = [key for key in ("mixup", "cutmix", "random_erasing") if getattr(self.loop, key)]
        if self.store.folder is not None and mixed:
            raise ValueError(
                f"loop.{mixed[0]} changes images after they are loaded, differently in each step, so the teachers' "
                "outputs for them cannot be stored. Set it to 0, or leave store.folder out"
            )
        return self

    @model_validator(mode="after")
    def _inherit_loops(self) -> "Recipe":
        """Resolve the loops: `zoo.loop` changes `loop`, a teacher's `loop` changes `zoo.loop`."""
        if self.loop.epochs is None and self.loop.steps is None:
            self.loop = self.loop.model_copy(update={"epochs": 100.0})
        self.zoo = self.zoo.model_copy(update={"loop": self.loop.changed_by(self.zoo.loop)})
        self.teachers = [t.model_copy(update={"loop": self.zoo.loop.changed_by(t.loop)}) for t in self.teachers]
        return self

    @property
    def compares_blocks(self) -> bool:
        """Whether a loss or a discriminator uses blocks."""
        d = self.discriminators
        return self.losses.blocks != 0 or (d.adversary != "none" and d.on != "logits")

    @property
    def block_weights(self) -> list[float]:
        """One weight per block."""
        weights = self.losses.blocks
        return weights if isinstance(weights, list) else [weights] * self.alignment.blocks
