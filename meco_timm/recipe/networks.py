"""Networks in a recipe: student, backbone, teachers and the store of their outputs. Nothing here imports torch."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from meco_timm.common import expand, short_name
from meco_timm.recipe.sections import FilePath, Loop, ObjectSection, Section
from meco_timm.recipe.yaml_text import is_ambiguous

TAKEN = {  # arguments of `timm.create_model` that follow from keys of the recipe
    **dict.fromkeys(("pretrained", "pretrained_cfg"), "the tag in the name of the model says which weights"),
    **dict.fromkeys(("checkpoint_path", "pretrained_strict"), "`weights` names a file of weights"),
    **dict.fromkeys(("features_only", "out_indices"), "alignment.blocks says which blocks are compared"),
}


def _ambiguous(value: Any) -> Iterator[str]:
    """Texts in a nested value that look like a number or a truth value of YAML 1.1."""
    if isinstance(value, str):
        yield from [value] if is_ambiguous(value) else []
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _ambiguous(inner)


class Network(ObjectSection):
    """A timm network. A name with a tag (`resnet18.a1_in1k`), `hf-hub:` or `local-dir:` names weights, a bare
    architecture (`resnet18`) does not."""

    model: FilePath
    """timm name, `hf-hub:owner/name[@revision]` or `local-dir:path`; of a teacher also `torchvision:name@WEIGHTS` and
    `transformers:owner/name[@revision]` or a folder."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for `timm.create_model`, for example `{drop_path_rate: 0.1}`, but none that other keys
    decide, as `num_classes` or `pretrained`."""
    weights: FilePath | None = None
    """A state dict of this network, `.safetensors` or `.pth`; a pickle that holds more than tensors is refused."""

    @model_validator(mode="after")
    def _args_are_free(self) -> "Network":
        """No argument is one that the program sets itself, or means one thing here and another in YAML 1.1."""
        if taken := next((name for name in self.args if name in TAKEN), None):
            raise ValueError(f"args: {taken} is not free: {TAKEN[taken]}. Drop it")
        if odd := next(_ambiguous(self.args), None):
            raise ValueError(f"args: {odd!r} is a text. Write a decimal number, or true or false")
        return self

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    def _check_head(self) -> None:
        """Raises: ValueError: the arguments give a network that is trained another head than that of the data."""
        if "num_classes" in self.args:
            raise ValueError("args: num_classes is not free: it follows from the classes of the data. Drop it")

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

    @model_validator(mode="after")
    def _own_head(self) -> "Teacher":
        if self.train:
            self._check_head()
        return self


ROWS = ("student", "student alone", "student before", "true ensemble")  # of a table, beside the teachers'


class Backbone(Section):
    """A backbone that is trained before the student, from the run's images without their labels, and kept in
    `zoo.folder` under a name with a hash of all that made it."""

    teachers: Annotated[list[Teacher], Field(min_length=1)]
    """Networks with or without heads, as those of `task: backbone`."""
    loop: Loop = Loop()
    """Keys that differ from `loop` when the backbone is trained."""


class Student(Network):
    """The network that learns from the teachers: a timm network, as its name or with these keys."""

    backbone: Backbone | None = None
    """Start the student, and the student alone, from a backbone; null for the weights that `model` names, or random
    ones. The backbone itself starts from these."""

    @model_validator(mode="after")
    def _own_head(self) -> "Student":
        self._check_head()
        return self


class Store(Section):
    """Teachers' outputs on disk, which runs read instead of computing them again."""

    folder: FilePath | None = None
    """Where; null for no store. Runs of other students, losses and numbers of steps share one; teachers with other
    weights, another transform, seed or alignment are refused."""
    views: Annotated[int, Field(gt=0)] | None = None
    """Epochs after which the student's augmented views repeat, so that stored outputs are used again; null for never.
    The store holds `views` times the outputs of one pass. Without a folder the views repeat and nothing is stored."""
    topk: Annotated[int, Field(gt=0)] | None = None
    """Number of largest logits stored per image; one value replaces the others and keeps their total probability at
    `losses.temperature`. Null stores all."""
    precision: Literal["float16", "float32"] = "float16"
    """Precision of the stored numbers."""

    @model_validator(mode="after")
    def _met_again(self) -> "Store":
        if self.folder is not None and self.views is None:
            raise ValueError("a store needs the number of epochs after which views repeat: write views, for example 10")
        return self


def named_teachers(teachers: Sequence[Teacher]) -> dict[str, Teacher]:
    """The teachers by a short unique name; a run's `student` folder with the name of the run."""
    named: dict[str, Teacher] = {}
    for teacher in teachers:
        *places, name = short_name(teacher.model).removeprefix("torchvision:").rstrip("/").split("/")
        if name in ROWS:
            name = f"{name} of {''.join(places[-1:]).rpartition(':')[2]}"
        same = sum(other.partition(" (")[0] == name for other in named)
        named[f"{name} ({same + 1})" if same else name] = teacher
    return named
