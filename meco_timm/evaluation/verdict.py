"""A table in one sentence: how the student stands beside itself alone and beside the ensemble."""

from meco_timm.evaluation.table import Row


def verdict(rows: list[Row]) -> str:
    """Errors (100 − top-1) of the student over those of the other two, and its share of the ensemble's multiply-adds.

    "The student makes 0.86 × the errors of the same network alone and 1.03 × the errors of the true ensemble, at 1/8 of
    its cost."

    rows: the table of a run. Without an ensemble (no teacher has a head) the sentence ends before it.
    """
    named = {row.name: row for row in rows}
    student, ensemble = named["student"], named.get("true ensemble")
    alone = _errors(student, named["student alone"], "the same network alone")
    if ensemble is None:
        return f"The student makes {alone}."
    share = ensemble.multiply_adds / max(student.multiply_adds, 1)
    cost = f"1/{share:.0f} of" if share >= 1.5 else f"{1 / share:.2g} times"
    return f"The student makes {alone} and {_errors(student, ensemble, 'the true ensemble')}, at {cost} its cost."


def _errors(student: Row, other: Row, whose: str) -> str:
    """`0.86 × the errors of …`; in per cent where the other makes none."""
    own, its = 100 - student.top1, 100 - other.top1
    if its > 0:
        return f"{own / its:.2f} × the errors of {whose}"
    return f"{own:.2f} % errors where {whose} makes none"
