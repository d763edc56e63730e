"""Print a ranking of teachers, for people."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from torch import Tensor

from meco_timm.selection.ranking import Ranking

Part = tuple[str, Table, str]  # title, table, caption
MATRIX = 10  # teachers, of whose pairs all are shown
CLOSEST = 15  # pairs that are shown of more teachers


def print_ranking(ranking: Ranking, source: str) -> None:
    """All that a ranking says, on standard output. source: name of the data set."""
    console = Console(width=None if Console().is_terminal else 120, markup=False, emoji=False, highlight=False)
    console.print(f"{len(ranking.names)} teachers on {ranking.images:,} labelled validation images of {source}\n")
    for title, table, caption in (_quality(ranking), _added(ranking), *_pairs(ranking), _choices(ranking)):
        console.print(title, style="bold")
        console.print(table)
        console.print(f"{caption}\n" if caption else "")
    for line in (*_duplicates(ranking), *_harmful(ranking), *ranking.notes):
        console.print(line, soft_wrap=True)
    console.print(f"\n{_summary(ranking)}", soft_wrap=True)
    console.print(ranking.suggestion, soft_wrap=True)


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
        cells = [*added.top1.cells(2), *added.nll.cells(4)]
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
        behind = choice.behind.top1.cells(2)[1], choice.behind.nll.cells(4)[1]
        table.add_row(str(size), *cells, *behind, ", ".join(names))
    title = "Best ensemble of each size: greedy selection with replacement by NLL (Caruana et al. 2004)"
    return title, table, "Chosen on these same images, so the figures are better than on new ones."


def _duplicates(r: Ranking) -> Iterator[str]:
    for (i, j), why in r.duplicates.items():
        yield f"duplicates: {r.names[i]} and {r.names[j]} have {why}"


def _harmful(r: Ranking) -> Iterator[str]:
    for name, measure in r.harmful.items():
        yield f"harmful: {name} makes the {measure} of the true ensemble worse"


def _summary(r: Ranking) -> str:
    choice, whole = r.found.suggested, r.found.ensemble
    count, share = sum(map(bool, choice.counts)), r.cost(choice.counts) / max(sum(r.multiply_adds), 1)
    if count == len(r.names) and len(set(choice.counts)) == 1:
        return "Suggestion: all of them; each smaller ensemble is clearly worse in top-1 or NLL."
    return (
        f"Suggestion: {count} of {len(r.names)} teachers at {share:.2f} times the multiply-adds of all. Top-1 "
        f"{choice.quality.top1:.2f} % (all: {whole.top1:.2f} %), NLL {choice.quality.nll:.4f} (all: {whole.nll:.4f}). "
        "It is the smallest ensemble that is not clearly worse than the best in top-1 or NLL."
    )
