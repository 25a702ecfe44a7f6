"""The columns of a table of runs: metrics, their ratios and differences, and which of two values is better."""

from __future__ import annotations

import csv
import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hardpix.report import compare
from hardpix.report.collect import Run
from hardpix.report.sheet import TIMES
from hardpix.types import DataError, HardpixError

Kind = Literal["value", "ratio", "difference", "test"]
SUFFIXES: dict[str, Kind] = {":x": "ratio", ":delta": "difference"}
DEFAULT = ("fg_iou", "miou", "mean_acc", "pixel_acc")  # fg_iou: of data sets that papers score by it

# Words of a metric's name that say it is a fraction in [0, 1].
FRACTIONS = frozenset({"miou", "iou", "fgiou", "acc", "macc", "aacc", "accuracy", "dice"})
# Words that say less is better; fractions are better when more.
COSTS = frozenset({"loss", "seconds", "time", "ms", "memory", "mib", "gib", "mb", "bytes", "params", "flops"})
COSTS |= {"gflops", "parameters"}
OF_CLASS = ("iou:", "acc:")  # iou:wall: of one class, from per_class.csv


@dataclass(frozen=True)
class Column:
    """A metric itself, its ratio to the reference row, its difference from it, or a test of that difference."""

    metric: str
    kind: Kind = "value"
    title: str = ""


def choose(columns: Sequence[str | Column], runs: Sequence[Run]) -> list[Column]:
    """What was asked for, wildcards filled in; without any the split's mIoU and accuracies."""
    known = sorted({metric for run in runs if run.record.status == "done" for metric in run.record.metrics})
    chosen: list[Column] = []
    for column in columns or _default(known):
        wanted = _parse(column) if isinstance(column, str) else column
        matching = fnmatch.filter(known, wanted.metric) if "*" in wanted.metric else [wanted.metric]
        # While no run is done, nobody can say which metrics exist: the cells say "running" or "failed".
        if known and (not matching or matching[0] not in known):
            hint = compare.suggestion(wanted.metric, known)
            raise HardpixError(f"No finished run has a metric {wanted.metric!r}{hint}.")
        chosen += [Column(metric, wanted.kind, wanted.title) for metric in matching]
    return chosen


def _default(known: Sequence[str]) -> list[str]:
    for split in ("test", "val"):
        found = [f"{split}/{name}" for name in DEFAULT if f"{split}/{name}" in known]
        if found:
            return found
    if not known:
        return ["test/miou"]
    raise HardpixError(f"Name the metrics with --columns, because no run has test/miou; some of {known[:8]}.")


def _parse(spec: str) -> Column:
    metric, _, title = spec.partition("=")
    for suffix, kind in SUFFIXES.items():
        if metric.endswith(suffix):
            return Column(metric.removesuffix(suffix), kind, title)
    return Column(metric, "value", title)


def wants_classes(columns: Sequence[str | Column]) -> bool:
    names = [column if isinstance(column, str) else column.metric for column in columns]
    return any(name.startswith(OF_CLASS) for name in names)


def with_classes(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The finished runs with ``iou:CLASS`` and ``acc:CLASS`` among their metrics; and the classes, in their order."""
    found, names = [], dict[str, None]()
    for run in runs:
        lines = read_classes(Path(run.directory)) if run.record.status == "done" else []
        names |= dict.fromkeys(line["class"] for line in lines)
        own = {f"{kind}:{line['class']}": float(line[kind]) for line in lines for kind in ("iou", "acc")}
        found.append(run._replace(record=replace(run.record, metrics=run.record.metrics | own)))
    return found, list(names)


def read_classes(folder: Path) -> list[dict[str, str]]:
    """The lines of a run's ``per_class.csv``; none where it has left none."""
    path = folder / "per_class.csv"
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        for line in lines:
            float(line["iou"]), float(line["acc"]), line["class"]
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); `hardpix evaluate` writes one anew.") from None
    return lines


def title(column: Column) -> str:
    """What ratios and differences are to is said once below the table."""
    if column.title:
        return column.title
    name = column.metric.partition(":")[2] if column.metric.startswith("iou:") else column.metric
    unit = " (%)" if is_fraction(column.metric) else ""
    heads = {
        "value": f"{name}{unit}",
        "ratio": f"{name} {TIMES}",
        "difference": f"Δ {name}{unit}",
        "test": f"Δ {name}{unit} [95 %], p",
    }
    return heads[column.kind]


def is_fraction(metric: str) -> bool:
    return bool(FRACTIONS & _words(metric))


def direction(metric: str) -> int:
    """1 where more is better, -1 where less is, 0 where nobody can tell."""
    if is_fraction(metric):
        return 1
    return -1 if COSTS & _words(metric) else 0


def _words(metric: str) -> set[str]:
    name = metric.partition(":")[0] if metric.startswith(OF_CLASS) else metric
    return set(re.split(r"[^a-z0-9]+", name.lower()))
