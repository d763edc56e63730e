"""Teachers that are not trained here, measured on labelled images before any training."""

from collections.abc import Mapping

from accelerate import Accelerator

from meco_timm.common import UserError, join_names
from meco_timm.data import DataSource
from meco_timm.evaluation import ClassCheck, balanced_sample, check_classes, compute_logits
from meco_timm.networks import LOGITS_ONLY, Stream, teacher_stream
from meco_timm.recipe import Teacher

IMAGES = 1000
PLAN_WORK = 1e11  # multiply-adds of one teacher, some seconds of a CPU
MIN_IMAGES = 100


def check_teachers(
    streams: Mapping[str, Stream], data: DataSource, accelerator: Accelerator, images: int = IMAGES
) -> dict[str, ClassCheck]:
    """The accuracy of each of these teachers that gives logits, on at most so many labelled training images.

    Raises:
        UserError: an image cannot be read.
    """
    streams = {name: stream for name, stream in streams.items() if stream.has_logits}
    if not streams:
        return {}
    sample = balanced_sample(data.labelled, images, data.test.transform)
    logits, label = compute_logits(streams, data, sample, accelerator)
    return {name: check_classes(logits[name], label, data.classes, streams[name].class_map) for name in streams}


def check_local_teachers(
    teachers: Mapping[str, Teacher], data: DataSource, weightless: Mapping[str, Stream]
) -> list[str]:
    """Lines of a plan: as `check_lines` of the teachers whose weights are here and that are soon measured.

    weightless: the teachers on the meta device, which say how much work they are.
    """
    lines, streams, images = [], {}, IMAGES
    for i, (name, teacher) in enumerate(teachers.items()):
        few = int(PLAN_WORK / max(weightless[name].multiply_adds(), 1))
        if teacher.train or not weightless[name].has_logits:
            continue
        if (teacher.weights or teacher.object or teacher.model.startswith("local-dir:")) and few >= MIN_IMAGES:
            streams[name] = teacher_stream(teacher, LOGITS_ONLY, data.classes, role=f"teachers.{i}")
            images = min(images, few)
        else:
            lines.append(f"teacher {name}: its accuracy on labelled images is measured when the run starts")
    return [*check_lines(teachers, check_teachers(streams, data, Accelerator(), images)), *lines]


def check_lines(teachers: Mapping[str, Teacher], checks: Mapping[str, ClassCheck]) -> list[str]:
    """Lines of the plan: the accuracy of each teacher, and a warning for each that does not know the classes."""
    lines = [f"teacher {name}: {check}" for name, check in checks.items()]
    return lines + [f"warning: {problem}" for problem in class_problems(teachers, checks).values()]


def require_known_classes(teachers: Mapping[str, Teacher], checks: Mapping[str, ClassCheck]) -> None:
    """Refuse teachers that do not know the classes, or know them in another order, unless the recipe trusts them.

    Raises:
        UserError: names the teacher, and the line to write.
    """
    problems = class_problems(teachers, checks)
    if untrusted := [problem for name, problem in problems.items() if not teachers[name].trust]:
        raise UserError("\n".join(untrusted))


def class_problems(teachers: Mapping[str, Teacher], checks: Mapping[str, ClassCheck]) -> dict[str, str]:
    """What is wrong with the classes of these teachers, by name."""
    roles = {name: f"teachers.{i}" for i, name in enumerate(teachers)}
    found = {name: _problem(roles[name], name, check) for name, check in checks.items()}
    return {name: problem for name, problem in found.items() if problem is not None}


def _problem(role: str, name: str, check: ClassCheck) -> str | None:
    if check.other:
        other = check.other
        return (
            f"{role}: {name}: {check}, but {other.accuracy:.1f} % with its classes in {other.name} "
            f"({join_names(other.names, 3)}). Write for this "
            f"teacher\n  classes: {other.classes}\nor `classes:` with a file "
            f"of its class names, one a line, in its order; or {role}.trust=true, to use it as it is."
        )
    if check.at_chance:
        return (
            f"{role}: {name}: {check}, so it does not know these classes, or has them in another order. Name its "
            f"classes with {role}.classes (a file of its class names, one a line, in its order), train it first with "
            f"`train:`, or write {role}.trust=true, to use it as it is."
        )
    return None
