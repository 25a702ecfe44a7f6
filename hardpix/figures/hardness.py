"""Figures of hardness maps: scores by tenths of hardness, how maps rank errors, two maps compared, one over training.

Maps are ``[H, W]`` float arrays, higher is harder, NaN without a label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hardpix.report.charts import MARKERS, STYLE, color, line_style
from hardpix.report.figures import COLORMAP, VOID, Entry, colorize, heatmap
from hardpix.report.grid import Group, Tile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hardpix.types import DatasetInfo

FLAT = 0.03  # SSIM's constant beside the deviations of two maps on [0, 1]: below it, it decides
TRUTH = "*"  # behind the name of a map that is made of the truth


class Ranked(NamedTuple):
    """How well a run's map ranks its errors."""

    run: str
    map: str
    title: str
    from_truth: bool
    pixels: float
    error_rate: float
    auroc: float
    ap: float
    spearman: float  # with the true hardness; NaN where that is not known

    @property
    def marked(self) -> str:
        return self.title + TRUTH * self.from_truth


class Pair(NamedTuple):
    """The maps of two runs on one frame."""

    frame: str
    image: np.ndarray
    a: np.ndarray
    b: np.ndarray
    local: np.ndarray  # SSIM around each pixel, without the border of the window
    value: float


class Step(NamedTuple):
    """One frame at one time of the training."""

    epoch: int
    iteration: int
    map: np.ndarray
    loss: np.ndarray
    pred: np.ndarray
    rho: float  # Spearman's correlation of map and loss
    wrong: float  # share of the labelled pixels


def decile_chart(lines: Mapping[tuple[str, str], Sequence[Any]], *, title: str, ranked_by: str) -> Figure:
    """mIoU and pixel accuracy of each group, hardest first; a line per (run, run whose map ranks)."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    runs = list(dict.fromkeys(run for run, _ in lines))
    with rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.2), layout="constrained")
        plots = figure.subplots(1, 2)
        for plot, score, name in zip(plots, ("miou", "pixel_acc"), ("mIoU", "pixel accuracy"), strict=True):
            for (run, by), groups in lines.items():
                i = runs.index(run)
                style = line_style(i) | (
                    {} if by == runs[0] else {"linestyle": "--", "markerfacecolor": "white"}
                )
                told = run if len(lines) == 1 else f"{run}, pixels ranked by {'itself' if by == run else by}"
                places = range(1, len(groups) + 1)
                plot.plot(places, [100 * getattr(g, score) for g in groups], **style, label=told)
            plot.set_xticks(places)
            plot.set_title(f"{name} (%)")
            plot.set_xlabel("tenth of the pixels, 1 the hardest")
        handles, labels = plots[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(lines)))
        figure.suptitle(f"{title}\nranked by {ranked_by}", fontsize=11)
        return figure


def ranking_chart(rows: Sequence[Ranked], *, title: str) -> Figure:
    """AUROC, average precision and, where known, the correlation with the true hardness: a dot per run and map."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    runs, maps = (list(dict.fromkeys(row[i] for row in rows)) for i in (0, 1))
    scores = {"auroc": "AUROC of errors", "ap": "average precision of errors"}
    if any(math.isfinite(row.spearman) for row in rows):
        scores["spearman"] = "Spearman's \N{GREEK SMALL LETTER RHO} with the true hardness"
    with rc_context(STYLE):
        high = 1.7 + 0.34 * len(maps) + 0.25 * (len(runs) > 1)
        figure = Figure(figsize=(3.2 * len(scores) + 1.6, high), layout="constrained")
        plots = figure.subplots(1, len(scores), sharey=True)
        for plot, score in zip(plots, scores, strict=True):
            for i, run in enumerate(runs):
                members = [row for row in rows if row.run == run]
                values = [getattr(row, score) for row in members]
                # Runs beside each other, as equal values would hide each other.
                shift = 0.16 * (i - (len(runs) - 1) / 2)
                places = [maps.index(row.map) + shift for row in members]
                style = {"color": color(i), "marker": MARKERS[i % len(MARKERS)]}
                plot.plot(values, places, **style, linestyle="", label=run)
                if score == "ap":
                    plot.axvline(_mean_rate(members), color=color(i), linestyle=":", linewidth=1.2)
            if score != "ap":
                plot.axvline(0.5 if score == "auroc" else 0, color="#707070", linestyle=":", linewidth=1.2)
            plot.set_title(scores[score])
        plots[0].set_yticks(range(len(maps)), [next(r.marked for r in rows if r.map == m) for m in maps])
        plots[0].set_ylim(len(maps) - 0.5, -0.5)
        plots[1].set_xlabel("dotted: what a random ranking has", color="#505050")
        if len(runs) > 1:
            handles, labels = plots[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(runs)))
        note = f"   ({TRUTH} made with the truth)" if any(row.from_truth for row in rows) else ""
        figure.suptitle(title + note, fontsize=11)
        return figure


def _mean_rate(rows: Sequence[Ranked]) -> float:
    """Share of errors among the pixels of the map that has most."""
    return max(rows, key=lambda row: row.pixels).error_rate


def similarity_rows(pairs: Sequence[Pair], labels: Sequence[str], title: str) -> list[list[Group]]:
    """Image, both maps in one range of colours, SSIM around each pixel; a row per frame."""
    low, high = common_range([m for pair in pairs for m in (pair.a, pair.b)])
    told = f"{title} {low:.2f} to {high:.2f}"
    rows = []
    for pair in pairs:
        edge = [(a - b) // 2 for a, b in zip(pair.a.shape, pair.local.shape, strict=True)]
        local = np.pad(pair.local, [(e, e) for e in edge], constant_values=np.nan)
        rows.append(
            [
                Group("", [Tile(pair.image, pair.frame, smooth=True)]),
                *(
                    Group(label, [Tile(heatmap(m, low, high), told)])
                    for label, m in zip(labels, (pair.a, pair.b), strict=True)
                ),
                Group("similarity", [Tile(heatmap(local, 0, 1), f"0 to 1, mean {pair.value:.3f}")]),
            ]
        )
    return rows


def flat(pairs: Sequence[Pair]) -> bool:
    """Whether in all pairs a map deviates from its mean so little that SSIM says next to nothing."""
    return all(min(np.nanstd(pair.a), np.nanstd(pair.b)) < FLAT for pair in pairs)


def common_range(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """From the 1st to the 99th percentile of what is defined in all; (0, 1) if nothing is."""
    values = np.concatenate([m[np.isfinite(m)] for m in maps])
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [1, 99]).tolist()
    return low, max(high, low + 1e-6)


def evolution_chart(
    steps: Sequence[Step],
    image: np.ndarray,
    truth: np.ndarray,
    info: DatasetInfo,
    *,
    title: str,
    map_title: str,
    entries: Sequence[Entry],
    true: np.ndarray | None,
) -> Figure:
    """Columns of epochs, rows of the map, the loss and the prediction; below, how map and loss correlate.

    ``true``: the frame's true hardness in [0, 1], where that is known.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    wide, columns = 1.9, len(steps) + 1
    high = wide * image.shape[0] / image.shape[1]
    with rc_context(STYLE | {"axes.grid": False}):
        lines = -(-len(entries) // max(3, 2 * columns))
        size = (wide * columns + 0.9, 3 * (high + 0.05) + 2.9 + 0.25 * lines)
        figure = Figure(figsize=size, layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(3 * high + 0.8, 2.1))
        pictures, below = parts
        axes = pictures.subplots(3, columns, squeeze=False)
        axes[0, 0].imshow(image)
        axes[0, 0].set_title("image", fontsize=9)
        axes[2, 0].imshow(colorize(truth, info.palette, info.ignore_index))
        axes[2, 0].set_title("truth", fontsize=9)
        if true is not None:
            axes[1, 0].imshow(heatmap(true, 0, 1))
            axes[1, 0].set_title("true hardness, 0 to 1", fontsize=9)
        for row, name in enumerate(("map", "loss")):
            _map_row(pictures, axes[row, 1:], [getattr(step, name) for step in steps])
        for i, step in enumerate(steps, 1):
            axes[0, i].set_title(f"epoch {step.epoch}, iteration {step.iteration}", fontsize=9)
            axes[2, i].imshow(colorize(step.pred, info.palette, info.ignore_index))
            axes[2, i].set_xlabel(f"{100 * step.wrong:.1f} % wrong", fontsize=9)
        for row, name in enumerate((map_title, "loss", "prediction")):
            axes[row, 1].set_ylabel(name, fontsize=9)
        for plot in axes.flat:
            plot.set(xticks=[], yticks=[])
            plot.spines[:].set_visible(False)
        _correlation(below.subplots(), steps, map_title)
        patches = [Patch(facecolor=_unit(rgb), edgecolor="black", label=n) for n, rgb in entries]
        below.legend(handles=patches, loc="outside lower center", ncols=max(3, 2 * columns), fontsize=8)
        figure.suptitle(title, fontsize=11)
        return figure


def _unit(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    r, g, b = rgb
    return r / 255, g / 255, b / 255


def _map_row(figure: Any, axes: Sequence[Axes], maps: Sequence[np.ndarray]) -> None:
    """Maps in one range of colours, with its bar."""
    from matplotlib import colormaps

    shades = colormaps[COLORMAP].with_extremes(bad=_unit(VOID))
    low, high = common_range(maps)
    for plot, values in zip(axes, maps, strict=True):
        shown = plot.imshow(np.ma.masked_invalid(values), cmap=shades, vmin=low, vmax=high)
    figure.colorbar(shown, ax=list(axes), pad=0.01, aspect=12).ax.tick_params(labelsize=8)


def _correlation(plot: Axes, steps: Sequence[Step], map_title: str) -> None:
    plot.plot([s.iteration for s in steps], [s.rho for s in steps], **line_style(0))
    plot.axhline(0, color="#707070", linestyle=":", linewidth=1.2)
    plot.grid(color="#e4e4e4")
    plot.set_xlabel("iteration")
    plot.set_ylabel("Spearman's \N{GREEK SMALL LETTER RHO}")
    plot.set_title(f"rank correlation of {map_title} and the loss on this frame", fontsize=10)
