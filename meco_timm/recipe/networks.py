"""Networks in a recipe: the student, its backbone, and teachers. Nothing here imports torch."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from meco_timm.common import expand, short_name
from meco_timm.recipe.sections import FilePath, Loop, ObjectSection, Section


class Network(ObjectSection):
    """A timm network. A name with a tag (`resnet18.a1_in1k`), `hf-hub:` or `local-dir:` names weights, a bare
    architecture (`resnet18`) does not."""

    model: FilePath
    """timm name, `hf-hub:owner/name[@revision]` or `local-dir:path`; of a teacher also `torchvision:name@WEIGHTS` and
    `transformers:owner/name[@revision]` or a folder."""
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
