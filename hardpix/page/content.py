"""Collect what a page of runs shows: runs by data set, rows, curves, files beside the records."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hardpix import record
from hardpix.record import EFFECTIVE_BATCH, read
from hardpix.scores import brief
from hardpix.tables import compare
from hardpix.tables.columns import labels, titles
from hardpix.tables.compare import Run, by_content, directories_of
from hardpix.tables.table import DEFAULT_ROWS, Table, natural, table
from hardpix.types import DataError, HardpixError

COSTS = {
    "cost/step_seconds": "time per step (s)",
    "cost/peak_memory_mb": "memory (MB)",
    "cost/gflops_train": "GFLOPs per image, training",
    "cost/gflops_inference": "GFLOPs per image, inference",
    "cost/parameters_train": "parameters, training",
    "cost/parameters_inference": "parameters, inference",
    "run/seconds": "time of the run (s)",
}
SCORES = ("fg_iou", "miou", "mean_acc", "pixel_acc")
MAX_STEPS = 150  # points of a learning curve; longer ones are averaged over intervals of steps

Curve = dict[int, float]  # step -> value


@dataclass(frozen=True)
class Row:
    """One line of tables and charts: runs that differ in their seeds only."""

    label: str
    runs: tuple[Run, ...]  # by seed

    @property
    def done(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.record.status == "done")

    @property
    def factors(self) -> dict[str, Any]:
        return self.runs[0].record.factors

    def values(self, metric: str) -> list[float]:
        """Of the finished runs that have it, without NaN."""
        found = [run.record.metrics.get(metric, math.nan) for run in self.done]
        return [value for value in found if not math.isnan(value)]


@dataclass(frozen=True)
class Part:
    """All runs on one data set. ``problem``: why they stand in no common table."""

    dataset: str
    runs: list[Run]
    factors: list[str]  # declared: what tells rows apart
    varied: list[str]  # keys in which the runs differ
    rows: list[Row]
    metric: str
    table: Table | None
    problem: str = ""
    notes: list[str] = field(default_factory=list)


def gather(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Run], list[tuple[str, str]]]:
    """Every run at or below ``paths``, once, by directory; and (directory, what is wrong) of damaged records."""
    runs, damaged = [], []
    for directory in sorted(directories_of(paths)):
        try:
            runs.append(Run(str(directory), read(directory)))
        except HardpixError as error:
            damaged.append((str(directory), str(error)))
    return runs, damaged


def parts(runs: Sequence[Run], split: str, rows: Sequence[str] = ()) -> list[Part]:
    """One for each data set, by name. Without ``rows`` these are what the runs differ in.

    Runs that failed before their data set was known go to the data set of the others, if there is one only.
    """
    named = sorted({run.record.dataset for run in runs if run.record.dataset})
    known = {run.directory: run.record.dataset or (named[0] if len(named) == 1 else "") for run in runs}
    return [
        _part(name, [run for run in runs if known[run.directory] == name], split, rows)
        for name in dict.fromkeys([*named, *sorted(known.values())])
    ]


def varied(runs: Sequence[Run]) -> list[str]:
    """The keys that may matter and of which the runs have more than one value, sorted."""
    keys = sorted({key for run in runs for key in run.record.factors})
    silent = (*record.IGNORED, *compare.WARNED, EFFECTIVE_BATCH)  # which follows from its parts
    seen = by_content(runs)[0]
    return [key for key in keys if not compare.silenced(silent, key) and compare.differs(seen, key)]


def automatic_rows(runs: Sequence[Run]) -> list[str]:
    """Factors that tell the runs apart: a part of the configuration where its class differs, else single keys."""
    keys = varied(runs)
    classes = [key.removesuffix("._target_") for key in keys if key.endswith("._target_")]
    outer = [one for one in classes if not record.covers([c for c in classes if c != one], one)]
    if "method" in outer:  # a method that stands on other runs brings theirs along
        keys = [key for key in keys if not record.covers(["parent_config"], key)]
        outer = [one for one in outer if not record.covers(["parent_config"], one)]
    single = [key for key in keys if not record.covers(outer, key)]
    chosen = sorted([*outer, *single], key=lambda f: (f != "method", f != "loss", f))
    present = {key.split(".")[0] for run in runs for key in run.record.factors}
    return chosen or [f for f in DEFAULT_ROWS if f in present][:1] or sorted(present)[:1]


def _part(name: str, runs: list[Run], split: str, given: Sequence[str]) -> Part:
    factors = list(given) or automatic_rows(runs)
    metric = _metric(runs, split)
    notes: list[str] = []
    try:
        groups = compare.group(runs, factors) if factors else []
    except HardpixError as error:
        if given:
            raise
        return Part(name, runs, factors, varied(runs), [], metric, None, str(error), notes)
    columns = zip(
        *(brief(labels(f, [g.values[i] for g in groups], factors)) for i, f in enumerate(factors)),
        strict=True,
    )
    named = sorted(zip(columns, groups, strict=True), key=lambda pair: [natural(label) for label in pair[0]])
    rows = [
        Row(_label(factors, own, group.values), tuple(sorted(group.runs, key=lambda r: r.record.seed)))
        for own, group in named
    ]
    try:
        made = table(runs, factors, _columns(runs, metric)) if factors else None
    except HardpixError as error:
        if given:
            raise
        return Part(name, runs, factors, varied(runs), rows, metric, None, str(error), notes)
    return Part(name, runs, factors, varied(runs), rows, metric, made, "", notes)


def _label(factors: Sequence[str], own: Sequence[str], values: Sequence[dict[str, Any]]) -> str:
    """``HardnessLevel (alpha=0.1)``; a single key with its name: ``alpha=0.1``; what a row lacks is left out."""
    parts = [
        f"{title}={label}" if factor in value and not factor.endswith("_target_") else label
        for factor, title, label, value in zip(factors, titles(factors), own, values, strict=True)
        if label != "-"
    ]
    return ", ".join(parts) or "-"


def _metric(runs: Sequence[Run], split: str) -> str:
    """What papers report on the data set, of ``split`` or else of the validation."""
    main = next((run.record.main_metric for run in runs), "miou")
    known = {metric for run in runs if run.record.status == "done" for metric in run.record.metrics}
    return next((f"{s}/{main}" for s in (split, "val") if f"{s}/{main}" in known), f"{split}/{main}")


def _columns(runs: Sequence[Run], metric: str) -> list[str]:
    known = {name for run in runs if run.record.status == "done" for name in run.record.metrics}
    split = metric.partition("/")[0]
    scores = [f"{split}/{name}" for name in SCORES if f"{split}/{name}" in known]
    costs = [f"{name}={COSTS[name]}" for name in list(COSTS)[:2] if name in known]
    return [metric, *(score for score in scores if score != metric), *costs] if known else [metric]


def curves(run: Run) -> dict[str, Curve]:
    """``train/loss`` and ``val/`` scores of ``metrics.csv`` by step, finite values only; empty without the file."""
    path = Path(run.directory) / "metrics.csv"
    if not path.is_file():
        return {}
    found: dict[str, Curve] = {}
    tested = -1
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                if any(text and key.startswith("test/") for key, text in line.items() if key):
                    tested = int(float(line["step"]))
                for key, text in line.items():
                    if text and (key == "train/loss" or key.startswith("val/")) and line["step"]:
                        value = float(text)
                        if math.isfinite(value):
                            found.setdefault(key, {})[int(float(line["step"]))] = value
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(f"{path} is damaged ({error}); its curves are left out.") from None
    for curve in found.values():
        if (
            tested - 1 in curve
        ):  # the line of the test, after the last step, has the last validation once more
            curve.pop(tested, None)
    return found


def thinned(curve: Curve, last: int) -> Curve:
    """Means over intervals of equally many steps, at most ``MAX_STEPS`` until ``last``; each at its last step."""
    width = max(1, math.ceil((last + 1) / MAX_STEPS))
    found: dict[int, list[int]] = {}
    for step in sorted(curve):
        found.setdefault(step // width, []).append(step)
    return {
        (members[-1] if width == 1 else (place + 1) * width - 1): sum(curve[s] for s in members)
        / len(members)
        for place, members in found.items()
    }


def confusion(run: Run) -> np.ndarray | None:
    """``[C, C]`` int64, rows truth; None where the run has left none."""
    path = Path(run.directory) / "confusion.npy"
    if not path.is_file():
        return None
    try:
        matrix = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}); `hardpix evaluate` writes one anew.") from None
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.dtype.kind not in "iu":
        raise DataError(
            f"{path} is damaged (no square matrix of counts); `hardpix evaluate` writes one anew."
        )
    return matrix.astype(np.int64)
