"""Check that runs followed the protocol of the cells they stand for, and choose the runs of a cell.

A reproduction on fewer steps is worth showing as long as it is stated, and as long as every row had as few: what
misleads is a table whose rows were trained unequally.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hardpix.config.catalog import split_sizes
from hardpix.config.published import THRESHOLD, Layout, LayoutColumn, LayoutRow, matches
from hardpix.record import EFFECTIVE_BATCH, TRAINED_ON, covers
from hardpix.record import FRAMES as PLACES
from hardpix.scores import PER_CLASS
from hardpix.tables.compare import ABSENT, WARNED, Run, folded, ignored, may_be_unknown, silenced, text
from hardpix.types import HardpixError

# Never a departure, in addition to what no table compares: where the data lies, and what follows from other keys.
SILENT = (*WARNED, *PLACES, EFFECTIVE_BATCH)
# What must be equal between runs that no experiment file describes.
EFFORT = ("trainer", "data.batch_size", "data.train_transform")
# What a run that stands on another has from it. An experiment file that no chain sets upon another knows none of it.
BELOW = "parent_config"
FROM_PARENT = (BELOW, "backbone", "head", "model", "init_from")

TRAINED, SCORED, WITHOUT_LABELS = "training frames", "scored frames", "training frames without labels"

# Which they are, by content; to be the same in all runs that read a data set alike.
TRAINED_DATA, SCORED_DATA = "training data", "scored data"


@dataclass(frozen=True)
class Experiment:
    """An experiment file: the cells it declares, its composed factors, and the keys that vary by its design."""

    name: str
    cells: tuple[str, ...]
    factors: Mapping[str, Any]
    free: tuple[str, ...] = ()


@dataclass(frozen=True)
class Use:
    """A run in a cell. ``role``: the split of the run (train, val, test) that the cell's column scores."""

    run: Run
    cell: str
    dataset: str
    split: str
    role: str
    free: tuple[str, ...] = ()  # keys that vary within the cell by the table's design
    train_frames: int | None = None

    @property
    def factors(self) -> dict[str, Any]:
        """Those of the run's training; an evaluation's weights are in the place of the training's choice."""
        own = dict(self.run.record.factors)
        if own.pop(f"{TRAINED_ON}dataset", None) is not None:
            trained = {k.removeprefix(TRAINED_ON): v for k, v in own.items() if k.startswith(TRAINED_ON)}
            own = {k: v for k, v in own.items() if not k.startswith(("data.", TRAINED_ON))} | trained
        own.pop("evaluation.split", None)
        if "evaluation.weights" in own:
            own["test_weights"] = own.pop("evaluation.weights")
        return own

    def frames(self) -> dict[str, tuple[int, int | None]]:
        """Frames as used, and as many as there should be, where either is known."""
        sizes = {folded(name): splits for name, splits in split_sizes().items()}
        full = sizes.get(folded(self.dataset), {})
        counts = {folded(key): count for key, count in self.run.record.frames.items()}
        if (scored := self.run.record.metrics.get(f"{self.role}/frames")) is not None:
            counts[f"{folded(self.dataset)}/{self.role}"] = int(scored)
        wanted = {
            TRAINED: ("train", self.train_frames or full.get("train")),
            SCORED: (self.role, full.get(self.split)),
        }
        if self.train_frames and "train" in full:
            wanted[WITHOUT_LABELS] = ("unlabeled", full["train"] - self.train_frames)
        return {
            name: (counts[key], whole)
            for name, (role, whole) in wanted.items()
            if (key := f"{folded(self.dataset)}/{role}") in counts
        }

    def data(self) -> dict[str, str]:
        """Fingerprints of the frames of its training, and of those that were scored; where they are known."""
        found = {folded(key): value for key, value in self.run.record.data.items()}
        keys = {TRAINED_DATA: "train", SCORED_DATA: self.role}
        known = {name: [found.get(folded(f"{self.dataset}/{role}{kind}")) for kind in ("", " content")]
                 for name, role in keys.items()}  # fmt: skip
        return {name: " ".join(filter(None, marks)) for name, marks in known.items() if marks[0]}


@dataclass
class Departure:
    """How a use departs from its experiment file: keys with (value, value of the file), and words for a reader."""

    known: bool
    parent_known: bool = True
    keys: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    frames: dict[str, tuple[int, int]] = field(default_factory=dict)

    def describe(self) -> str:
        """Empty for a run at the protocol."""
        if not self.known:
            parts = ["no experiment file declares this cell, so its settings were not checked"]
        else:
            parts = [
                f"{key}={text(own)} (experiment: {text(wanted)})"
                for key, (own, wanted) in sorted(self.keys.items())
            ]
        parts += [f"{count} of {whole} {name}" for name, (count, whole) in self.frames.items()]
        return ", ".join(parts)


def departure(use: Use, experiments: Sequence[Experiment]) -> Departure:
    """From the nearest of the experiment files that declare the use's cell."""
    own = use.factors
    fitting = [one for one in experiments if any(matches(pattern, use.cell) for pattern in one.cells)]
    parent_known = not _has_parent(own) or any(_has_parent(one.factors) for one in fitting)
    from_parent = () if parent_known else FROM_PARENT
    found = [_differing(own, one.factors, (*one.free, *use.free, *from_parent)) for one in fitting]
    keys = min(found, key=len) if found else {}
    frames = {
        name: (count, whole)
        for name, (count, whole) in use.frames().items()
        if whole is not None and count != whole
    }
    return Departure(bool(found), parent_known, keys, frames)


def _has_parent(factors: Mapping[str, Any]) -> bool:
    """Whether the factors of another run lie below these."""
    return any(key.startswith(f"{BELOW}.") for key in factors)


def refuse_unequal(uses: Sequence[Use], departures: Sequence[Departure], ignore: Sequence[str]) -> None:
    """Raise when, on one data set, a setting in which some run departs is not the same in all.

    A key that a run's method does not have is passed over; so are keys that vary by design.
    """
    for dataset in sorted({use.dataset for use in uses}):
        members = [pair for pair in zip(uses, departures, strict=True) if pair[0].dataset == dataset]
        unequal = _unequal(members, ignore)
        if unequal:
            raise HardpixError(
                f"The rows were not trained and scored alike on {dataset}: they differ in {'; '.join(unequal)}, and "
                "not because their experiment files do: leave runs out, or name with --ignore a key that cannot "
                "matter."
            )


def _unequal(members: Sequence[tuple[Use, Departure]], ignore: Sequence[str]) -> list[str]:
    keys = {SCORED, TRAINED_DATA, SCORED_DATA}
    keys |= {key for use, departed in members for key in _compared_keys(use, departed)}
    lines = []
    for key in sorted(key for key in keys if not covers(ignore, key)):
        for alike in _comparable_members(members, key):
            values: list[tuple[Any, str]] = []
            for use, departed in alike:
                value = _value(use, departed, key)
                if value is not None and all(value[0] != other for other, _ in values):
                    values.append((value[0], use.cell))
            if len(values) > 1:
                lines.append(f"{key} ({', '.join(f'{text(value)} in {cell}' for value, cell in values)})")
    return lines


def _comparable_members(
    members: Sequence[tuple[Use, Departure]], key: str
) -> list[list[tuple[Use, Departure]]]:
    """Below ``parent_config`` only runs of one method and data set are to be compared: others are different stages.

    What a data set holds depends on how it is read.
    """
    if key in (TRAINED_DATA, SCORED_DATA):
        return list(_by(members, _reading).values())
    depth = key.split(".").count(BELOW)
    if not depth:
        return [list(members)]

    def stages(use: Use) -> list[Any]:
        return [
            use.factors.get(f"{f'{BELOW}.' * (level + 1)}{kind}")
            for level in range(depth)
            for kind in ("method._target_", "data.source._target_")
        ]

    return list(_by(members, stages).values())


def _by(
    members: Sequence[tuple[Use, Departure]], what: Callable[[Use], Any]
) -> dict[str, list[tuple[Use, Departure]]]:
    groups: dict[str, list[tuple[Use, Departure]]] = {}
    for member in members:
        groups.setdefault(text(what(member[0])), []).append(member)
    return groups


def _reading(use: Use) -> dict[str, Any]:
    """How a run's data set is read, apart from where it lies."""
    own = use.factors
    return {k: own[k] for k in sorted(own) if covers(["data.source"], k) and not covers(PLACES, k)}


def _value(use: Use, departed: Departure, key: str) -> tuple[Any] | None:
    """The value in a run, None where the key does not concern it: it varies by design, or nobody has it."""
    if covers(use.free, key):
        return None
    if key in (TRAINED, SCORED, WITHOUT_LABELS):
        return use.frames()[key][:1] if key in use.frames() else None
    if key in (TRAINED_DATA, SCORED_DATA):
        return (use.data()[key],) if key in use.data() else None
    if key in departed.keys:  # possibly absent: something was switched off
        return departed.keys[key][:1]
    return (use.factors[key],) if key in use.factors else None


def _compared_keys(use: Use, departed: Departure) -> set[str]:
    """Keys that must be the same in all runs: those departed in; without an experiment file all of effort."""
    own = use.factors
    silent = (*ignored([own]), *SILENT)
    effort = {
        key
        for key in own
        if silenced(EFFORT, key) and not silenced(silent, key)
        if not departed.known or (not departed.parent_known and covers([BELOW], key))
    }
    return {*effort, *departed.keys, *departed.frames}


def _differing(
    own: Mapping[str, Any], wanted: Mapping[str, Any], free: Sequence[str]
) -> dict[str, tuple[Any, Any]]:
    silent = (*ignored([own]), *SILENT, *free)
    pairs = {
        key: (own.get(key, ABSENT), wanted.get(key, ABSENT))
        for key in own.keys() | wanted.keys()
        if not silenced(silent, key)
    }
    unknown = may_be_unknown(pairs)
    pairs = {
        k: pair for k, pair in pairs.items() if pair[0] != pair[1] and not (k in unknown and k not in own)
    }
    # Another class has other parameters: its name says it all.
    replaced = [key.removesuffix("._target_") for key in pairs if key.endswith("._target_")]
    return {
        key: pair for key, pair in pairs.items() if key.endswith("._target_") or not covers(replaced, key)
    }


# Choose the runs of each cell of a published table, and their scores.


VALUE = "value"


def uses_of(layout: Layout, runs: Sequence[Run], notes: list[str]) -> dict[tuple[str, str], list[Use]]:
    """The runs of each cell. A run on another data set is left out, with a note."""
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


def _same_dataset(run: Run, column: LayoutColumn) -> bool:
    return column.dataset == "any" or folded(run.record.dataset) == folded(column.dataset)


def _left_out(run: Run, layout: Layout, declared: Sequence[tuple[LayoutRow, LayoutColumn]]) -> str:
    row, column = declared[0]
    own = run.record.dataset or "not named in its record"
    return (
        f"Left out: {run.directory} stands for {layout.table.name}/{row.id}/{column.id}, which is about "
        f"{column.dataset}, but its data set is {own}."
    )


def _refuse_twice(run: Run, layout: Layout, fitting: Sequence[tuple[LayoutRow, LayoutColumn]]) -> None:
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


def metric_of(row: LayoutRow, column: LayoutColumn) -> str:
    """The row's own, or the column's with the row's threshold filled in: ``fused_miou@0.5``."""
    filled = "" if row.threshold is None else f"{row.threshold:g}"
    return (row.metric or column.metric).replace(THRESHOLD, filled)


def _role(run: Run, metric: str, column: LayoutColumn) -> str:
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
    path = Path(use.run.directory) / PER_CLASS
    if not use.role or not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        values = {folded(line["class"]): float(line[kind]) for line in csv.DictReader(file)}
    return values.get(folded(name))


def of_class(use: Use, column: LayoutColumn) -> Use:
    """The use for a column of a class, whose scores are of the split that was tested."""
    return replace(use, role=_role(use.run, column.metric, column))


def reduced(use: Use, metric: str, called: str = VALUE) -> Run:
    """The run with the cell's score as its only metric."""
    score = _score(use, metric)
    metrics = {} if score is None else {called: score}
    return use.run._replace(record=replace(use.run.record, metrics=metrics))
