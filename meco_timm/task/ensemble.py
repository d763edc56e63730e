"""A `timm.task.TrainingTask` in which a student learns from an ensemble.

    task = EnsembleDistillation(student, ["resnet50.a1_in1k", "vit_small_patch16_224.augreg_in1k"], device=device)
    optimizer = create_optimizer_v2(task, "adamw", lr=1e-3)
    loss = task(input, target)["loss"]

The losses are those of our own loop: the same Zoo, Stream and Distiller compute them.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from timm.models import group_parameters
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from meco_timm.common import UserError, derive, get_logger, student_seed
from meco_timm.data import Batch
from meco_timm.distillation import Distiller, Targets
from meco_timm.networks import Stream, architecture_name, count_classes
from meco_timm.recipe import Recipe
from meco_timm.task.checks import check_labels, check_shapes, is_normalised
from meco_timm.task.parts import check_alone, check_sections, parts_of_teachers, parts_of_zoo
from meco_timm.zoo import TeacherLike, Zoo

logger = get_logger(__name__)

EXTRA = ("projections", "discriminators", "embedding_projections")  # trained with the student, and no part of it
CHECKED_STEPS = 20  # first steps whose values are checked; a check waits for the GPU


class TrainableModule(Distiller):
    """The Distiller as timm's optimizers and DistributedDataParallel want it."""

    def forward(self, image: Tensor, label: Tensor, targets: Any = None) -> dict[str, Tensor]:
        """Compute the losses of `Distiller`, and "output": the student's logits B×K, of a backbone the embedding."""
        outputs = self.student(image)
        if self.student.has_logits:
            count_classes(outputs.logits, architecture_name(self.student.model), "student")
        return {
            **self.losses(outputs, label, targets),
            "output": outputs.logits if self.student.has_logits else outputs.embedding,
        }

    def no_weight_decay(self) -> set[str]:
        """Patterns of parameters without weight decay: timm's of the student, projections and discriminators."""
        model: Any = self.student.model
        own = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
        return {f"student.model.{name}" for name in own} | {f"{name}.*" for name in EXTRA}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Map a parameter's name to its layer, for layer-wise rates; projections and discriminators have the last."""
        model: Any = self.student.model
        layers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        last = max(layers.values(), default=0)
        return lambda name: layers.get(name.removeprefix("student.model."), last)


class EnsembleDistillation(TrainingTask):
    """A student learns from an ensemble of teachers, by logits, blocks, embeddings and discriminators.

    A teacher's embedding is standardised by its mean and deviation over the images of the first step.

    A step is a call in training mode: with gradient accumulation, each part is a step and draws its own teacher. The
    number of steps is in the task's state, so that a resumed training draws the same teachers.

    student: a timm network with a head for K classes, or without a head (a backbone); trained in place.
    teachers: timm names, `hf-hub:` or `local-dir:` ids, modules, or dicts with the keys of a recipe's teacher, for a
        module also `mean` and `std`; or a Zoo with the recipe that it was made with. None for those of `recipe`.
    recipe: its method, seed and teachers, in place of the sections.
    losses, alignment, discriminators, zoo: sections of a recipe (docs/recipe.md), without the keys of what the caller
        does: `discriminators.lr`, `zoo.loop` and `zoo.folder`.
    seed: of the drawn teachers, and of the initial projections and discriminators.
    classes: names of the K classes in the loader's order, for teachers with other classes. None: a teacher must have
        as many, and they are taken to be in the same order.
    data_config: what `timm.data.resolve_data_config` gave for the loader, where it is not the student's own.
    device: of the task; by default the student's.

    Raises:
        UserError: a key or value of a section is wrong, or a network cannot be used.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: TeacherLike | Sequence[TeacherLike] | Zoo | None = None,
        *,
        recipe: Recipe | None = None,
        losses: dict[str, Any] | None = None,
        alignment: dict[str, Any] | None = None,
        discriminators: dict[str, Any] | None = None,
        zoo: dict[str, Any] | None = None,
        seed: int | None = None,
        classes: list[str] | None = None,
        data_config: dict[str, Any] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ):
        first = next(student.parameters(), torch.empty(0))
        super().__init__(device or first.device, dtype or first.dtype, verbose)
        sections = {
            "seed": seed,
            "losses": losses,
            "alignment": alignment,
            "discriminators": discriminators,
            "zoo": zoo,
        }
        if isinstance(teachers, Zoo):
            check_alone("a Zoo", {**sections, "classes": classes})
            parts = parts_of_zoo(student, teachers, recipe, data_config)
        else:
            method = {name: section for name, section in sections.items() if section is not None}
            check_sections(method)
            if recipe is not None:
                check_alone("a recipe", sections)
                method = {key: getattr(recipe, key) for key in Recipe.model_fields}
            given = teachers if teachers is not None else recipe.teachers if recipe else []
            parts = parts_of_teachers(student, given, method, classes, data_config, self.device)
        self.teachers = parts.zoo
        self.teachers.to(self.device)
        self.trainable_module: nn.Module = _trainable(*parts).to(self.device)
        self.step, self._looked, self._warned = 0, 0, False
        if verbose:
            logger.info("%s learns from %s", architecture_name(student), ", ".join(self.teachers.names))

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """input B×3×H×W, normalised with the student's mean and std; target B class numbers, or B×K shares of classes
        → "loss" with its gradient, "output" (the student's logits B×K), and each term of the loss, detached.

        Raises:
            UserError: the target's classes or the image size are not the student's.
        """
        student = self.student
        check_shapes(input, target, student)
        if self._looked < CHECKED_STEPS:
            self._look_at(input, target, student)
        image = input.float() * student.std + student.mean
        image = image if image.shape[1] == 3 else image.expand(-1, 3, -1, -1)  # grey
        label = target.float() if target.ndim == 2 else target
        if self.training and self.step == 0:
            self._standardise(image, target)
        terms = self.trainable_module(image, label, self._targets(image, target))
        self.step += self.training
        return {"loss": terms.pop("total"), "output": terms.pop("output"), **terms}

    @property
    def student(self) -> Stream:
        """The stream around the student, `student.model`."""
        return unwrap_model(self.trainable_module).student

    def _look_at(self, input: Tensor, target: Tensor, student: Stream) -> None:
        self._looked += 1
        if student.has_logits:
            check_labels(target, student)
        self._warned = self._warned or not is_normalised(input, student)

    def _targets(self, image: Tensor, target: Tensor) -> Targets:
        """The teachers' outputs for this step."""
        return self.teachers.targets(self._batch(image, target), image, self.step)

    def _batch(self, image: Tensor, target: Tensor) -> Batch:
        """An image's position in the batch takes the place of its row."""
        row = torch.arange(len(image)) + len(image) * self.teachers.context.process_index
        return Batch(image, target, row, torch.zeros_like(row))

    def _standardise(self, image: Tensor, target: Tensor) -> None:
        """Measure the teachers' embeddings of these images, by which they are standardised from then on."""
        projections = unwrap_model(self.trainable_module).embedding_projections
        if not len(projections):
            return
        embeddings = self.teachers.embeddings(self._batch(image, target))
        moments = {i: torch.std_mean(each.float(), 0, correction=0)[::-1] for i, each in embeddings.items()}
        projections.standardise_by(moments, self.teachers.alignment.standardise == "isotropic")

    # The methods that timm's loop calls

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp_kwargs: Any) -> "EnsembleDistillation":
        """Wrap what is trained in DistributedDataParallel; each process has its own copy of the teachers."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the networks of student and teachers, each on its own, so that no drawn teacher compiles anything
        again; returns the student for evaluation."""
        options: dict[str, Any] = {"backend": backend, "mode": mode, **compile_kwargs}
        self.student.compile(**options)
        self.teachers.compile(**options)
        self.eval_model = cast(nn.Module, torch.compile(self.student.model, **options))
        return self.eval_model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The student as a timm network; with `ema` its moving average."""
        found = super().get_eval_model(module=module, ema=ema)
        inner = None if found is None else unwrap_model(found)
        return inner.student.model if isinstance(inner, TrainableModule) else found

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """All that is trained; `exclude_head`: without the last two of the student, as timm does it."""
        module = unwrap_model(self.trainable_module)
        student = list(module.student.parameters())
        extra = [p for name in EXTRA for p in getattr(module, name).parameters()]
        return (student[:-2] if exclude_head else student) + extra

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Projections and discriminators; except for `ema` also the step and the digests of the teachers' weights."""
        owner = module if module is not None else self.get_trainable_module(ema=ema)
        if owner is None:
            return {}
        state: dict[str, Any] = {name: getattr(unwrap_model(owner), name).state_dict() for name in EXTRA}
        return state if ema else {**state, "step": self.step, "teachers": dict(self.teachers.fingerprints)}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Continue from `get_task_state`; None, of a student's checkpoint alone, changes nothing.

        Raises:
            UserError: with `strict`, if the teachers or the method are others than then.
        """
        if not state:
            return
        owner = module if module is not None else self.get_trainable_module(ema=ema)
        if owner is None:
            raise RuntimeError("The state of the moving average can be loaded after setup_ema().")
        now, then = self.teachers.fingerprints, state.get("teachers", self.teachers.fingerprints)
        if strict and now != then:
            others = sorted({name for name in now.keys() | then.keys() if now.get(name) != then.get(name)})
            raise UserError(f"teachers: {', '.join(others)}: others, or with other weights, than in the checkpoint.")
        try:
            for name in EXTRA:
                getattr(unwrap_model(owner), name).load_state_dict(state.get(name, {}), strict=strict)
        except RuntimeError as error:
            raise UserError(f"alignment, discriminators: others than in the checkpoint: {error}") from error
        self.step = self.step if ema else state.get("step", 0)

    def no_weight_decay(self) -> set[str]:
        """Names without weight decay, for `create_optimizer_v2(task, …)`."""
        return {f"{self._prefix}{name}" for name in unwrap_model(self.trainable_module).no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Layers of the parameters, for `create_optimizer_v2(task, …)`."""
        layer = unwrap_model(self.trainable_module).group_matcher(coarse)
        return lambda name: layer(name.removeprefix(self._prefix))

    @property
    def _prefix(self) -> str:
        """Prefix of the trainable module's parameters in the task."""
        distributed = isinstance(self.trainable_module, DistributedDataParallel)
        return "trainable_module.module." if distributed else "trainable_module."

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "EnsembleDistillation":
        super()._apply(fn, *args, **kwargs)
        self.teachers.to(self.device)
        self.student.dtype = next(self.student.model.parameters()).dtype
        for name in EXTRA:  # blocks and losses are float32 in any case
            getattr(unwrap_model(self.trainable_module), name).float()
        return self


def _trainable(recipe: Recipe, student: Stream, zoo: Zoo) -> TrainableModule:
    """Make the Distiller with the initial weights that `distill` gives it, without touching the global generators."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(student_seed(recipe.seed), "discriminators"))
        return TrainableModule(student, recipe.method, student.model.num_classes, zoo.block_shapes, zoo.embedding_sizes)
