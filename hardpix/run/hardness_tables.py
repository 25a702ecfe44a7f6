"""The numbers of the figures of hardness maps on screen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hardpix.report.hardness_charts import TRUTH, Ranked, Step

if TYPE_CHECKING:
    from hardpix.metrics.hardness import Group


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
        told = (f"{row.pixels:,.0f}", _number(100 * row.error_rate, 2), *scores)
        table.add_row(escape(row.run) if row.run != last else "", escape(row.marked), *told)
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
