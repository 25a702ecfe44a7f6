"""A score against a swept setting, with mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hardpix.report import pretraining
from hardpix.report.charts import Point, sweep_chart
from hardpix.report.collect import collect
from hardpix.report.labels import titles
from hardpix.report.render import is_fraction
from hardpix.report.save import save_chart, save_numbers
from hardpix.report.table import Table, table
from hardpix.types import HardpixError


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
    if x == pretraining.FACTOR:
        found = pretraining.with_pretraining(found, ignore)
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
    """Seeds that gave no value, told since a chart has no cell to say so."""
    told = []
    for row in made.rows:
        told += [
            f"{', '.join(row.labels)}: {state} ({count} of {row.cells[0].total} seeds)."
            for state, count in row.cells[0].states
        ]
    return told
