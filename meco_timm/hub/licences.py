"""The licences of the teachers' weights: reported in the card and before publishing, never decided."""

from meco_timm.reporting import Results

FREE = {
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "unlicense",
}  # fmt: skip
TERMS = (
    "requires little more than attribution",
    "requires derived works to have the same licence",
    "has its own terms; read its text",
    "forbids commercial use or derived works",
)


def strictness(licence: str | None) -> int:
    """Index into `TERMS`; an unknown or non-standard licence has its own terms."""
    parts = (licence or "").lower().split("-")
    if {"nc", "nd"} & set(parts):
        return 3
    if (licence or "").lower() in FREE:
        return 0
    return 1 if {"gpl", "lgpl", "agpl", "mpl", "sa"} & set(parts) else 2


def licence_note(results: Results, chosen: str | None) -> str:
    """The card's text on licences: the student's, and the strictest of the weights it was trained from."""
    foreign = _foreign_licences(results)
    own = f"The student is published under {chosen}." if chosen else "No licence has been chosen for the student."
    if not foreign:
        return f"{own} All networks started from random weights. The licence of the data also applies."
    strictest = max(foreign, key=lambda name: strictness(foreign[name]))
    named = ", ".join(f"{name} ({licence or 'unknown'})" for name, licence in foreign.items())
    return (
        f"{own} It was trained with the weights of {named}. The strictest of these licences is "
        f"{foreign[strictest] or 'unknown'} ({strictest}): it {TERMS[strictness(foreign[strictest])]}. Whether it "
        "applies to the student is for you to decide."
    )


def licence_warning(results: Results, chosen: str | None) -> str | None:
    """A warning if no licence is chosen, or one less strict than that of a teacher's weights; else None."""
    foreign = list(_foreign_licences(results).values())
    strictest = max(foreign, key=strictness, default=None)
    if chosen is None:
        hint = f" The strictest of its teachers' licences is {strictest or 'unknown'}." if foreign else ""
        return f"no licence is named for the student (publish.license, --license).{hint}"
    if foreign and strictness(strictest) > strictness(chosen):
        return (
            f"{chosen} is less strict than {strictest or 'the unknown licence'} of a teacher's weights, which "
            f"{TERMS[strictness(strictest)]}. Check that you may use it."
        )
    return None


def _foreign_licences(results: Results) -> dict[str, str | None]:
    """Licence of each network that did not start from random weights; None if unknown."""
    about = results.about
    origins = (
        about["origins"]
        | about.get("backbone_origins", {})
        | {"the student's initial weights": about["student_origin"]}
    )
    return {name: o["licence"] for name, o in origins.items() if o["start"] != "random weights"}
