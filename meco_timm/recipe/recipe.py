"""The recipe: all keys that can be written in the YAML, with types, defaults and meaning.

Nothing here imports torch, so errors in a recipe are found in well under a second. `reading.py` adds YAML, overrides
from the command line and error messages.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from meco_timm.recipe.hub_licences import check_licence
from meco_timm.recipe.method import Alignment, Discriminators, Losses, Method
from meco_timm.recipe.networks import Network, Store, Student, Teacher
from meco_timm.recipe.sections import Data, FilePath, Loop, NotNegative, Section


class Zoo(Section):
    """How teachers are sampled, and how those that need it are trained and kept."""

    sampling: Literal["random", "average"] = "random"
    """`random`: one teacher per step, drawn from (seed, step), as in the paper; on several processes all use the same.
    `average`: the mean of all, every step, at the cost of all (MEAL V2)."""
    resident: Annotated[int, Field(gt=0)] | None = None
    """Number of teachers kept on the device; the others are in host memory. From 2 on, those of the next steps are
    moved ahead of time. Null keeps all on the device. No effect on a CPU."""
    precision: Literal["no", "bf16", "fp16"] | None = None
    """Precision of the teachers' weights during distillation; by default `bf16` on a CUDA device that has it, else
    float32. Half the memory, and up to twice the speed on devices that compute in it, some CPUs among them. Final
    evaluation is in float32."""
    calibrate: bool = False
    """Divide each teacher's logits by a temperature of its own, fitted to the lowest NLL on the validation split:
    wherever they are drawn or averaged, and in the true ensemble. Without it, the sharpest teachers rule a mean, and
    those trained with label smoothing or mixup hardly count."""
    weights: Literal["uniform", "validation"] | list[NotNegative] = "uniform"
    """Share of each teacher in the mean of `average` and in the true ensemble, and of the steps for which it is
    drawn: `uniform`, a list with a number for each teacher, or `validation`: by greedy selection with the lowest NLL
    on the validation split (Caruana et al. 2004). A teacher of weight 0 is not used."""
    require: Literal["better"] | None = None
    """`better`: stop before the student is trained, if the true ensemble is not better than the student alone on the
    validation split. Null says so and goes on."""
    folder: FilePath = "zoo"
    """Trained teachers are kept here, each under a name with a hash of all that made it, and used again."""
    loop: Loop = Loop()
    """Keys that differ from `loop` when teachers are trained."""


class Evaluation(Section):
    """What a backbone is measured on."""

    labelled: FilePath | None = None
    """A folder or Hub id with labels, as `data.source` may be, on which k-NN and linear probe are measured; by default
    the labels of `data.source`, if it has any. No training sees them."""


class Publish(Section):
    """Upload of the student to the Hub when the run has ended. Not part of the run's identity."""

    repo: str
    """`owner/name`; created if it does not exist."""
    private: bool = False
    """Whether the repository is private. One that exists and is public is then refused."""
    revision: str | None = None
    """Branch to publish on; `main` by default."""
    overwrite: bool = False
    """Whether another model in the repository may be replaced."""
    license: str | None = None
    """The student's licence, an identifier of the Hub's (`apache-2.0`, `cc-by-nc-4.0`) or `other:NAME`; yours to
    decide."""
    onnx: bool = False
    """Also upload `onnx/model.onnx`, `onnx/model_int8.onnx` and `preprocessor_config.json`, for ONNX Runtime and
    transformers.js. Needs the extra `export`."""
    space: str | None = None
    """`owner/name` of a Space, a page on which people try the student in their browser; as private as `repo`."""
    examples: bool = False
    """Whether three images of the validation split may be uploaded to the Space, as examples to click on."""
    card: FilePath | None = None
    """Your own template of the card, in place of meco_timm/reporting/templates/card.md."""

    @field_validator("repo", "space")
    @classmethod
    def _owner_and_name(cls, repo: str | None, info: ValidationInfo) -> str | None:
        if repo is None:
            return repo
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
            raise ValueError(f"{info.field_name} is written owner/name, of letters, digits, '-', '_' and '.'")
        from huggingface_hub.utils import validate_repo_id  # imports an HTTP client

        validate_repo_id(repo)
        return repo

    @field_validator("license")
    @classmethod
    def _known_to_the_hub(cls, licence: str | None) -> str | None:
        if licence is not None:
            check_licence(licence)
        return licence


class Recipe(Section):
    """Teachers, a student, a data set, and how the student is trained."""

    task: Literal["classification", "backbone"] = "classification"
    """`classification`: an ensemble of classifiers into a classifier. `backbone`: networks with or without heads into
    one without a head, by their blocks and embeddings, from images whose labels are not used."""
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
    student: Student
    zoo: Zoo = Zoo()
    alignment: Alignment = Alignment()
    losses: Losses = Losses()
    discriminators: Discriminators = Discriminators()
    loop: Loop = Loop()
    store: Store = Store()
    evaluation: Evaluation = Evaluation()
    publish: Publish | None = None
    """Null for no upload."""

    @model_validator(mode="after")
    def _resolve_task(self) -> "Recipe":
        """A backbone has no head: it compares embeddings in place of logits, and keeps its last weights."""
        made = self.student.backbone
        if made and self.is_backbone:
            raise ValueError("student.backbone is for classifiers: with task: backbone the student is one. Drop it")
        if made and (wrong := next(_keys_of_classifiers(made.teachers, "student.backbone.teachers"), None)):
            raise ValueError(f"{wrong} is for classifiers: a backbone has no head and learns from no label. Drop it")
        if self.task == "classification":
            if self.losses.logits == 0 and self.losses.labels == 0:
                raise ValueError(
                    "losses.logits and losses.labels are both 0, so nothing would train the student's head"
                )
            return self
        if wrong := next(_classification_keys(self), None):
            raise ValueError(f"{wrong} is for classifiers: a backbone has no head and learns from no label. Drop it")
        losses: dict[str, float] = {"logits": 0.0}
        if "embedding" not in self.losses.model_fields_set:
            losses["embedding"] = 3.0
        self.losses = self.losses.model_copy(update=losses)
        if "adversary" not in self.discriminators.model_fields_set:
            self.discriminators = self.discriminators.model_copy(update={"adversary": "none"})
        if "validation" not in self.data.model_fields_set:
            self.data = self.data.model_copy(update={"validation": 0.0})
        return self

    @model_validator(mode="after")
    def _resolve_method(self) -> "Recipe":
        """What is not written follows from what is: weights from the alignment, the adversary from both."""
        maps, blocks = self.alignment.per_teacher, self.alignment.blocks
        if "blocks" not in self.losses.model_fields_set:
            self.losses = self.losses.model_copy(update={"blocks": (3.0 if maps else 0.3) if blocks else 0.0})
        if "adversary" not in self.discriminators.model_fields_set and not (maps and self.losses.blocks):
            self.discriminators = self.discriminators.model_copy(update={"adversary": "none"})
        if self.losses.embedding and self.alignment.embedding == "none":
            if "embedding" in self.alignment.model_fields_set:
                raise ValueError("alignment.embedding is none, but losses.embedding has a weight: write linear or mlp")
            self.alignment = self.alignment.model_copy(update={"embedding": "linear"})
        if not self.losses.embedding:
            self.alignment = self.alignment.model_copy(update={"embedding": "none"})
        if self.is_backbone and not (self.method.compares_blocks or self.losses.embedding):
            raise ValueError("losses.blocks and losses.embedding both have weight 0, so the backbone learns nothing")
        return self

    @model_validator(mode="after")
    def _discriminators_fit(self) -> "Recipe":
        d = self.discriminators
        if d.adversary != "none" and d.on == "blocks" and not self.alignment.blocks:
            raise ValueError(
                "discriminators.on blocks has nothing to judge, since alignment.blocks is 0: write on: logits"
            )
        return self

    @model_validator(mode="after")
    def _block_weights(self) -> "Recipe":
        weights, blocks = self.losses.blocks, self.alignment.blocks
        if isinstance(weights, list) and len(weights) != blocks:
            raise ValueError(f"losses.blocks has {len(weights)} weights but alignment.blocks is {blocks}")
        return self

    @model_validator(mode="after")
    def _teacher_weights(self) -> "Recipe":
        weights = self.zoo.weights
        if isinstance(weights, list) and len(weights) != len(self.teachers):
            raise ValueError(f"zoo.weights has {len(weights)} numbers for {len(self.teachers)} teachers")
        if isinstance(weights, list) and not sum(weights):
            raise ValueError("zoo.weights are all 0, so no teacher would be used")
        return self

    @model_validator(mode="after")
    def _no_idle_blocks(self) -> "Recipe":
        """Without a loss on blocks none are computed or stored."""
        if not self.method.compares_blocks and "blocks" not in self.alignment.model_fields_set:
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
        if self.student.backbone is not None:
            loop = {"loop": self.loop.changed_by(self.student.backbone.loop)}
            self.student = self.student.model_copy(update={"backbone": self.student.backbone.model_copy(update=loop)})
        return self

    @model_validator(mode="after")
    def _pairs_are_mixed(self) -> "Recipe":
        made = self.student.backbone
        loops = {"loop": self.loop} | {f"teachers.{i}.loop": t.loop for i, t in enumerate(self.teachers) if t.train}
        for key, loop in (loops | ({"student.backbone.loop": made.loop} if made else {})).items():
            if loop.batch_size % 2 and (loop.mixup or loop.cutmix):
                raise ValueError(
                    f"{key}.batch_size is {loop.batch_size}, but mixup and cutmix mix pairs of images in each process: "
                    "write an even number"
                )
        return self

    @property
    def is_backbone(self) -> bool:
        """Whether the student has no head."""
        return self.task == "backbone"

    def classes(self, names: list[str]) -> list[str]:
        """The classes of student and teachers, of the data's; none of a backbone, whatever labels the images have."""
        return [] if self.is_backbone else names

    @property
    def method(self) -> Method:
        """How student and teachers are compared."""
        return Method(self.alignment, self.losses, self.discriminators)

    @property
    def networks(self) -> dict[str, Network]:
        """Student and teachers by their key."""
        made = self.student.backbone
        return {
            "student": self.student,
            **{f"teachers.{i}": teacher for i, teacher in enumerate(self.teachers)},
            **{f"student.backbone.teachers.{i}": teacher for i, teacher in enumerate(made.teachers if made else [])},
        }


def _classification_keys(recipe: Recipe) -> Iterator[str]:
    """Keys of a backbone's recipe that only classifiers have."""
    losses, data, zoo, on = recipe.losses, recipe.data, recipe.zoo, recipe.discriminators.on
    written = {
        "losses.logits": "logits" in losses.model_fields_set and losses.logits,
        "losses.labels": losses.labels,
        "data.labelled": data.labelled,
        "data.student_sees": data.student_sees != "all",
        "data.sampling": data.sampling != "natural",
        "zoo.calibrate": zoo.calibrate,
        "zoo.require": zoo.require,
        "zoo.weights: validation": zoo.weights == "validation",
        "store.topk": recipe.store.topk,
        "publish.onnx": recipe.publish and recipe.publish.onnx,
        "publish.space": recipe.publish and recipe.publish.space,
        f"discriminators.on: {on}": recipe.discriminators.adversary != "none" and on != "blocks",
    }
    yield from (key for key, is_written in written.items() if is_written)
    yield from _keys_of_classifiers(recipe.teachers, "teachers")


def _keys_of_classifiers(teachers: Sequence[Teacher], key: str) -> Iterator[str]:
    """Keys of a backbone's teachers that only classifiers have."""
    for i, teacher in enumerate(teachers):
        if teacher.train:
            yield f"{key}.{i}: train"
        if teacher.gives == "logits":
            yield f"{key}.{i}: gives: logits"
        if teacher.classes is not None:
            yield f"{key}.{i}: classes"
