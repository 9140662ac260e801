"""Figures as inline SVG: drawn by matplotlib in stand-in colours, which become the page's own, so
that one drawing is readable in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

# A stand-in for each colour of the page: what no drawing has by itself.
INK, MUTED, GRID, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#0101a{i}" for i in range(1, 8))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    colour: f"series-{i}" for i, colour in enumerate(SERIES, 1)
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # a series is told by its shape too

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: the reader's font, and it can be searched
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.4,
    "text.color": INK,
    "text.parse_math": False,  # a name with `$` is a name
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a page: inline SVG, its title, and what it shows in words."""

    name: str
    title: str
    caption: str
    svg: str


class Canvas:
    """A drawing under way: matplotlib's figure, and the tips that its marks show."""

    def __init__(self, figure: Any) -> None:
        self.figure = figure
        self.tips: dict[str, str] = {}

    def tip(self, artist: Any, text: str) -> None:
        """Show `text` where the pointer rests on this mark."""
        name = f"tip{len(self.tips)}"
        artist.set_gid(name)
        self.tips[name] = text


@contextmanager
def drawing(width: float, height: float) -> Iterator[Canvas]:
    """A canvas of this size in inches, in the house style; no window, no global state."""
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.figure import Figure as Drawing

    with rc_context():
        rcdefaults()  # a reader's matplotlibrc is not the page's
        rcParams.update(STYLE)
        yield Canvas(Drawing(figsize=(width, height), layout="constrained"))


def svg(canvas: Canvas, name: str, label: str) -> str:
    """The drawing as an inline SVG element; `name` keeps its ids apart from other drawings'."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.figure.savefig(buffer, format="svg", metadata=empty, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)  # the page scales it
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    for mark, tip in canvas.tips.items():
        text = text.replace(
            f'<g id="{name}-{mark}">', f'<g id="{name}-{mark}"><title>{escape(tip)}</title>'
        )
    title = f"<title>{escape(label)}</title>"
    head, end, rest = text.partition(">")
    return f'{head} role="img"{end}{title}{rest}'.strip()


def colours(names: list[str], first: str | None = None) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name; `first` has the first one."""
    order = ([first] if first in names else []) + [name for name in names if name != first]
    return {
        name: (SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(order)
    }


def ticks(axis: Any, text: Callable[[float], str], values: list[float] | None = None) -> None:
    """Label an axis in words; of a logarithmic one, the given ticks, or 1, 2 and 5 of each
    decade."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    if values is not None:
        axis.set_major_locator(FixedLocator(values))
    elif axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def si(value: float, unit: str = "") -> str:
    """A number with an SI prefix: `1.5 M`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def binary(size_bytes: float) -> str:
    """A size of memory: `16 MiB`."""
    for factor, prefix in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.3g} {prefix}B"
    return f"{size_bytes:.0f} B"
