"""12 · How charts look: one width, one palette, text beside every picture. matplotlib draws; nothing here knows runs.

The palette is Okabe and Ito's (2008), told apart without colour vision; markers, dashes and hatches say the same again.
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
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter

WIDTH = 4.6  # inches: as wide as a phone, so that text is not shrunk there
INK, GRID = "#1f2328", "#d3d7dc"  # in a page they follow its colours
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
RULES = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "text.parse_math": False,  # names of classes may hold dollars
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
}


class Chart(NamedTuple):
    """A picture and what it says: `text` tells its content to those who do not see it, `caption` how to read it."""

    title: str
    figure: Figure
    text: str
    caption: str

    def svg(self) -> str:
        """An `<svg>` for the inside of a page, in the page's colours."""
        stream = io.StringIO()
        with rules({"svg.hashsalt": self.title + self.text}):
            self.figure.savefig(stream, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
        return in_page(stream.getvalue(), self.text)

    def png(self) -> bytes:
        """A picture on white for pages that take no SVG."""
        stream = io.BytesIO()
        with rules():
            self.figure.savefig(stream, format="png", dpi=120, facecolor="white", metadata={"Software": None})
        return stream.getvalue()


XLINK = "http://www.w3.org/1999/xlink"  # a name, not an address: nothing is fetched
_METADATA = ("Creator", "Date", "Format", "Type")


@contextmanager
def rules(more: dict[str, Any] | None = None) -> Iterator[None]:
    """matplotlib with our looks, and quiet about letters that its font has not: the reader's browser has them."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    looks: Any = RULES | (more or {})
    with matplotlib.rc_context(looks), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        logger.setLevel(logging.ERROR)
        yield
        logger.setLevel(level)


def axes(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of our width, `height` inches high, and its axes: a rows×columns array, or the one."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def legend(figure: Figure, panels: Iterable[Any], columns: int = 2) -> None:
    """The series' names below the picture, where they cover nothing."""
    pairs = [pair for axis in panels for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    handles, labels = zip(*pairs, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def log_ticks(axis: Any, ticks: list[float]) -> None:
    """Plain numbers at `ticks` of a logarithmic axis, and no others."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_formatter(NullFormatter())
    axis.set_ticklabels([f"{tick:,g}" for tick in ticks])


def style(name: str, others: list[str]) -> dict[str, Any]:
    """Colour, marker and line of a network: a role has its own, the `others` (teachers, or runs) have them in turn."""
    return ROLES[name] if name in ROLES else series(others.index(name))


def series(i: int) -> dict[str, Any]:
    """Colour, marker and line of the i-th of many."""
    color, marker, line = SERIES[i % len(SERIES)]
    return {"color": color, "marker": marker, "linestyle": line, "markersize": 6}


def no_marker(look: dict[str, Any]) -> dict[str, Any]:
    """The look of a line of many points."""
    return {"color": look["color"], "linestyle": look["linestyle"]}


def short(name: str, length: int = 18) -> str:
    """A name on one line and not too long for an axis; of a long one both ends, since many begin alike."""
    name = " ".join(name.split())
    end = length // 3
    return name if len(name) <= length else f"{name[: length - 1 - end]}…{name[-end:]}"


def in_page(svg: str, text: str) -> str:
    """matplotlib's SVG as a page wants it: one image to a screen reader, in the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    for gone in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r" font-family: [^;\"]*;?"):
        svg = re.sub(gone, "", svg, flags=re.DOTALL)
    svg = re.sub(r'style="[^"]*"', lambda match: _themed(match[0]), svg)
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    head, _, rest = svg.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', head)
    assert box is not None
    width = f"max-width:{1.5 * float(box[1]):.0f}px"  # larger, the letters would shout
    return f'<svg {box[0]} role="img" aria-label="{escape(text)}" style="{width}" xmlns:xlink="{XLINK}">{rest}'


def _themed(style: str) -> str:
    for colour, themed in THEMED.items():
        style = style.replace(colour, themed)
    return style
