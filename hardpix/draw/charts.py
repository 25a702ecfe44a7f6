"""Charts with matplotlib, saved as PNG, PDF and CSV."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from hardpix.record import METRICS, obstacle, replacing
from hardpix.types import HardpixError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's colours without yellow, distinguished by the colour-blind; shapes differ as well.
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
    """Pixels per bin, a bar for each run next to the others'; a single one's bars are labelled."""
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
    spaced where a value is no number, or a zero would stand on a scale of decades.
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


# Charts of height and normal labels: at which height objects are, and what cross-stitch factors become.


STITCH = re.compile(r"stitch/(?P<unit>\d+)/(?P<stream>own|other)(?P<std>/std)?")
STREAMS = {"own": "trained stream", "other": "fixed stream"}
MIN_LABELLED_SHARE = 0.05  # shares from here on are written into their cells


class Factor(NamedTuple):
    """One factor of a cross-stitch unit at one time."""

    step: int
    unit: int  # from 1, behind the first level
    stream: str  # own | other
    value: float
    std: float  # over channels; NaN for a scalar


def by_height(counts: np.ndarray) -> list[int]:
    """Classes that occur, the highest first: by the mean height bin of their pixels ``[C, bins]``."""
    present = [c for c in range(len(counts)) if counts[c].sum()]
    mean = {c: float(counts[c] @ np.arange(counts.shape[1]) / counts[c].sum()) for c in present}
    return sorted(present, key=lambda c: -mean[c])


def height_chart(counts: np.ndarray, classes: Sequence[str], edges: Sequence[float], *, title: str) -> Figure:
    """Share of the pixels of each class ``[C, bins]`` in each height bin, in colour; a row sums to one."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    order = by_height(counts)
    shares = np.stack([counts[c] / counts[c].sum() for c in order])
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.2, 1.6 + 0.27 * len(order)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            if share >= MIN_LABELLED_SHARE:
                ink = "white" if share < 0.6 else "black"
                axes.text(
                    column, row, f"{100 * share:.0f}", color=ink, fontsize=7.5, ha="center", va="center"
                )
        axes.set_yticks(range(len(order)), [f"{classes[c]} ({_short(int(counts[c].sum()))})" for c in order])
        axes.set_xticks(
            [k - 0.5 for k in range(len(edges) + 1)], [*(f"{edge:g}" for edge in edges), "\N{INFINITY}"]
        )
        axes.set_xlabel("height above the floor (m)")
        axes.set_ylabel("class (pixels)")
        axes.set_title(title)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label="share of the class", aspect=30)
        return figure


def _short(count: int) -> str:
    """411, 1.8k, 2.0M."""
    from matplotlib.ticker import EngFormatter

    return str(count) if count < 1000 else EngFormatter(sep="", places=1)(count)


def read_factors(directory: Path) -> list[Factor]:
    """Every cross-stitch factor that a run logged, by unit, stream and step; raises if it has none."""
    path = directory / METRICS
    if not path.is_file():
        raise HardpixError(f"{path} does not exist; a directory that `hardpix train` wrote is needed.")
    found = []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            for name, text in row.items():
                match = STITCH.fullmatch(name or "")
                if match and text and not match["std"]:
                    std = float(row.get(f"{name}/std") or "nan")
                    place = int(row["step"]), int(match["unit"])
                    found.append(Factor(*place, match["stream"], float(text), std))
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise HardpixError(f"{path} is damaged ({error}).") from None
    if not found:
        raise HardpixError(f"{directory} has no cross-stitch factors: train it with model=cross_stitch.")
    return sorted(found, key=lambda f: (f.unit, list(STREAMS).index(f.stream), f.step))


def stitch_chart(factors: Sequence[Factor], *, title: str) -> Figure:
    """A plot for each stream, a line for each unit; per channel its mean and a band of one standard deviation."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    units = sorted({factor.unit for factor in factors})
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 3.8), layout="constrained")
        for plot, (stream, name) in zip(figure.subplots(1, 2), STREAMS.items(), strict=True):
            for i, unit in enumerate(units):
                members = [f for f in factors if (f.unit, f.stream) == (unit, stream)]
                steps, values = [f.step for f in members], np.array([f.value for f in members])
                style = line_style(i) | {"markersize": 4 if len(members) < 30 else 0}
                plot.plot(steps, values, **style, label=f"unit {unit}")
                std = np.array([f.std for f in members])
                if not np.isnan(std).all():
                    low, high = values - std, values + std
                    plot.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
            plot.set_xlabel("training step")
            plot.set_title(f"factor of the {name}")
        figure.legend(*plot.get_legend_handles_labels(), loc="outside lower center", ncols=len(units))
        figure.suptitle(title, fontsize=11)
        return figure


def height_rows(
    counts: np.ndarray, classes: Sequence[str], edges: Sequence[float]
) -> list[tuple[object, ...]]:
    """Of the CSV: class, low and high in metres, pixels, share of the class (NaN for one that never occurs)."""
    ends = [*edges[1:], math.inf]
    return [
        (name, low, high, int(pixels), pixels / total if total else math.nan)
        for name, row in zip(classes, counts, strict=True)
        for total in (int(row.sum()),)
        for low, high, pixels in zip(edges, ends, row.tolist(), strict=True)
    ]


# Figures as files: PNG and PDF with the same content, a CSV of the numbers next to them, whole or not at
# all.


SUFFIXES = (".png", ".pdf")
DPI = 200
# No date and no program version: the same runs give the same bytes.
METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def targets(out: Path, kind: str) -> list[Path]:
    """The pictures to write for ``--out``: a file that ends in .png or .pdf, or both of them in a folder."""
    suffix = out.suffix.lower()
    as_file = suffix in SUFFIXES and not out.is_dir()
    folder = out.parent if as_file else out
    if suffix and not as_file and not out.is_dir():
        raise HardpixError(f"--out {out}: must end in .png or .pdf, or be a folder without a dot in its name")
    taken = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    if taken is not None:
        raise HardpixError(f"--out {out}: {taken} is a file; name a folder, or a file in one")
    if problem := obstacle(folder, folder=True):
        raise HardpixError(f"--out {out}: {problem}; name a place that can be written")
    return [out] if as_file else [out / f"{kind}{s}" for s in SUFFIXES]


def save_chart(figure: Figure, paths: Iterable[Path]) -> None:
    for path in paths:
        suffix = path.suffix.lower()
        _write(path, partial(figure.savefig, format=suffix[1:], dpi=DPI, metadata=METADATA[suffix]))


def save_picture(picture: Image.Image, paths: Iterable[Path]) -> None:
    """Every pixel as it is, also in the PDF (where Pillow itself would compress like a photograph)."""
    for path in paths:
        if path.suffix.lower() == ".png":
            _write(path, partial(picture.save, format="png"))
        else:
            save_chart(_as_figure(picture), [path])


def save_numbers(header: Sequence[str], rows: Iterable[Sequence[object]], path: Path) -> None:
    def write(unfinished: Path) -> None:
        with open(unfinished, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    _write(path, write)


def save_points(points: np.ndarray, colors: np.ndarray, path: Path) -> None:
    """``[N, 3]`` metres and ``[N, 3]`` uint8 RGB as a binary PLY, which every viewer of point clouds opens."""
    vertices = np.empty(len(points), [("place", "<f4", 3), ("color", "u1", 3)])
    vertices["place"], vertices["color"] = points, colors
    places, channels = (f"property {kind}" for kind in ("float", "uchar"))
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [
        *(f"{places} {axis}" for axis in "xyz"),
        *(f"{channels} {name}" for name in ("red", "green", "blue")),
    ]
    content = "\n".join([*header, "end_header\n"]).encode() + vertices.tobytes()
    _write(path, lambda unfinished: unfinished.write_bytes(content))


def _as_figure(picture: Image.Image) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(picture.width / DPI, picture.height / DPI), dpi=DPI)
    figure.figimage(np.asarray(picture), origin="upper")
    return figure


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, sync=False) as unfinished:
            write(unfinished)
    except OSError as error:
        raise HardpixError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None


# How often the segmentation errs where depth is missed by little or by much (LWM's study of single
# images).


BINS, SHARE = 10, 0.99
LARGEST = math.log(256)  # of |log D - log D*|, both in [0, log 256]
STEP = 2.0**-16  # a power of two: errors, edges and their ratios are exact


class DepthErrors:
    """Pixels and wrongly segmented ones, counted in steps of their depth error; frames need not stay in memory."""

    def __init__(self) -> None:
        steps = math.ceil(LARGEST / STEP) + 1
        self.pixels, self.wrong = np.zeros(steps, np.int64), np.zeros(steps, np.int64)

    def add(self, gap: np.ndarray, counted: np.ndarray, wrong: np.ndarray) -> None:
        """``gap`` ``|log D - log D*|``, ``counted`` (labelled, with depth) and ``wrong``: arrays of one shape."""
        step = np.minimum(gap[counted] / STEP, len(self.pixels) - 1).astype(np.int64)
        self.pixels += np.bincount(step, minlength=len(self.pixels))
        self.wrong += np.bincount(step[wrong[counted]], minlength=len(self.wrong))


class Bin(NamedTuple):
    low: float  # of |log D - log D*|
    high: float  # not included; infinite for the last bin
    pixels: int
    wrong: int

    @property
    def rate(self) -> float:
        """Share of wrong pixels; NaN without a pixel."""
        return self.wrong / self.pixels if self.pixels else math.nan


def binned(errors: Mapping[str, DepthErrors]) -> dict[str, list[Bin]]:
    """Ten bins of equal width for every run, the last one open: ``[0, w), [w, 2w), ... [9w, inf)``.

    The edges are common: ``10 w`` is the 99th percentile of the depth errors of all runs, rounded up by less than
    ``11 STEP``, where ten bins of whole steps end.
    """
    total = np.cumsum(np.sum([e.pixels for e in errors.values()], axis=0))
    percentile = int(np.searchsorted(total, SHARE * total[-1]))
    width = percentile // BINS + 1  # in steps
    starts = np.arange(BINS) * width
    lows = [float(start * STEP) for start in starts]
    return {
        run: [
            Bin(*values)
            for values in zip(
                lows,
                [*lows[1:], math.inf],
                np.add.reduceat(e.pixels, starts).tolist(),
                np.add.reduceat(e.wrong, starts).tolist(),
                strict=True,
            )
        ]
        for run, e in errors.items()
    }
