"""Class maps: the logits of a teacher with other classes, in the classes of the data set.

A map is a list of K integers: for each class of the data set the index of the teacher's class, or `MISSING`. The logits
at these indices are selected, so the teacher's softmax is over the mapped classes only.
"""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from timm.data import infer_imagenet_subset

from meco_timm.common import UserError, as_synsets, did_you_mean, imagenet, join_names, read_class_names

MISSING = -1


def names_of_teacher(model: Any) -> list[str] | None:
    """Class names of a timm model: from its config, else of the ImageNet subset of that size; None if unknown."""
    names = model.pretrained_cfg.get("label_names")
    if isinstance(names, dict):
        names = [names.get(str(i), names.get(i, "")) for i in range(model.num_classes)]
    if names and len(names) == model.num_classes:
        return [str(name) for name in names]
    subset = infer_imagenet_subset(model)
    return list(imagenet(subset).label_names()) if subset else None


def readable_names(model: Any) -> list[str] | None:
    """As `names_of_teacher`, but ImageNet's classes in words instead of WordNet's numbers."""
    subset = infer_imagenet_subset(model)
    if model.pretrained_cfg.get("label_names") or subset is None:
        return names_of_teacher(model)
    return list(imagenet(subset).label_descriptions())


def find_map(
    model: Any, classes: list[str], setting: str | list[int | str] | None, missing: str, role: str
) -> list[int] | None:
    """The class map of a teacher, or None if its classes are those of the data set in the same order.

    classes: names of the data set's K classes.
    setting: the recipe's `classes`: null (match names, if known), a file of the teacher's class names, or a list with
    the teacher's class (number or name) for each class of the data set.
    missing: "error" or "mask", for classes that the teacher does not have.

    Raises:
        UserError: the class counts differ and there is no map, or the teacher does not have all classes.
    """
    if isinstance(setting, list):
        return _from_list(model.num_classes, names_of_teacher(model), classes, setting, role)
    names = _read_names(setting, model.num_classes, role) if setting else names_of_teacher(model)
    found = _by_name(names or [], classes)
    if setting is None and missing == "error" and MISSING in found and in_order(found, model.num_classes):
        return None  # equal counts, some names unknown: the same order is assumed, and measured before training
    absent = [name for name, place in zip(classes, found, strict=True) if place == MISSING]
    if len(absent) == len(classes) or (absent and missing == "error"):
        raise UserError(_no_map(model.num_classes, names, classes, absent, role))
    return None if found == list(range(model.num_classes)) else found


def in_order(found: list[int], count: int) -> bool:
    """Whether the counts are equal and all classes found by name have the same index."""
    return len(found) == count and all(place in (i, MISSING) for i, place in enumerate(found))


def known_by_name(model: Any, classes: list[str]) -> bool:
    """Whether the teacher's class names include every class of the data set."""
    return MISSING not in _by_name(names_of_teacher(model) or [], classes)


def assumed_pairs(model: Any, classes: list[str]) -> list[str]:
    """Classes of other names at the same place, which are taken for the same: `theirs = ours`.

    None where all are found by name, or the teacher's names are unknown or numbers.
    """
    names, found = readable_names(model) or [], _by_name(names_of_teacher(model) or [], classes)
    if all(name.isdecimal() for name in names):
        return []
    pairs = zip(names, classes, found, strict=False)
    return [f"{a} = {b}" for a, b, place in pairs if place == MISSING and a.casefold() != b.casefold()]


def _by_name(names: list[str], classes: list[str]) -> list[int]:
    """Index of each of `classes` in `names`: by name, else by ImageNet's description; MISSING if neither matches."""
    synsets, names = as_synsets(classes), as_synsets(names)
    places = _places(names)
    if names and names[0][:1] == "n" and names[0][1:].isdigit():  # a WordNet synset
        places = _places([_lemmas().get(name, name) for name in names]) | places
    return [places.get(synset, places.get(name, MISSING)) for synset, name in zip(synsets, classes, strict=True)]


def _places(names: list[str]) -> dict[str, int]:
    """Index of each name; a name that two classes share is left out."""
    twice = {name for name, count in Counter(names).items() if count > 1}
    return {name: i for i, name in enumerate(names) if name not in twice}


@cache
def _lemmas() -> dict[str, str]:
    return imagenet("imagenet-22k")._lemmas | imagenet("imagenet-1k").label_descriptions(as_dict=True)


def _read_names(file: str, count: int, role: str) -> list[str]:
    names = read_class_names(Path(file), f"{role}.classes")
    if len(names) != count:
        raise UserError(f"{role}.classes: {file} has {len(names)} names (one a line), the network {count} classes.")
    return names


def _from_list(
    count: int, names: list[str] | None, classes: list[str], entries: list[int | str], role: str
) -> list[int]:
    if len(entries) != len(classes):
        raise UserError(f"{role}.classes: the list has {len(entries)} entries, the data set {len(classes)} classes.")
    places = _places(names or [])
    for entry in entries:
        if isinstance(entry, str) and entry not in places:
            hint = did_you_mean(entry, list(places)) or " Its class names are unknown; write numbers." * (not places)
            raise UserError(f"{role}.classes: the network has no class {entry!r}.{hint}")
        if isinstance(entry, int) and not 0 <= entry < count:
            raise UserError(f"{role}.classes: {entry} is not a class of the network, which has 0 to {count - 1}.")
    return [places[entry] if isinstance(entry, str) else entry for entry in entries]


def _no_map(count: int, names: list[str] | None, classes: list[str], absent: list[str], role: str) -> str:
    theirs = f" ({join_names(names, 3)})" if names else " (names unknown)"
    text = f"{role}: the network has {count} classes{theirs}, the data set {len(classes)} ({join_names(classes, 3)})"
    if names and len(absent) < len(classes):
        return (
            f"{text}; it lacks {len(absent)}: {join_names(absent, 5)}. "
            f"Name the rest with {role}.classes, or allow it with {role}.missing=mask."
        )
    others = ", train it on these with `train:`, or take its blocks only: `gives: blocks`" * role.startswith(
        "teachers."
    )
    return (
        f"{text}, and {'no names in common' if names else 'it is unknown which is which'}. Give {role}.classes (a file "
        f"of the network's class names, or a list with its class for each of the data set's){others}."
    )
