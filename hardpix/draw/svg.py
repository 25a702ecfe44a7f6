"""Charts for a page: matplotlib's SVG, whose colours the page's style sets, so that they suit light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hardpix.draw.charts import COLORS, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (4.4, 3.0)  # inches of a chart
# Colours that stand for those of the page: var(--s0) to var(--s6) of series, var(--ink), var(--line).
SERIES = [f"#0000{i:02x}" for i in range(1, len(COLORS) + 1)]
INK, GRID = "#0000f0", "#0000f1"
VARIABLES = {INK: "ink", GRID: "line", **{color: f"s{i}" for i, color in enumerate(SERIES)}}
STYLE: Any = {
    "svg.hashsalt": "hardpix",  # ids that depend on the content alone
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "font.size": 10.0,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
}
# What an SVG in a page does not need, or what would have effects outside of it.
SURPLUS = re.compile(
    r"<metadata>.*?</metadata>|<style.*?</style>|<clipPath.*?</clipPath>|<defs>\s*</defs>"
    r'| clip-path="[^"]*"| id="(?!m[0-9a-f]{8})[^"]*"| xmlns(:\w+)?="[^"]*"| version="[^"]*"',
    re.DOTALL,
)
MARKED = 15  # points of a curve up to which each has a mark


class Series(NamedTuple):
    """What one row shows in a chart. ``style``: colour, mark and dash, by number.

    ``kind``: ``curve`` has a band of one deviation, ``points`` are joined and have bars of one deviation, ``run`` is
    a thin line, ``level`` a horizontal line and band of its only point.
    """

    style: int
    kind: Literal["curve", "points", "run", "level"]
    x: Sequence[float]
    y: Sequence[float]
    y_std: Sequence[float] = ()
    x_std: Sequence[float] = ()


def chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    ticks: Sequence[tuple[float, str]] = (),
    log: bool = False,
) -> str:
    """An ``<svg>`` without a legend: :func:`key` draws what belongs before a name. ``ticks``: of the x axis."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for one in series:
            _draw(axes, one)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.locator_params(axis="x", nbins=6)
        if log:
            axes.set_xscale("log")
            axes.minorticks_off()
        if ticks:
            places, names = zip(*ticks, strict=True)
            axes.set_xticks(places, names, rotation=45 if len(ticks) > 7 else 0)
            axes.margins(x=0.1)
        return _text(figure, f"{y_label} over {x_label}")


def key(style: int) -> str:
    """A short line with its mark, as :func:`chart` draws it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(0.42, 0.17))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.set(xlim=(-1, 1), ylim=(-1, 1))
        axes.plot([-1, 0, 1], [0, 0, 0], **_style(style), markevery=[1])
        return _text(figure, "")


def number(value: float) -> str:
    """Four digits, large numbers with k, M or G."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if letter == 'k' else unit):.4g}{letter}"
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"


def _draw(axes: Axes, one: Series) -> None:
    style = _style(one.style)
    color = style["color"]
    deviation = one.y_std or [0.0] * len(one.y)
    low = [y - d for y, d in zip(one.y, deviation, strict=True)]
    high = [y + d for y, d in zip(one.y, deviation, strict=True)]
    if one.kind == "run":
        axes.plot(one.x, one.y, color=color, linewidth=1, alpha=0.7)
    elif one.kind == "level":
        axes.axhspan(low[0], high[0], color=color, alpha=0.12, linewidth=0)
        axes.axhline(one.y[0], color=color, linestyle="--")
    elif one.kind == "curve":
        axes.fill_between(one.x, low, high, color=color, alpha=0.14, linewidth=0)
        axes.plot(one.x, one.y, **style | ({} if len(one.x) <= MARKED else {"marker": ""}))
    else:
        x_std = one.x_std if any(one.x_std) else None
        axes.errorbar(one.x, one.y, deviation if any(deviation) else None, x_std, **style, capsize=3)


def _text(figure: Figure, label: str) -> str:
    """The element alone, as wide as its place; ``label`` is read out, without one it is decoration."""
    from html import escape

    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    text = SURPLUS.sub("", buffer.getvalue().partition("<svg")[2])
    for color, name in VARIABLES.items():
        text = text.replace(color, f"var(--{name})")
    text = re.sub(r"\s+", " ", re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2))
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return f'<svg class="{"chart" if label else "key"}" {role}{text}'.strip()


def _style(i: int) -> dict[str, Any]:
    return line_style(i) | {"color": SERIES[i % len(SERIES)]}
