"""Aggregation: one row for each combination of the declared factors; mean, std and n over seeds."""

from __future__ import annotations

import fnmatch
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hardpix.report import compare
from hardpix.report.collect import Run
from hardpix.report.labels import labels, titles
from hardpix.types import HardpixError

Kind = Literal["value", "ratio", "difference"]
SUFFIXES: dict[str, Kind] = {":x": "ratio", ":delta": "difference"}
DEFAULT_ROWS = ("method", "loss")
DEFAULT_COLUMNS = ("fg_iou", "miou", "mean_acc", "pixel_acc")  # fg_iou: of data sets that papers score by it


@dataclass(frozen=True)
class Column:
    """A metric itself, its ratio to the reference row or its difference from it."""

    metric: str
    kind: Kind = "value"
    title: str = ""


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation (n - 1; NaN below two values) in the metric's own unit.

    ``states`` counts the seeds that gave no value: ``failed``, ``running``, ``missing`` (no run for a seed
    that other rows have, or a run without the metric), ``nan``, and ``no reference`` where the reference row
    has none. One NaN leaves no mean: averaging the seeds that did not diverge would flatter the method.
    Failed and running runs never enter a mean.
    """

    mean: float
    std: float
    n: int
    total: int
    states: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Row:
    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    n: int  # seeds that are done


@dataclass(frozen=True)
class Table:
    factors: tuple[str, ...]  # titles of the label columns
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]  # the reference first, then by label
    notes: tuple[str, ...]
    reference: str = ""  # label of the reference row


# The outcome of one seed: what its metrics are, or why there are none.
Outcome = dict[str, float] | Literal["failed", "running"]


def table(
    runs: Sequence[Run],
    rows: Sequence[str] = DEFAULT_ROWS,
    columns: Sequence[str | Column] = (),
    relative_to: str | None = None,
    ignore: Sequence[str] = (),
) -> Table:
    """Aggregate comparable ``runs`` (see :func:`hardpix.report.compare.group`, which refuses others).

    Columns are metrics as in the records, with ``*`` as wildcard, ``:x`` for the ratio of means to the
    reference row (its deviation is that of the seeds' own ratios), ``:delta`` for the mean difference from it, both
    over common seeds, and ``=Title`` to rename. ``relative_to`` names that row as ``factor=value`` (several separated
    by commas) or by its label.
    """
    groups = compare.group(runs, rows, ignore)
    notes: list[str] = []
    outcomes = [outcomes_by_seed(group.runs, notes) for group in groups]
    names = list(
        zip(*(labels(rows[i], [g.values[i] for g in groups]) for i in range(len(rows))), strict=True)
    )
    chosen = _columns(columns, runs)
    first = None if relative_to is None else _reference(relative_to, rows, names)
    if first is None and any(column.kind != "value" for column in chosen):
        raise HardpixError(
            "A :x or :delta column needs --relative-to, such as --relative-to loss=cross_entropy."
        )

    seeds = sorted({seed for outcome in outcomes for seed in outcome})
    base = {} if first is None else outcomes[first]
    order = sorted(range(len(groups)), key=lambda i: (i != first, [natural(label) for label in names[i]]))
    made = tuple(
        Row(
            names[i],
            tuple(aggregate(column, outcomes[i], base, seeds) for column in chosen),
            sum(isinstance(outcome, dict) for outcome in outcomes[i].values()),
        )
        for i in order
    )
    notes += compare.warnings(runs, ignore)
    reference = "" if first is None else ", ".join(name for name in names[first] if name != "-")
    return Table(titles(rows), tuple(chosen), made, tuple(notes), reference)


def outcomes_by_seed(runs: Sequence[Run], notes: list[str]) -> dict[int, Outcome]:
    """One outcome per seed: an unfinished attempt gives way to a finished one; two finished are refused."""
    found: dict[int, Run] = {}
    rank = {"failed": 0, "running": 1, "done": 2}
    for run in runs:
        other = found.setdefault(run.record.seed, run)
        if other is run:
            continue
        if other.record.status == run.record.status == "done":
            raise HardpixError(
                f"{other.directory} and {run.directory} are finished runs of the same row with the same seed "
                f"{run.record.seed}, so one of them must be left out."
            )
        better, worse = sorted((other, run), key=lambda r: -rank[r.record.status])
        found[run.record.seed] = better
        notes.append(
            f"Left out: {worse.directory} ({worse.record.status}), attempted again as {better.directory}."
        )
    return {
        seed: run.record.metrics if run.record.status == "done" else run.record.status
        for seed, run in found.items()
    }


def aggregate(
    column: Column, own: dict[int, Outcome], base: dict[int, Outcome], seeds: Sequence[int]
) -> Cell:
    got = {seed: _value(own.get(seed, "missing"), column.metric) for seed in seeds}
    values = {seed: value for seed, value in got.items() if not isinstance(value, str)}
    counts = Counter(value for value in got.values() if isinstance(value, str))
    if column.kind != "value":
        against = {seed: _value(base.get(seed, "missing"), column.metric) for seed in values}
        counts["no reference"] = sum(isinstance(value, str) for value in against.values())
        values = {seed: values[seed] for seed in values if not isinstance(against[seed], str)}
        numbers = [float(against[seed]) for seed in values]
        return _summary(column.kind, list(values.values()), numbers, counts, len(seeds))
    return _summary("value", list(values.values()), [], counts, len(seeds))


def _value(outcome: Outcome | Literal["missing"], metric: str) -> float | str:
    if isinstance(outcome, str):
        return outcome
    value = outcome.get(metric)
    if value is None:
        return "missing"
    return "nan" if math.isnan(value) else value


def _summary(kind: Kind, values: list[float], against: list[float], counts: Counter[str], total: int) -> Cell:
    states = tuple(sorted((state, count) for state, count in counts.items() if count))
    n = len(values)
    if not n or counts["nan"]:
        return Cell(math.nan, math.nan, n, total, states)
    if kind == "ratio":
        below = statistics.fmean(against)
        each = [value / base if base else math.nan for value, base in zip(values, against, strict=True)]
        mean = statistics.fmean(values) / below if below else math.nan
        return Cell(mean, _deviation(each), n, total, states)
    if kind == "difference":
        values = [value - base for value, base in zip(values, against, strict=True)]
    return Cell(statistics.fmean(values), _deviation(values), n, total, states)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def _columns(columns: Sequence[str | Column], runs: Sequence[Run]) -> list[Column]:
    known = sorted({metric for run in runs if run.record.status == "done" for metric in run.record.metrics})
    if not columns:
        columns = _default_columns(known)
    chosen: list[Column] = []
    for column in columns:
        wanted = _parse(column) if isinstance(column, str) else column
        matching = fnmatch.filter(known, wanted.metric) if "*" in wanted.metric else [wanted.metric]
        # While no run is done, nobody can say which metrics exist: the cells say "running" or "failed".
        if known and (not matching or matching[0] not in known):
            hint = compare.suggestion(wanted.metric, known)
            raise HardpixError(f"No finished run has a metric {wanted.metric!r}{hint}.")
        chosen += [Column(metric, wanted.kind, wanted.title) for metric in matching]
    return chosen


def _default_columns(known: Sequence[str]) -> list[str]:
    for split in ("test", "val"):
        found = [f"{split}/{name}" for name in DEFAULT_COLUMNS if f"{split}/{name}" in known]
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


def _reference(selector: str, rows: Sequence[str], names: Sequence[tuple[str, ...]]) -> int:
    """The one row whose labels are those asked for; ``cross_entropy`` finds ``CrossEntropy``."""
    wanted = [part.rpartition("=")[::2] for part in selector.split(",")]
    places = {name: i for i, factor in enumerate(rows) for name in (factor, factor.removesuffix("._target_"))}
    unknown = [factor for factor, _ in wanted if factor and factor not in places]
    if unknown:
        raise HardpixError(
            f"--relative-to names {unknown[0]!r}, which is none of the rows' factors {list(rows)}."
        )

    def fits(labels: tuple[str, ...]) -> bool:
        return all(
            _folded(value) in ([_folded(labels[places[factor]])] if factor else map(_folded, labels))
            for factor, value in wanted
        )

    found = [i for i, labels in enumerate(names) if fits(labels)]
    if len(found) != 1:
        told = "; ".join(", ".join(labels) for labels in sorted(names))
        raise HardpixError(f"--relative-to {selector!r} fits {len(found)} rows and must fit one of: {told}.")
    return found[0]


def _folded(name: str) -> str:
    return name.replace("_", "").replace(" ", "").lower()


def natural(label: str) -> tuple[int, float, str]:
    """Numbers by size and before words."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label.lower())
