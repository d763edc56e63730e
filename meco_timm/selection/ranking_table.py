"""Print a ranking of teachers, for people."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from torch import Tensor

from meco_timm.evaluation import Change, Difference
from meco_timm.selection.combining import change_text, is_miscalibrated
from meco_timm.selection.ranking import Ranking

Part = tuple[str, Table, str]  # title, table, caption
MATRIX = 10  # teachers, of whose pairs all are shown
CLOSEST = 15  # pairs that are shown of more teachers


def print_ranking(ranking: Ranking, source: str) -> None:
    """Print the answer, and the tables that it is taken from. source: name of the data set."""
    console = Console(width=None if Console().is_terminal else 120, markup=False, emoji=False, highlight=False)
    console.print(f"{len(ranking.names)} teachers on {ranking.images:,} labelled validation images of {source}\n")
    for line in answer(ranking):
        console.print(line, soft_wrap=True)
    for title, table, caption in (_quality(ranking), _added(ranking), *_pairs(ranking), _choices(ranking)):
        console.print(f"\n{title}", style="bold")
        console.print(table)
        if caption:
            console.print(caption)


def answer(r: Ranking) -> Iterator[str]:
    """Which teachers to keep, how sure that is, and why others are dropped."""
    keep = [name for name, count in zip(r.names, r.kept, strict=True) if count]
    drop = [name for name, count in zip(r.names, r.kept, strict=True) if not count]
    yield f"Keep {', '.join(keep)}; drop {', '.join(drop)}." if drop else f"Keep all of them: {', '.join(keep)}."
    yield f"{r.suggestion}\n"
    yield _certainty(r)
    members = zip(r.names, r.found.added, r.kept, r.found.temperatures, strict=True)
    for name, added, count, temperature in members:
        if added.worse:
            mended = is_miscalibrated(added, temperature) and not r.calibrated
            hint = f"; zoo.calibrate=true divides its logits by {temperature:.2f}" if mended else ""
            yield f"harmful: {name} makes the true ensemble worse: {change_text(added)}{hint}"
        elif not count:
            yield f"dropped: {name} adds nothing that {r.images:,} images can tell{_text(added)}"
    for (i, j), why in r.duplicates.items():
        yield f"duplicates: {r.names[i]} and {r.names[j]} have {why}"
    yield from r.notes


def _certainty(r: Ranking) -> str:
    """How the ensemble to keep compares with all teachers, or why it is all of them."""
    whole, smaller = r.found.ensemble, r.found.suggested
    if r.change is None:
        text = f"How sure: together they have a top-1 of {whole.top1:.2f} %"
        if set(smaller.counts) == {1.0}:
            return f"{text}; each smaller ensemble is clearly worse in top-1 or NLL on {r.images:,} images."
        names = [name for name, count in zip(r.names, smaller.counts, strict=True) if count]
        return (
            f"{text}. {r.images:,} images cannot tell whether fewer would do, as {', '.join(names)} with "
            f"{smaller.quality.top1:.2f} %."
        )
    share = r.cost(r.kept) / max(sum(r.multiply_adds), 1)
    text = f"How sure: at {share:.2f} times the multiply-adds of all of them, whose top-1 is {whole.top1:.2f} %"
    top1 = r.change.top1
    if is_zero(top1, 2):
        return f"{text}, each of {r.images:,} images counts as before."
    unsure = top1.low <= 0 <= top1.high
    return f"{text}: {top1.text(2)} points" + (f"; {r.images:,} images cannot tell these apart." if unsure else ".")


def is_zero(change: Change, digits: int) -> bool:
    """Whether a change and its interval are 0 as they would be printed."""
    return all(round(value, digits) == 0 for value in change)


def _text(added: Difference) -> str:
    """What a teacher adds, without what is 0."""
    parts = [] if is_zero(added.top1, 2) else [f"top-1 {added.top1.text(2)} points"]
    parts += [] if is_zero(added.nll, 4) else [f"NLL {added.nll.text(4)}"]
    return f" ({', '.join(parts)})" if parts else ""


def _table(*heads: str) -> Table:
    table = Table(box=None, header_style="bold")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    return table


def _quality(r: Ranking) -> Part:
    table = _table("", "top-1 %", "NLL", "ECE %", "T", "MACs M", "images/s")
    rows = zip(r.names, r.found.members, r.found.temperatures, r.multiply_adds, r.images_per_s, strict=True)
    for i, (name, quality, temperature, adds, speed) in enumerate(rows, 1):
        cells = [f"{quality.top1:.2f}", f"{quality.nll:.4f}", f"{quality.ece:.2f}", f"{temperature:.2f}"]
        table.add_row(f"{i} {name}", *cells, f"{adds / 1e6:.1f}", f"{speed:,.0f}")
    whole, speed = r.found.ensemble, 1 / sum(1 / s for s in r.images_per_s)
    cells = [f"{whole.top1:.2f}", f"{whole.nll:.4f}", f"{whole.ece:.2f}", ""]
    table.add_row("true ensemble", *cells, f"{sum(r.multiply_adds) / 1e6:.1f}", f"{speed:,.0f}")
    return "Each teacher", table, f"T: temperature with the lowest NLL, {_used(r)}."


def _used(r: Ranking) -> str:
    return "used here (zoo.calibrate)" if r.calibrated else "not used here; zoo.calibrate=true uses it"


def _added(r: Ranking) -> Part:
    table = _table("", "top-1, points", "", "NLL", "", "")
    for i, (name, added) in enumerate(zip(r.names, r.found.added, strict=True), 1):
        top1, nll = (["0", ""] if is_zero(c, d) else c.cells(d) for c, d in ((added.top1, 2), (added.nll, 4)))
        cells = [*top1, *nll]
        table.add_row(f"{i} {name}", *cells, f"makes {added.worse} worse" if added.worse else "")
    return "What each adds: the true ensemble with it minus without it (95 % bootstrap interval)", table, ""


def _pairs(r: Ranking) -> Iterator[Part]:
    """Disagreement, κ and CKA of pairs: as matrices, or of those pairs that disagree least."""
    shown = {
        "Disagreement: share of images with different predictions, %": 100 * r.found.disagreement,
        "Overlap of errors: Cohen's κ, 1 where the same images are wrong": r.found.kappa,
    }
    if r.similarity is not None:
        shown["Similarity of blocks of equal depth: CKA, mean over blocks"] = r.similarity
    if len(r.names) > MATRIX:
        yield _closest(r, list(shown.values()))
        return
    for title, values in shown.items():
        table = _table("", *(str(i) for i in range(1, len(r.names) + 1)))
        for i, name in enumerate(r.names):
            table.add_row(f"{i + 1} {name}", *(_cell(values, i, j) for j in range(len(r.names))))
        yield title, table, ""


def _cell(values: Tensor, i: int, j: int) -> str:
    return "" if i == j else f"{values[i, j].item():.2f}"


def _closest(r: Ranking, values: Sequence[Tensor]) -> Part:
    heads = ["disagreement %", "κ of errors", "CKA"][: len(values)]
    table = _table("", *heads)
    count = range(len(r.names))
    pairs = sorted((values[0][i, j].item(), i, j) for i in count for j in count if i < j)
    for _, i, j in pairs[:CLOSEST]:
        table.add_row(f"{i + 1} {r.names[i]}, {j + 1} {r.names[j]}", *(_cell(v, i, j) for v in values))
    return f"The {CLOSEST} pairs that disagree least", table, ""


def _choices(r: Ranking) -> Part:
    table = _table("size", "top-1 %", "NLL", "MACs M", "behind the best, top-1", "NLL", "teachers")
    for size, choice in enumerate(r.found.choices, 1):
        names = [f"{i}" + (f" × {count:g}" if count > 1 else "") for i, count in enumerate(choice.counts, 1) if count]
        cells = [f"{choice.quality.top1:.2f}", f"{choice.quality.nll:.4f}", f"{r.cost(choice.counts) / 1e6:.1f}"]
        best = (("the best" if is_zero(c, d) else c.cells(d)[1]) for c, d in zip(choice.behind, (2, 4), strict=True))
        table.add_row(str(size), *cells, *best, ", ".join(names))
    title = "Best ensemble of each size: greedy selection with replacement by NLL (Caruana et al. 2004)"
    return title, table, "Chosen on these same images, so the figures are better than on new ones."
