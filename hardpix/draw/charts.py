"""Charts of runs, drawn without a display."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hardpix.report.depth_bins import Bin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours without yellow, told apart by the colour-blind; shapes differ as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")  # further lines than colours
STYLE: Any = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}
DECADES = 100  # a factor that spans this ratio is drawn on a logarithmic axis


class Point(NamedTuple):
    """One value of a swept factor on one line; mean and std in the metric's own unit."""

    x: str
    line: str
    mean: float
    std: float  # NaN below two seeds
    n: int


def depth_error_chart(runs: Mapping[str, Sequence[Bin]], *, title: str, shared: str = "") -> Figure:
    """Error rate of the segmentation per bin of depth error, over the pixels in each bin.

    ``shared``: label of the one run whose depth error all are drawn over; else each is over its own.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 5.2), layout="constrained")
        rates, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
        for i, (run, bins) in enumerate(runs.items()):
            places = [k + 0.5 for k in range(len(bins))]
            rates.plot(places, [100 * b.rate for b in bins], **line_style(i), label=run)
        _count_bars(counts, {"": next(iter(runs.values()))} if shared else runs)
        bins = next(iter(runs.values()))
        edges = [f"{b.low:.2f}" if b.low else "0" for b in bins]
        counts.set_xticks(range(len(bins) + 1), [*edges, "\N{INFINITY}"])
        counts.set_xlim(0, len(bins))
        whose = f"of {shared}" if shared else "of each run"
        counts.set_xlabel(f"depth error |log D \N{MINUS SIGN} log D*| {whose}")
        counts.set_ylabel("pixels")
        rates.set_ylabel("wrong pixels (%)")
        rates.set_ylim(0, 1.05 * rates.get_ylim()[1])  # a marker at the top is drawn whole
        rates.set_title(title)
        rates.legend()
        return figure


def _count_bars(axes: Axes, runs: Mapping[str, Sequence[Bin]]) -> None:
    """Pixels per bin, a bar for each run beside the others'; a single one's bars are labelled."""
    from matplotlib.ticker import EngFormatter

    short = EngFormatter(sep="", places=1)
    wide = 0.9 / len(runs)
    for i, (run, bins) in enumerate(runs.items()):
        left = [k + 0.05 + (i + 0.5) * wide for k in range(len(bins))]
        bars = axes.bar(left, [b.pixels for b in bins], wide, color=color(i) if run else "#a6a6a6")
        if len(runs) == 1:
            axes.bar_label(bars, [short(b.pixels) for b in bins], fontsize=7.5, padding=1)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(y=0.15)
    axes.grid(axis="x", visible=False)


def sweep_chart(
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    lines_label: str = "",
    scale: float = 1,
) -> Figure:
    """Mean against the factor, bars of one standard deviation; ``scale`` multiplies both.

    The axis is logarithmic where the values are positive and span decades, linear for other numbers, and evenly
    spaced where a value is no number, or a zero stands beside decades.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    values = list(dict.fromkeys(point.x for point in points))
    kind = axis_kind(values)
    lines = list(dict.fromkeys(point.line for point in points))
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axes = figure.subplots()
        for i, line in enumerate(lines):
            members = [p for p in points if p.line == line]
            places = [float(values.index(p.x)) if kind == "even" else float(p.x) for p in members]
            means = [scale * p.mean for p in members]
            spread = [0.0 if math.isnan(p.std) else scale * p.std for p in members]
            axes.errorbar(places, means, spread, **line_style(i), capsize=3, label=line)
        if kind == "even":
            axes.set_xticks(range(len(values)), values)
            axes.margins(x=0.1)
        elif kind == "log":
            axes.set_xscale("log")
            axes.set_xticks([float(v) for v in values], values)
            axes.minorticks_off()
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_title(title)
        if lines_label:
            axes.legend(title=lines_label)
        return figure


def axis_kind(values: Sequence[str]) -> str:
    """``log``, ``linear`` or ``even`` for the values of a factor as they are written."""
    numbers = [_number(value) for value in values]
    positive = [x for x in numbers if x is not None and x > 0]
    if None in numbers:
        return "even"
    decades = bool(positive) and max(positive) / min(positive) >= DECADES
    if decades and len(positive) == len(numbers):
        return "log"
    return "even" if decades else "linear"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def color(i: int) -> str:
    return COLORS[i % len(COLORS)]


def line_style(i: int) -> dict[str, Any]:
    return {
        "color": color(i),
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i // len(COLORS) % len(DASHES)],
        "markersize": 5,
    }
