"""Collect what a page of runs shows: rows by data set, the outcome, curves, swept settings, confusion matrices."""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hardpix import record
from hardpix.record import EFFECTIVE_BATCH
from hardpix.scores import brief, is_fraction
from hardpix.tables import compare
from hardpix.tables.columns import Column, direction, labels, titles
from hardpix.tables.compare import ABSENT, Run, by_content, collect, directories_of, text
from hardpix.tables.significance import SEEDS, Options, PairedTests
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
SCORES = {
    "fg_iou": "foreground IoU",
    "miou": "mIoU",
    "mean_acc": "mean accuracy",
    "pixel_acc": "pixel accuracy",
}
SPLITS = {"test": "", "val": "validation ", "train": "training "}
MAX_STEPS = 150  # points of a learning curve; longer ones are averaged over intervals of steps
MAX_CLASSES = 30  # of a confusion matrix; the rarer ones are counted together
BASELINE, PLAIN = "Baseline", "CrossEntropy"  # the method and loss that others are compared with

Curve = dict[int, float]  # step -> value


def metric_title(metric: str, unit: bool = True) -> str:
    """As papers write it: ``mIoU (%)``, ``validation mIoU (%)``, ``training loss``."""
    split, _, name = metric.rpartition("/")
    words = f"{SPLITS.get(split, '')}{SCORES.get(name, name)}"
    return f"{words} (%)" if unit and is_fraction(metric) else words


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """The sample deviation is 0 below two values, where nothing is drawn of it."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Row:
    """One line of tables and charts: runs that differ in their seeds only."""

    label: str
    runs: tuple[Run, ...]  # by seed
    selector: str = ""  # what names it in :func:`hardpix.tables.table.table`

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

    def percent(self, metric: str) -> list[float]:
        """:meth:`values`, fractions in percent."""
        return [100 * value if is_fraction(metric) else value for value in self.values(metric)]


@dataclass(frozen=True)
class Part:
    """All runs on one data set. ``compared``: the labels of each factor. ``problem``: why there is no common table."""

    dataset: str
    runs: list[Run]
    factors: list[str]  # declared: what tells rows apart
    varied: list[str]  # keys in which the runs differ
    rows: list[Row]
    metric: str
    table: Table | None
    problem: str = ""
    compared: dict[str, list[str]] = field(default_factory=dict)


def gather(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Run], list[tuple[str, str]]]:
    """Every run at or below ``paths``, once, by directory; and (directory, what is wrong) of damaged records."""
    runs: list[Run] = []
    damaged = []
    for directory in sorted(directories_of(paths)):
        try:
            runs += collect([directory])
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
    if "method" in outer:  # a method with a parent run has its settings too
        keys = [key for key in keys if not record.covers(["parent_config"], key)]
        outer = [one for one in outer if not record.covers(["parent_config"], one)]
    single = [key for key in keys if not record.covers(outer, key)]
    chosen = sorted([*outer, *single], key=lambda f: (f != "method", f != "loss", f))
    present = {key.split(".")[0] for run in runs for key in run.record.factors}
    return chosen or [f for f in DEFAULT_ROWS if f in present][:1] or sorted(present)[:1]


def _part(name: str, runs: list[Run], split: str, given: Sequence[str]) -> Part:
    factors = list(given) or automatic_rows(runs)
    metric = _metric(runs, split)
    rows: list[Row] = []
    compared: dict[str, list[str]] = {}
    made, problem = None, ""
    try:
        groups = compare.group(runs, factors) if factors else []
        whole = [labels(f, [g.values[i] for g in groups], factors) for i, f in enumerate(factors)]
        short = [brief(own) for own in whole]
        compared = dict(zip(titles(factors), (list(dict.fromkeys(own)) for own in short), strict=True))
        named = zip(zip(*short, strict=True), zip(*whole, strict=True), groups, strict=True)
        rows = [
            Row(
                _label(factors, own, group.values),
                tuple(sorted(group.runs, key=lambda r: r.record.seed)),
                ", ".join(name for name in names if name != "-"),
            )
            for own, names, group in sorted(named, key=lambda one: [natural(label) for label in one[0]])
        ]
        made = _table(runs, factors, metric, rows) if factors else None
    except HardpixError as error:
        if given:
            raise
        problem = str(error)
    return Part(name, runs, factors, varied(runs), rows, metric, made, problem, compared)


def _table(runs: Sequence[Run], factors: Sequence[str], metric: str, rows: Sequence[Row]) -> Table:
    """Scores and costs; with one row of plain training also what every other row differs from it."""
    columns = _columns(runs, metric)
    plain = plain_rows(rows)
    if len(plain) != 1 or len(rows) < 2:
        return table(runs, factors, columns)
    columns.insert(1, Column(metric, "test", f"\u0394 {metric_title(metric, unit=False)} [95 %], p"))
    return table(runs, factors, columns, against=plain[0].selector)


def plain_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows of plain training, which others are compared with: the baseline, with cross-entropy where there is one."""

    def named(row: Row, part: str, name: str) -> bool:
        return str(row.factors.get(f"{part}._target_", "")).rpartition(".")[2] == name

    baselines = [row for row in rows if named(row, "method", BASELINE)]
    return [row for row in baselines if named(row, "loss", PLAIN)] or baselines


def _label(factors: Sequence[str], own: Sequence[str], values: Sequence[dict[str, Any]]) -> str:
    """``HardnessLevel (alpha=0.1)``; a single key with its name: ``alpha=0.1``; what a row lacks is left out."""
    parts = [
        f"{title}={label}" if factor in value and not factor.endswith("_target_") else label
        for factor, title, label, value in zip(factors, titles(factors), own, values, strict=True)
        if label != "-"
    ]
    return " / ".join(parts) or "-"


def _metric(runs: Sequence[Run], split: str) -> str:
    """What papers report on the data set, of ``split`` or else of the validation."""
    main = next((run.record.main_metric for run in runs), "miou")
    known = {metric for run in runs if run.record.status == "done" for metric in run.record.metrics}
    return next((f"{s}/{main}" for s in (split, "val") if f"{s}/{main}" in known), f"{split}/{main}")


def _columns(runs: Sequence[Run], metric: str) -> list[Column]:
    known = {name for run in runs if run.record.status == "done" for name in run.record.metrics}
    split = metric.partition("/")[0]
    scores = [f"{split}/{name}" for name in SCORES if f"{split}/{name}" in known]
    chosen = dict.fromkeys([metric, *scores]) if known else [metric]
    costs = [Column(name, title=title) for name, title in list(COSTS.items())[:2] if name in known]
    return [*(Column(name, title=metric_title(name)) for name in chosen), *costs]


def outcome(part: Part) -> str:
    """``Best: HardnessLevel, +4.1 mIoU over Baseline [1.2, 6.8], n = 3.``, or why no row is the best.

    The best row is compared with plain training, else with the next best one, as a table's ``--against`` does.
    """
    name, sign = metric_title(part.metric, unit=False), direction(part.metric) or 1
    seeds = len({run.record.seed for row in part.rows for run in row.runs})
    complete = [
        r for r in part.rows if len(r.values(part.metric)) == (1 if "seed" in part.factors else seeds)
    ]
    if part.table is None:
        return "These runs are not comparable."
    if not complete:
        done = sum(run.record.status == "done" for run in part.runs)
        return f"No row has its {name} for every seed yet: {done} of {len(part.runs)} runs are done."
    ranked = sorted(complete, key=lambda row: -sign * mean_std(row.values(part.metric))[0])
    best, scores = ranked[0], ranked[0].percent(part.metric)
    mean, std = (f"{value:.2f}" if is_fraction(part.metric) else f"{value:.4g}" for value in mean_std(scores))
    own = f"{best.label}, {mean}{f' ± {std}' if len(scores) > 1 else ''} {name}"
    plain = [row for row in plain_rows(part.rows) if row is not best]
    # Of several rows of plain training the one that is most like the best row.
    plain.sort(key=lambda row: sum(row.factors.get(k) != best.factors.get(k) for k in part.varied))
    other = next(iter(plain if best not in plain_rows(part.rows) else ranked[1:]), None)
    if other is None:
        return f"{'Best: ' if len(part.rows) > 1 else ''}{own}, n = {len(scores)}."
    return f"Best: {best.label}, {_difference(best, other, part.metric, name)}"


def _difference(best: Row, other: Row, metric: str, name: str) -> str:
    ours, theirs = ({run.record.seed: run for run in row.done} for row in (best, other))
    test = PairedTests(Options()).test(ours, theirs, metric)
    if math.isnan(test.delta):
        return f"which shares no seed with {other.label}."
    delta, low, high = (100 * v if is_fraction(metric) else v for v in (test.delta, test.low, test.high))
    digits = (".1f" if min(map(abs, (delta, low, high))) >= 0.05 else ".2f") if is_fraction(metric) else ".4g"
    interval = "" if math.isnan(low) else f" [{low:{digits}}, {high:{digits}}]"
    few = len(test.seeds) < SEEDS
    said = f"{delta:+{digits}} {name} over {other.label}{interval}, n = {len(test.seeds)}."
    if few and interval:
        said += (
            f" With fewer than {SEEDS} seeds the interval is about the sample of images alone and says nothing of "
            "how training varies."
        )
    elif few:
        said += f" There is no interval: it needs {SEEDS} seeds."
    return said + (" The interval includes 0: this may be chance." if low <= 0 <= high else "")


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
        if tested - 1 in curve:  # the line of the test repeats the last validation
            curve.pop(tested, None)
    return found


def thinned(curve: Curve, last: int) -> Curve:
    """Means over intervals of equally many steps, at most ``MAX_STEPS`` until ``last``; each at its last step."""
    width = max(1, math.ceil((last + 1) / MAX_STEPS))
    found: dict[int, list[int]] = {}
    for step in sorted(curve):
        found.setdefault(step // width, []).append(step)
    return {
        members[-1] if width == 1 else (place + 1) * width - 1: statistics.fmean(curve[s] for s in members)
        for place, members in found.items()
    }


class Line(NamedTuple):
    """One row at each value of a swept setting; ``level``: a row that does not have the setting."""

    label: str
    points: list[tuple[Any, Row]]
    level: bool = False


def swept(part: Part) -> dict[str, list[Line]]:
    """Per setting with at least two numbers in otherwise equal rows: its lines, and as levels the rows without it."""
    found = {}
    for factor in part.varied:
        kept = {
            c: rows for c, rows in alike(part, factor).items() if len({r.factors[factor] for r in rows}) > 1
        }
        others = [key for key in part.varied if key != factor]
        telling = [i for i in range(len(others)) if len({context[i] for context in kept}) > 1]
        lines = []
        for context, rows in sorted(kept.items()):
            apart = [f"{titles(others)[i]}={_short(others[i], context[i])}" for i in telling]
            points = sorted(((row.factors[factor], row) for row in rows), key=lambda point: point[0])
            lines.append(Line(", ".join(apart) or _owner(factor, rows[0]), points))
        if lines:
            absent = [row for row in part.rows if factor not in row.factors and row.values(part.metric)]
            found[factor] = [*lines, *(Line(row.label, [(None, row)], level=True) for row in absent)]
    return found


def alike(part: Part, *factors: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows with a score and a number for each of ``factors``, by all else in which the rows differ."""
    others = [key for key in part.varied if key not in factors]
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in part.rows:
        own = [row.factors.get(factor) for factor in factors]
        if row.values(part.metric) and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in own
        ):
            found.setdefault(tuple(text(row.factors.get(key, ABSENT)) for key in others), []).append(row)
    return found


def _short(key: str, value: str) -> str:
    return value.rpartition(".")[2] if key.endswith("_target_") else value


def _owner(factor: str, row: Row) -> str:
    """The class that a setting belongs to, else the setting's own name."""
    target = row.factors.get(f"{factor.partition('.')[0]}._target_")
    return titles([factor])[0] if target is None else _short("_target_", str(target))


def matrices(part: Part, notes: list[str]) -> dict[str, tuple[list[str], np.ndarray]]:
    """By row: class names and the confusion matrix (rows truth), summed over the finished seeds."""
    found: dict[str, tuple[list[str], np.ndarray]] = {}
    for row in part.rows:
        for run in row.done:
            try:
                names, own = _confusion(Path(run.directory))
            except HardpixError as error:
                notes.append(str(error))
                continue
            known, total = found.get(row.label, (names, np.zeros_like(own)))
            if known != names:
                notes.append(
                    f"{run.directory} has other classes than the other seeds of its row and is left out."
                )
            else:
                found[row.label] = (names, total + own)
    return {label: _frequent(*one) for label, one in found.items()}


def _confusion(folder: Path) -> tuple[list[str], np.ndarray]:
    """Class names, or numbers where ``classes.json`` is missing, and ``[C, C]`` int64."""
    path, named = folder / "confusion.npy", folder / "classes.json"
    if not path.is_file():
        raise DataError(f"{folder} has no confusion.npy; `hardpix evaluate {folder}` writes it.")
    try:
        matrix = np.load(path, allow_pickle=False)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.dtype.kind not in "iu":
            raise ValueError("no square matrix of counts")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"{path} is damaged ({error}); `hardpix evaluate {folder}` writes it again."
        ) from None
    try:
        names = json.loads(named.read_text(encoding="utf-8")) if named.is_file() else list(range(len(matrix)))
    except (OSError, ValueError) as error:
        raise DataError(f"{named} is damaged ({error}).") from None
    if not isinstance(names, list) or len(names) != len(matrix):
        raise DataError(f"{named} does not name the {len(matrix)} classes of confusion.npy.")
    return list(map(str, names)), matrix.astype(np.int64)


def _frequent(names: list[str], matrix: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Of many classes the most frequent ones, the others as one."""
    if len(names) <= MAX_CLASSES:
        return names, matrix
    kept = sorted(np.argsort(-matrix.sum(1), kind="stable")[: MAX_CLASSES - 1].tolist())
    place = np.full(len(names), len(kept))
    place[kept] = np.arange(len(kept))
    folded = np.zeros((len(kept) + 1,) * 2, np.int64)
    np.add.at(folded, (place[:, None], place[None, :]), matrix)
    return [*(names[k] for k in kept), f"{len(names) - len(kept)} others"], folded
