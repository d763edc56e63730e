"""11 · What the licences of teachers' weights ask of a student: told, never decided."""

from meco_timm.reporting import Results

FREE = {
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "unlicense",
}  # fmt: skip
TERMS = (
    "asks for little more than a mention",
    "asks that what is made of it has the same licence",
    "has terms of its own, which only its text tells",
    "forbids commercial use, or changed versions",
)


def strictness(licence: str | None) -> int:
    """How much a licence asks, as a place in `TERMS`; one that is unknown or not a standard one counts as own terms."""
    words = (licence or "").lower().split("-")
    if {"nc", "nd"} & set(words):
        return 3
    if (licence or "").lower() in FREE:
        return 0
    return 1 if {"gpl", "lgpl", "agpl", "mpl", "sa"} & set(words) else 2


def licence_note(results: Results, chosen: str | None) -> str:
    """The strictest licence of what the student was made of, and whether one was chosen for the student."""
    origins = {
        **results.about.get("origins", {}),
        "the student's first weights": results.about.get("student_origin", {}),
    }
    foreign = {name: o.get("licence") for name, o in origins.items() if o.get("start") not in (None, "random weights")}
    said = f"The student is published under {chosen}." if chosen else "No licence has been chosen for the student."
    if not foreign:
        known = (
            "All networks began from random weights" if results.about else "Where the teachers came from was not kept"
        )
        return f"{said} {known}; the licence of the data is another matter."
    strictest = max(foreign, key=lambda name: strictness(foreign[name]))
    licence = foreign[strictest] or "unknown"
    named = ", ".join(f"{name} ({licence or 'unknown'})" for name, licence in foreign.items())
    return (
        f"{said} It was made with the weights of {named}. The strictest of these licences is {licence} ({strictest}): "
        f"it {TERMS[strictness(foreign[strictest])]}. Whether that binds a student of it is not settled here."
    )


def licence_warning(results: Results, chosen: str | None) -> str | None:
    """What to tell before publishing: no licence chosen, or one that is freer than that of a teacher; else None."""
    origins = [*results.about.get("origins", {}).values(), results.about.get("student_origin", {})]
    foreign = [o.get("licence") for o in origins if o.get("start") not in (None, "random weights")]
    strictest = max(foreign, key=strictness, default=None)
    if chosen is None:
        hint = f" The strictest of its teachers' is {strictest or 'unknown'}." if foreign else ""
        return f"no licence is named for the student (publish.license, --license).{hint}"
    if foreign and strictness(strictest) > strictness(chosen):
        return (
            f"{chosen} is freer than {strictest or 'the unknown licence'} of a teacher's weights, which "
            f"{TERMS[strictness(strictest)]}. Make sure that you may."
        )
    return None
