"""The look of all charts, drawn with matplotlib: one width, one palette, a text alternative for each.

The palette of Okabe and Ito (2008) can be distinguished without colour vision; markers, dashes and hatches repeat it.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter

WIDTH = 4.6  # inches: the width of a phone, so that text is not scaled down there
INK, GRID = "#1f2328", "#d3d7dc"  # replaced by the colours of the page
SKY, GREEN, ORANGE, PURPLE, BLUE, VERMILION = "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#0072b2", "#d55e00"
THEMED = {INK: "currentColor", GRID: "var(--grid)"} | {
    colour: f"var(--{name})" for name, colour in (("blue", BLUE), ("vermilion", VERMILION), ("green", GREEN))
}
SERIES = (
    (SKY, "o", (0, (4, 1))),
    (GREEN, "^", (0, (1, 1))),
    (ORANGE, "v", "-."),
    (PURPLE, "P", (0, (6, 2, 1, 2))),
    (BLUE, "X", (0, (3, 1, 1, 1, 1, 1))),
    (VERMILION, "h", (0, (8, 2))),
    (GREEN, "<", "-"),
    (PURPLE, ">", "-"),
)
ROLES: dict[str, dict[str, Any]] = {
    "student": {"color": VERMILION, "marker": "*", "linestyle": "-", "markersize": 10},
    "student alone": {"color": BLUE, "marker": "s", "linestyle": "--", "markersize": 6},
    "true ensemble": {"color": INK, "marker": "D", "linestyle": ":", "markersize": 6},
}
STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "text.parse_math": False,  # class names may contain dollar signs
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "hatch.color": "white",
    "image.composite_image": False,  # each image of an SVG keeps its own pixels
}


class Chart(NamedTuple):
    """A figure with its `text` alternative and a `caption` that explains how to read it."""

    title: str
    figure: Figure
    text: str
    caption: str

    def svg(self) -> str:
        """An `<svg>` element for a page, in the page's colours."""
        stream = io.StringIO()
        with chart_style({"svg.hashsalt": self.title + self.text}):
            metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
        return inline_svg(stream.getvalue(), self.text)

    def png(self) -> bytes:
        """A PNG on white, for pages that do not accept SVG."""
        stream = io.BytesIO()
        with chart_style():
            self.figure.savefig(stream, format="png", dpi=120, facecolor="white", metadata={"Software": None})
        return stream.getvalue()


@contextmanager
def chart_style(more: dict[str, Any] | None = None) -> Iterator[None]:
    """matplotlib with our style; no warnings of missing glyphs, since the browser's font has them."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    settings: Any = STYLE | (more or {})
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        logger.setLevel(logging.ERROR)
        yield
        logger.setLevel(level)


def axes(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of `WIDTH` × `height` inches, and its axes: one, or an array rows×columns."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def legend(figure: Figure, panels: Iterable[Any], columns: int = 2) -> None:
    """A legend below the panels."""
    pairs = [pair for axis in panels for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    handles, labels = zip(*pairs, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def log_ticks(axis: Any, ticks: list[float]) -> None:
    """Plain numbers at `ticks` of a logarithmic axis, no others."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_formatter(NullFormatter())
    axis.set_ticklabels([f"{tick:,g}" for tick in ticks])


def network_style(name: str, others: list[str]) -> dict[str, Any]:
    """Colour, marker and line of a network: fixed for roles, in turn for the `others` (teachers or runs)."""
    return ROLES[name] if name in ROLES else series_style(others.index(name))


def series_style(i: int) -> dict[str, Any]:
    """Colour, marker and line of the i-th series."""
    color, marker, line = SERIES[i % len(SERIES)]
    return {"color": color, "marker": marker, "linestyle": line, "markersize": 6}


def line_style(i: int) -> dict[str, Any]:
    """Colour and line of the i-th series without its marker, for curves of many points."""
    color, _, line = SERIES[i % len(SERIES)]
    return {"color": color, "linestyle": line, "linewidth": 1.8}


def signed_bars(axis: Any, values: np.ndarray, good: int = 1, **options: Any) -> None:
    """Horizontal bars to the left and right of 0; the worse ones are hatched. `good`: the sign that is better."""
    worse = np.sign(values) == -good
    colors = [VERMILION if w else GREEN for w in worse]
    bars = axis.barh(range(len(values)), values, color=colors, ecolor=INK, capsize=3, **options)
    for bar, is_worse in zip(bars, worse, strict=True):
        bar.set_hatch("////" if is_worse else "")
    axis.axvline(0, color=INK, linewidth=1)
    axis.grid(axis="y", visible=False)


def name_rows(axis: Any, labels: list[str]) -> None:
    """Label the rows 0, 1, … of a chart, the first at the top."""
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()


def heat_map(axis: Any, table: np.ndarray, digits: int, most: float, skip_diagonal: bool = False) -> None:
    """Cells coloured from 0 to `most` with their values; nan is a dash."""
    axis.pcolormesh(table, cmap="cividis", vmin=0, vmax=most, edgecolor="white", linewidth=0.5)
    for (i, j), value in np.ndenumerate(table):
        if skip_diagonal and i == j:
            continue
        text = "–" if np.isnan(value) else f"{value:.{digits}f}"
        color = "black" if value > 0.55 * most else "white"
        axis.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=9, color=color)
    axis.grid(visible=False)


def shorten(name: str, length: int = 18) -> str:
    """A name on one line, cut in the middle if it is longer than `length`: long names often begin alike."""
    name = " ".join(name.split())
    end = length // 3
    return name if len(name) <= length else f"{name[: length - 1 - end]}…{name[-end:]}"


def inline_svg(svg: str, text: str) -> str:
    """matplotlib's SVG as one accessible image in the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    for pattern in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r" font-family: [^;\"]*;?"):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    svg = re.sub(r'style="[^"]*"', lambda match: re.sub("|".join(THEMED), lambda c: THEMED[c[0]], match[0]), svg)
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    head, _, rest = svg.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', head)
    assert box is not None
    width = f"max-width:{1.5 * float(box[1]):.0f}px"  # beyond this, text is larger than the page's
    xlink = 'xmlns:xlink="http://www.w3.org/1999/xlink"'  # an XML namespace; nothing is fetched
    return f'<svg {box[0]} role="img" aria-label="{escape(text)}" style="{width}" {xlink}>{rest}'
