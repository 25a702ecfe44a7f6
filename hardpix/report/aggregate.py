"""Mean, deviation and n over the seeds of one cell, and why some give no value."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hardpix.report.collect import Run
from hardpix.report.columns import Column, Kind
from hardpix.report.significance import PairedTest
from hardpix.types import HardpixError


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation (n - 1; NaN below two values) in the metric's own unit.

    ``states`` counts the seeds that gave no value: ``failed``, ``interrupted``, ``pruned``, ``running``, ``missing``
    (no run for a seed that other rows have, or a run without the metric), ``nan``, and ``no reference`` where the
    reference row has none. One NaN leaves no mean: averaging the seeds that did not diverge would flatter the method.
    Runs that are not done never enter a mean. ``test``: of the difference from the row that is tested against.
    """

    mean: float
    std: float
    n: int
    total: int
    states: tuple[tuple[str, int], ...] = ()
    test: PairedTest | None = None


# The outcome of one seed: what its metrics are, or the status that says why there are none.
Outcome = dict[str, float] | str


def by_seed(runs: Sequence[Run], notes: list[str]) -> dict[int, Run]:
    """One run per seed: an unfinished attempt gives way to a finished one; two finished are refused."""
    found: dict[int, Run] = {}
    rank = {"done": 3, "running": 2, "interrupted": 1}
    for run in sorted(runs, key=lambda run: run.directory):
        other = found.setdefault(run.record.seed, run)
        if other is run:
            continue
        if other.record.status == run.record.status == "done":
            raise HardpixError(
                f"{other.directory} and {run.directory} are finished runs of the same row with the same seed "
                f"{run.record.seed}, so one of them must be left out."
            )
        better, worse = sorted((other, run), key=lambda r: -rank.get(r.record.status, 0))
        found[run.record.seed] = better
        notes.append(
            f"Left out: {worse.directory} ({worse.record.outcome}), attempted again as {better.directory}."
        )
    return found


def outcomes_of(found: Mapping[int, Run]) -> dict[int, Outcome]:
    """What each seed's run scored, or its status."""
    return {
        seed: run.record.metrics if run.record.status == "done" else run.record.outcome
        for seed, run in found.items()
    }


def outcomes_by_seed(runs: Sequence[Run], notes: list[str]) -> dict[int, Outcome]:
    return outcomes_of(by_seed(runs, notes))


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


def _value(outcome: Outcome, metric: str) -> float | str:
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
        below = _mean(against)
        each = [value / base if base else math.nan for value, base in zip(values, against, strict=True)]
        return Cell(_mean(values) / below if below else math.nan, _deviation(each), n, total, states)
    if kind in ("difference", "test"):
        values = [value - base for value, base in zip(values, against, strict=True)]
    return Cell(_mean(values), _deviation(values), n, total, states)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    """Without the module statistics, whose exact fractions take a quarter of the time of a large table."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
