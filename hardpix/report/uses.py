"""Which runs stand for which cells of a published table, and what each scored there."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hardpix.report.collect import Run
from hardpix.report.compare import folded
from hardpix.report.effort import Use
from hardpix.report.layout import THRESHOLD, Column, Layout, Row
from hardpix.report.published import matches
from hardpix.types import HardpixError

VALUE = "value"


def uses_of(layout: Layout, runs: Sequence[Run], notes: list[str]) -> dict[tuple[str, str], list[Use]]:
    """The runs of each cell. A run on another data set is left out, and that is told."""
    found: dict[tuple[str, str], list[Use]] = defaultdict(list)
    strangers = 0
    for run in runs:
        patterns = [str(pattern) for pattern in run.record.factors.get("reproduces") or ()]
        declared = [
            (row, column)
            for row in layout.rows
            for column in layout.columns
            if not column.derived
            and any(matches(pattern, f"{layout.table.name}/{row.id}/{column.id}") for pattern in patterns)
        ]
        fitting = [pair for pair in declared if _same_dataset(run, pair[1])]
        if declared and not fitting:
            notes.append(_left_out(run, layout, declared))
        _refuse_twice(run, layout, fitting)
        strangers += not declared
        for row, column in fitting:
            free = (row.over,) if column.range else ()
            cell = f"{layout.table.name}/{row.id}/{column.id}"
            role = _role(run, metric_of(row, column), column)
            dataset = run.record.dataset
            use = Use(run, cell, dataset, column.split, role, free, column.train_frames)
            found[row.id, column.id].append(use)
    if strangers:
        notes.append(f"{strangers} of {len(runs)} runs stand for no cell of {layout.table.name}.")
    return found


def _same_dataset(run: Run, column: Column) -> bool:
    return column.dataset == "any" or folded(run.record.dataset) == folded(column.dataset)


def _left_out(run: Run, layout: Layout, declared: Sequence[tuple[Row, Column]]) -> str:
    row, column = declared[0]
    own = run.record.dataset or "not named in its record"
    return (
        f"Left out: {run.directory} stands for {layout.table.name}/{row.id}/{column.id}, which is about "
        f"{column.dataset}, but its data set is {own}."
    )


def _refuse_twice(run: Run, layout: Layout, fitting: Sequence[tuple[Row, Column]]) -> None:
    """One run cannot be two settings of one row; a wildcard easily says so by mistake."""
    seen: dict[tuple[str, ...], str] = {}
    for row, column in fitting:
        if column.range or column.factor:
            continue
        key = (row.id, column.dataset, column.split, metric_of(row, column))
        other = seen.setdefault(key, column.id)
        if other != column.id:
            raise HardpixError(
                f"{run.directory} stands for two columns of {layout.table.name}/{row.id} that hold the same score of "
                f"different runs, {other} and {column.id}: name one column in its `reproduces`."
            )


def metric_of(row: Row, column: Column) -> str:
    """The row's own, or the column's with the row's threshold filled in: ``fused_miou@0.5``."""
    filled = "" if row.threshold is None else f"{row.threshold:g}"
    return (row.metric or column.metric).replace(THRESHOLD, filled)


def _role(run: Run, metric: str, column: Column) -> str:
    """Which of the run's splits is the column's: Cityscapes calls its val split test."""
    factors, metrics = run.record.factors, run.record.metrics
    if ":" in metric:  # per_class.csv is of one split
        role = factors.get("evaluation.split", "test")
        return role if _split(factors, role) == column.split else ""
    fitting = [role for role in ("test", "val", "train") if _split(factors, role) == column.split]
    return next((role for role in fitting if f"{role}/{metric}" in metrics), (fitting or [""])[0])


def _split(factors: dict[str, Any], role: str) -> str:
    return str(factors.get(f"data.{role}_split", role))


def _score(use: Use, metric: str) -> float | None:
    """A fraction, or whatever the metric's own unit is; None where the run has no such score."""
    metrics = use.run.record.metrics
    if "/" in metric:
        return metrics.get(metric)
    if ":" not in metric:
        return metrics.get(f"{use.role}/{metric}")
    kind, _, name = metric.partition(":")
    path = Path(use.run.directory) / "per_class.csv"
    if not use.role or not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        values = {folded(line["class"]): float(line[kind]) for line in csv.DictReader(file)}
    return values.get(folded(name))


def of_class(use: Use, column: Column) -> Use:
    """The use for a column of a class, whose scores are of the split that was tested."""
    return replace(use, role=_role(use.run, column.metric, column))


def reduced(use: Use, metric: str, called: str = VALUE) -> Run:
    """The run with the cell's score as its only metric."""
    score = _score(use, metric)
    metrics = {} if score is None else {called: score}
    return use.run._replace(record=replace(use.run.record, metrics=metrics))
