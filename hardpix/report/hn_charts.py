"""Charts of height and normal labels: at which height objects are, and what cross-stitch factors become."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hardpix.report.charts import STYLE, line_style
from hardpix.types import HardpixError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = "metrics.csv"  # in a run's directory
STITCH = re.compile(r"stitch/(?P<unit>\d+)/(?P<stream>own|other)(?P<std>/std)?")
STREAMS = {"own": "trained stream", "other": "fixed stream"}
SAID = 0.05  # shares from here on are written into their cells


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
            if share >= SAID:
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
