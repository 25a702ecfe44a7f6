"""Figures of hardness maps: by tenths of hardness, ranking of errors, similarity, evolution.

Maps are ``[H, W]`` float arrays, higher is harder, NaN without a label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hardpix.draw.charts import MARKERS, STYLE, color, line_style
from hardpix.draw.pictures import COLORMAP, VOID, ColumnGroup, Entry, Tile, colorize, heatmap
from hardpix.figures.runs import FigureRun
from hardpix.metrics import ErrorRanking
from hardpix.ops.hardness import HardMap, mean_ssim, rank_correlation, ssim_map
from hardpix.train import rundir
from hardpix.train.checkpoint import load_file
from hardpix.train.results import (
    RANKING_INTERVALS,
    batches,
    frames,
    interval_edges,
    labelled,
    maps_of,
    predict_batch,
    unnormalize,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hardpix.data import DataModule
    from hardpix.methods import Method
    from hardpix.metrics.hardness import Group
    from hardpix.types import Batch, DatasetInfo


FLAT = 0.03  # SSIM's constant relative to the deviations of two maps on [0, 1]: below it, it decides
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
                summary = (
                    run if len(lines) == 1 else f"{run}, pixels ranked by {'itself' if by == run else by}"
                )
                places = range(1, len(groups) + 1)
                plot.plot(places, [100 * getattr(g, score) for g in groups], **style, label=summary)
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
                # Runs next to each other, as equal values would hide each other.
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


def similarity_rows(pairs: Sequence[Pair], labels: Sequence[str], title: str) -> list[list[ColumnGroup]]:
    """Image, both maps in one range of colours, SSIM around each pixel; a row per frame."""
    low, high = common_range([m for pair in pairs for m in (pair.a, pair.b)])
    summary = f"{title} {low:.2f} to {high:.2f}"
    rows = []
    for pair in pairs:
        edge = [(a - b) // 2 for a, b in zip(pair.a.shape, pair.local.shape, strict=True)]
        local = np.pad(pair.local, [(e, e) for e in edge], constant_values=np.nan)
        rows.append(
            [
                ColumnGroup("", [Tile(pair.image, pair.frame, smooth=True)]),
                *(
                    ColumnGroup(label, [Tile(heatmap(m, low, high), summary)])
                    for label, m in zip(labels, (pair.a, pair.b), strict=True)
                ),
                ColumnGroup("similarity", [Tile(heatmap(local, 0, 1), f"0 to 1, mean {pair.value:.3f}")]),
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


# What the figures of hardness maps show, computed over a split or, for their evolution, on one frame.


@torch.inference_mode()
def ranking(
    methods: Mapping[str, Method],
    maps: Mapping[str, Mapping[str, HardMap]],
    data: DataModule,
    split: str,
    limit: int | None,
) -> list[Ranked]:
    """For every run and each of its ``maps`` how well it ranks the run's errors, and how it goes with the truth."""
    device = next(iter(methods.values())).device
    edges = interval_edges(methods, maps, RANKING_INTERVALS, data, split, limit)
    counts = {key: ErrorRanking(cuts).to(device) for key, cuts in edges.items()}
    for batch in frames(data, split, limit, device):
        valid = labelled(batch["label"], data)
        for run, method in methods.items():
            found = predict_batch(method, batch, maps[run], valid, run)
            for name, values in found.maps.items():
                truth: Any = None if name == "true" else batch.get("hardness")
                counts[run, name].update(values, found.wrong, truth)
    return [
        Ranked(run, name, maps[run][name].title, bool(maps[run][name].needs), **count.compute())
        for (run, name), count in counts.items()
    ]


@torch.inference_mode()
def similarities(
    methods: Sequence[Method],
    maps: Sequence[HardMap],
    labels: Sequence[str],
    name: str,
    data: DataModule,
    split: str,
    limit: int | None,
    shown: Sequence[str],
) -> tuple[list[tuple[str, float]], list[Pair]]:
    """(frame, SSIM of the two methods' maps) of a split, NaN where no window has a label; and the ``shown`` frames.

    The frames are those of ``data``, the first method's; the second sees them as its own data set normalises.
    """
    values, pairs = [], []
    for batch in frames(data, split, limit, methods[0].device):
        valid = labelled(batch["label"], data)
        a, b = (
            maps_of(method, normalised(batch, data.info, method.info), {name: about}, valid, who)[name]
            for method, about, who in zip(methods, maps, labels, strict=True)
        )
        local = ssim_map(a, b)
        for i, (frame, value) in enumerate(zip(batch["name"], mean_ssim(local).tolist(), strict=True)):
            values.append((frame, value))
            if frame in shown:
                image = unnormalize(batch["image"][i], data.info)
                one, two, around = (x[i].cpu().numpy() for x in (a, b, local))
                pairs.append(Pair(frame, image, one, two, around, value))
    return values, pairs


def normalised(batch: Batch, of: DatasetInfo, wanted: DatasetInfo) -> Batch:
    """A batch as another data set's mean and deviation would have it."""
    if (of.mean, of.std) == (wanted.mean, wanted.std):
        return batch
    image = batch["image"]
    mean, std, mean_wanted, std_wanted = (
        image.new_tensor(x).view(3, 1, 1) for x in (of.mean, of.std, wanted.mean, wanted.std)
    )
    changed: Any = dict(batch) | {"image": (image * std + mean - mean_wanted) / std_wanted}
    return changed


@torch.inference_mode()
def evolution(
    run: FigureRun,
    method: Method,
    maps: Mapping[str, HardMap],
    data: DataModule,
    place: int,
    split: str,
    epochs: Sequence[int],
) -> tuple[Batch, list[Step]]:
    """The frame, and for each kept epoch the map (the first of ``maps``), the loss and the prediction on it."""
    (batch,) = batches(data, split, [place], method)
    valid = labelled(batch["label"], data)
    name, steps = next(iter(maps)), []
    for epoch in epochs:
        kept = load_file(method, rundir.snapshot(run.directory, epoch))
        found = predict_batch(method, batch, maps, valid, f"{run.label}, epoch {epoch}")
        values, loss = found.maps[name][0], found.maps["loss"][0]
        both = torch.isfinite(values) & torch.isfinite(loss)
        rho = rank_correlation(values[both], loss[both]) if both.any() else math.nan
        share = float(found.wrong.sum() / valid.sum().clamp_min(1))
        shown, cost, pred = (x.cpu().numpy() for x in (values, loss, found.pred[0]))
        steps.append(Step(epoch, int(kept["global_step"]), shown, cost, pred, rho, share))
    return batch, steps


# The numbers of the figures of hardness maps on screen.


def show_deciles(lines: Mapping[tuple[str, str], Sequence[Group]]) -> None:
    """Percent; below, how far ties can move the accuracy of a group."""
    table = Table(title="tenths of the pixels, 1 the hardest")
    table.add_column("group", justify="right")
    for run, by in lines:
        of = f"{escape(run)}\n" + (f"ranked by {escape(by)}" if by != run else "own ranking")
        table.add_column(f"{of}\nmIoU %", justify="right")
        table.add_column("\n\naccuracy %", justify="right")
    for i, row in enumerate(zip(*lines.values(), strict=True), 1):
        scores = [_number(100 * x, 2) for group in row for x in (group.miou, group.pixel_acc)]
        table.add_row(str(i), *scores)
    Console().print(table)
    first = next(iter(lines.values()))
    tied = max(group.tied for groups in lines.values() for group in groups)
    print(
        f"{first[0].pixels:,.1f} pixels in each group; at most {100 * tied:.3g} % of a group comes from ties at its "
        "ends, which are shared out in proportion"
    )


def show_ranking(rows: Sequence[Ranked]) -> None:
    table = Table(title="how hardness maps rank the errors of their runs")
    table.add_column("run")
    table.add_column("map")
    for name in ("pixels", "errors %", "AUROC", "AP", "Spearman, true hardness"):
        table.add_column(name, justify="right")
    last = None
    for row in rows:
        if last not in (None, row.run):
            table.add_section()
        scores = (_number(x, 4) for x in (row.auroc, row.ap, row.spearman))
        parts = (f"{row.pixels:,.0f}", _number(100 * row.error_rate, 2), *scores)
        table.add_row(escape(row.run) if row.run != last else "", escape(row.marked), *parts)
        last = row.run
    Console().print(table)
    if any(row.from_truth for row in rows):
        print(f"{TRUTH} made with the truth: labels, depth, or what the data set knows")


def show_similarities(values: Sequence[tuple[str, float]], labels: Sequence[str], title: str) -> float:
    """Prints and returns the mean over the frames that have one."""
    known = np.array([value for _, value in values if not math.isnan(value)])
    lacking = len(values) - len(known)
    if not len(known):
        print("no frame has a labelled pixel five or more from its border: no SSIM")
        return math.nan
    print(
        f"SSIM of {title}, {labels[0]} and {labels[1]}: mean {known.mean():.4f} over {len(known)} frames (lowest "
        f"{known.min():.4f}, median {np.median(known):.4f}, highest {known.max():.4f})"
    )
    if lacking:
        print(f"note: {lacking} frames have no labelled pixel five or more from the border and are left out")
    return float(known.mean())


def show_evolution(steps: Sequence[Step], frame: str, title: str) -> None:
    table = Table(title=f"{escape(frame)}: {escape(title)} and the loss")
    for name in ("epoch", "iteration", "Spearman", "wrong %", "mean of the map", "mean loss"):
        table.add_column(name, justify="right")
    for s in steps:
        means = (f"{np.nanmean(values):.4f}" for values in (s.map, s.loss))
        table.add_row(str(s.epoch), str(s.iteration), _number(s.rho, 4), _number(100 * s.wrong, 2), *means)
    Console().print(table)


def _number(value: float, places: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{places}f}"
