"""Figures from records alone: scores over thresholds and over swept settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hardpix.config import published
from hardpix.config.command_line import suggestion
from hardpix.draw.charts import STYLE, Point, color, line_style, save_chart, save_numbers, sweep_chart
from hardpix.scores import is_fraction
from hardpix.tables import columns
from hardpix.tables.columns import titles
from hardpix.tables.compare import Run, collect
from hardpix.tables.table import Cell, Table, table
from hardpix.types import HardpixError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CURVES = {"error_iou": "error IoU", "hard_recall": "recall of hard errors", "fused_miou": "mIoU after fusion"}
LEVELS = {"semantic_miou": ("segmenter alone", "--"), "detail_miou": ("detail branch alone", ":")}
PAPER = "error_cascade"
# Table and column of the paper behind each curve; rows are called t_0.1.
PRINTED = {
    "error_iou": ("1", "error_pixel_miou"),
    "hard_recall": ("1", "hard_recall"),
    "fused_miou": ("2", "miou"),
}


class Value(NamedTuple):
    """A score of one line of the figure, at a threshold; fractions."""

    line: str
    score: str
    t: float  # NaN: the score has no threshold
    cell: Cell


def draw_thresholds(
    runs: Sequence[str],
    split: str,
    lines: str,
    with_published: bool,
    ignore: Sequence[str],
    paths: Sequence[Path],
) -> list[str]:
    """Draw the runs below ``runs`` to ``paths``, a CSV beside; returns notes that the reader should know.

    Seeds are averaged; runs that differ in more than ``lines`` and what never counts are refused, as in a table.
    """
    found = collect(runs)
    values, made = threshold_values(found, split, lines, ignore)
    printed = published_values({value.score for value in values}) if with_published else []
    seeds = sorted({value.cell.n for value in values if value.cell.n})
    if not seeds:
        raise HardpixError(
            f"No score of errors on the {split} split is a number, since the segmenter made no error there; name runs "
            "on data of two classes or more."
        )
    data = sorted({run.record.dataset for run in found if run.record.dataset})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    how = f"mean ± std of {count} seeds" if seeds[-1] > 1 else "one seed"
    title = f"Predicted errors on {', '.join(data)}, {split} split, {how}"
    save_chart(threshold_chart(values, printed, title=title), paths)
    header = ("line", "score", "t", "mean", "std", "n", "without_value")
    numbers = [_row(value) for value in [*values, *printed]]
    save_numbers(header, numbers, Path(paths[0]).with_suffix(".csv"))
    gaps = [f"{v.line}, {v.score} at t = {v.t:g}: {_states(v.cell)}." for v in values if v.cell.states]
    return [*gaps, *made.notes]


def threshold_values(
    runs: Sequence[Run], split: str, lines: str, ignore: Sequence[str]
) -> tuple[list[Value], Table]:
    """By line, score and threshold; scores that a line's method does not have are left out."""
    known = {name for run in runs if run.record.status == "done" for name in run.record.metrics}
    places = [
        (score, float(name.rpartition("@")[2]), name)
        for score in CURVES
        for name in known
        if name.startswith(f"{split}/{score}@")
    ]
    if not places:
        hint = suggestion(f"{split}/error_iou@0.7", known)
        raise HardpixError(
            f"No finished run has a score {split}/error_iou@T{hint}: name runs of method=error_prediction or "
            "method=detail."
        )
    places += [(score, math.nan, name) for score in LEVELS if (name := f"{split}/{score}") in known]
    order = [*CURVES, *LEVELS]
    places.sort(key=lambda place: (order.index(place[0]), place[1]))
    made = table(runs, [lines], [name for _, _, name in places], ignore=ignore)
    values = []
    for row in made.rows:
        cells = list(zip(places, row.cells, strict=True))
        has = {score for (score, _, _), cell in cells if cell.n or dict(cell.states).keys() - {"missing"}}
        values += [Value(row.labels[0], score, t, cell) for (score, t, _), cell in cells if score in has]
    return values, made


def published_values(scores: set[str]) -> list[Value]:
    """The curves that the paper prints, for those of ``scores`` that it has."""
    values = []
    for score, (name, column) in PRINTED.items():
        of = published.paper(PAPER).table(name)
        about = of.column(column)
        line = f"published ({about.dataset} {about.split})"
        for row in of.rows.values() if score in scores else ():
            cell = row.cells[column]
            if isinstance(cell, float | int):
                t = float(row.id.removeprefix("t_"))
                values.append(Value(line, score, t, Cell(cell / 100, math.nan, 0, 0)))
    return values


def threshold_chart(values: Sequence[Value], printed: Sequence[Value], *, title: str) -> Figure:
    """One plot per score, lines in percent; ``printed`` is dashed and black."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    scores = [score for score in CURVES if any(value.score == score for value in values)]
    lines = list(dict.fromkeys(value.line for value in values))
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(scores) + 0.4, 4.4), layout="constrained")
        plots = figure.subplots(1, len(scores), squeeze=False)[0]
        for plot, score in zip(plots, scores, strict=True):
            for i, line in enumerate(lines):
                members = [v for v in values if (v.line, v.score) == (line, score) and v.cell.n]
                means = [100 * v.cell.mean for v in members]
                spread = [0.0 if math.isnan(v.cell.std) else 100 * v.cell.std for v in members]
                bars = spread if any(v.cell.n > 1 for v in members) else None
                plot.errorbar([v.t for v in members], means, bars, **line_style(i), capsize=3, label=line)
            members = [v for v in printed if v.score == score]
            if members:
                style = {"color": "black", "linestyle": "--", "linewidth": 1, "marker": ".", "markersize": 4}
                means = [100 * v.cell.mean for v in members]
                plot.plot([v.t for v in members], means, **style, label=members[0].line)
            plot.set_xlabel("threshold t")
            plot.set_title(f"{CURVES[score]} (%)")
        if scores[-1] == "fused_miou":
            _levels(plots[-1], values, lines)
        _legend(figure, plots, lines)
        figure.suptitle(title, fontsize=11)
        return figure


def _levels(plot: Axes, values: Sequence[Value], lines: Sequence[str]) -> None:
    """What each branch reaches alone, as horizontal lines; a band of one standard deviation."""
    for value in values:
        if value.score in LEVELS and value.cell.n:
            shade, (name, dash) = color(lines.index(value.line)), LEVELS[value.score]
            mean, std = 100 * value.cell.mean, 100 * value.cell.std
            label = name if len(lines) == 1 else f"{value.line}: {name}"
            plot.axhline(mean, color=shade, linestyle=dash, linewidth=1.2, label=label)
            if not math.isnan(std):
                plot.axhspan(mean - std, mean + std, color=shade, alpha=0.1, linewidth=0)


def _legend(figure: Figure, plots: Sequence[Axes], first: Sequence[str]) -> None:
    """One for all plots, below them; the lines, then what they are compared with."""
    entries: dict[str, Any] = {}
    for plot in plots:
        for handle, label in zip(*plot.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    names = [*first, *(name for name in entries if name not in first)]
    handles = [entries[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)))


def _row(value: Value) -> tuple[object, ...]:
    """Of the CSV; a score without a threshold has none, and what a paper prints no spread that we know."""
    cell = value.cell
    t = "" if math.isnan(value.t) else value.t
    return (value.line, value.score, t, cell.mean, cell.std, cell.n, _states(cell))


def _states(cell: Cell) -> str:
    return " ".join(f"{state}:{count}" for state, count in cell.states)


# A score against a swept setting, with mean and standard deviation over seeds.


def draw_sweep(
    runs: Sequence[str], x: str, metric: str, lines: str | None, ignore: Sequence[str], paths: Sequence[Path]
) -> list[str]:
    """Draw the runs below ``runs`` to ``paths``, a CSV beside; returns notes that the reader should know.

    Runs that differ in more than ``x``, ``lines`` and what never counts are refused, as in a table.
    """
    factors = [x, *([lines] if lines else [])]
    if lines == x:
        raise HardpixError(f"--lines {lines}: is the swept setting itself; leave it out")
    found = collect(runs)
    if x == columns.FACTOR:
        found = columns.with_pretraining(found, ignore)
    made = table(found, factors, [metric], ignore=ignore)
    points = [point for point in sweep_points(made) if point.n]
    if not points:
        raise HardpixError(f"no finished run has a value of {metric}: nothing can be drawn")
    shown = titles(factors)
    data = sorted({run.record.dataset for run in found if run.record.dataset})
    seeds = sorted({point.n for point in points})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    how = f"mean ± std of {count} seeds" if seeds[-1] > 1 else "one seed"
    percent = is_fraction(metric)
    figure = sweep_chart(
        points,
        title=f"{metric} over {shown[0]}{' on ' + ', '.join(data) if data else ''}, {how}",
        x_label=x,
        y_label=f"{metric} (%)" if percent else metric,
        lines_label=lines or "",
        scale=100.0 if percent else 1.0,
    )
    save_chart(figure, paths)
    header = (x, *([lines] if lines else []), "mean", "std", "n", "without_value")
    save_numbers(header, _rows(made), Path(paths[0]).with_suffix(".csv"))
    return [*_gaps(made), *made.notes]


def sweep_points(made: Table) -> list[Point]:
    """The rows of a table of one metric over (x) or (x, line), by line and then by x."""
    rows = [(row.labels[0], row.labels[1] if len(row.labels) > 1 else "", row.cells[0]) for row in made.rows]
    lines = list(dict.fromkeys(line for _, line, _ in rows))
    ordered = sorted(rows, key=lambda row: lines.index(row[1]))  # the table has them by x
    return [Point(x, line, cell.mean, cell.std, cell.n) for x, line, cell in ordered]


def _rows(made: Table) -> list[tuple[object, ...]]:
    rows = []
    for row in made.rows:
        cell = row.cells[0]
        states = " ".join(f"{state}:{count}" for state, count in cell.states)
        rows.append((*row.labels, cell.mean, cell.std, cell.n, states))
    return rows


def _gaps(made: Table) -> list[str]:
    """Sentences on seeds that gave no value: a chart has no cell for them."""
    parts = []
    for row in made.rows:
        parts += [
            f"{', '.join(row.labels)}: {state} ({count} of {row.cells[0].total} seeds)."
            for state, count in row.cells[0].states
        ]
    return parts
