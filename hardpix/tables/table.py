"""Aggregation: one row for each combination of the declared factors; mean, std and n over seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hardpix.report import columns as of_table
from hardpix.report import compare, lacks, lookup, protocol, reservations
from hardpix.report.aggregate import Cell as Cell
from hardpix.report.aggregate import Outcome as Outcome
from hardpix.report.aggregate import aggregate as aggregate
from hardpix.report.aggregate import by_seed as by_seed
from hardpix.report.aggregate import outcomes_by_seed as outcomes_by_seed
from hardpix.report.aggregate import outcomes_of as outcomes_of
from hardpix.report.collect import Run
from hardpix.report.columns import Column as Column
from hardpix.report.columns import Kind as Kind
from hardpix.report.labels import labels, titles
from hardpix.report.lacks import Choose, Lack
from hardpix.report.significance import Options, PairedTests
from hardpix.types import HardpixError

DEFAULT_ROWS = ("method", "loss")


@dataclass(frozen=True)
class Row:
    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    n: int  # seeds that are done
    runs: tuple[Run, ...] = ()  # one of each seed
    lacks: tuple[Lack, ...] = ()
    protocol: str = ""  # how large the training was


@dataclass(frozen=True)
class Table:
    factors: tuple[str, ...]  # titles of the label columns
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]  # the reference first, then by label; rows of one label stay together
    notes: tuple[str, ...]
    reference: str = ""  # label of the reference row
    against: str = ""  # label of the row that the others are tested against


def table(
    runs: Sequence[Run],
    rows: Sequence[str] = DEFAULT_ROWS,
    columns: Sequence[str | Column] = (),
    relative_to: str | None = None,
    ignore: Sequence[str] = (),
    *,
    against: str | None = None,
    options: Options | None = None,
    per_class: bool = False,
    combinations: bool = False,
    choose: Choose = lambda group, factors: "",
) -> Table:
    """Aggregate comparable ``runs`` (see :func:`hardpix.report.compare.group`, which refuses others).

    Columns are metrics as in the records, with ``*`` as wildcard, ``iou:CLASS`` of one class, ``:x`` for the ratio of
    means to the reference row (its deviation is that of the seeds' own ratios), ``:delta`` for the mean difference from
    it, both over common seeds, and ``=Title`` to rename. ``relative_to`` names that row as ``factor=value`` (several
    separated by commas) or by its label. ``against`` names a row likewise and adds a test of the difference from it to
    every metric (needs NumPy). ``per_class`` adds the IoU of each class, ``combinations`` the rows of the factors'
    product that have no run, and ``choose`` names files of the configuration for commands.
    """
    runs = sorted(runs, key=lambda run: run.directory)
    runs, classes = (
        of_table.with_classes(runs) if per_class or of_table.wants_classes(columns) else (runs, [])
    )
    groups = compare.group(runs, rows, ignore)
    notes: list[str] = []
    found = [by_seed(group.runs, notes) for group in groups]
    named = [labels(rows[i], [g.values[i] for g in groups], rows) for i in range(len(rows))]
    names = list(zip(*named, strict=True))
    chosen = of_table.choose(columns, runs)
    if per_class:
        chosen += [Column(f"iou:{name}") for name in classes]
    tested = None if against is None else lookup.row(against, rows, names, "--against")
    first = tested if relative_to is None else lookup.row(relative_to, rows, names, "--relative-to")
    if first is None and any(column.kind != "value" for column in chosen):
        raise HardpixError(
            "A :x or :delta column needs --relative-to, such as --relative-to loss=cross_entropy."
        )
    if tested is not None:
        chosen = [made for column in chosen for made in _with_test(column)]

    seeds = sorted({seed for own in found for seed in own})

    def expected(place: int) -> list[int]:
        """The seeds that a row should have: those of the table, unless it stands for a seed itself."""
        return sorted(found[place]) if "seed" in rows else seeds

    options = options or Options()
    tester = PairedTests(options)
    made = [
        Row(
            names[i],
            tuple(_cells(chosen, found, i, first, tested, expected(i), tester)),
            sum(run.record.status == "done" for run in found[i].values()),
            tuple(found[i][seed] for seed in sorted(found[i])),
            tuple(_lacks(found[i], expected(i), chosen, rows, choose)),
            "; ".join(dict.fromkeys(map(protocol.of_run, groups[i].runs))),
        )
        for i in range(len(groups))
    ]
    if combinations:
        made += _absent(groups, found, named, chosen, rows, seeds, choose)
    lead = () if first is None else names[first]
    made.sort(key=lambda row: _place(row.labels, lead))
    notes += compare.warnings(runs, ignore)
    tests = [
        (", ".join(row.labels), cell.test) for row in made for cell in row.cells if cell.test is not None
    ]
    said = ["" if i is None else ", ".join(x for x in names[i] if x != "-") for i in (first, tested)]
    notes = [*reservations.about(tests, said[1], seeds, options), *notes]
    return Table(titles(rows), tuple(chosen), tuple(made), tuple(notes), *said)


def _with_test(column: Column) -> list[Column]:
    return [column, Column(column.metric, "test")] if column.kind == "value" else [column]


def _cells(
    columns: Sequence[Column],
    found: Sequence[Mapping[int, Run]],
    place: int,
    first: int | None,
    tested: int | None,
    seeds: Sequence[int],
    tester: PairedTests,
) -> list[Cell]:
    outcomes = outcomes_of(found[place])
    cells = []
    for column in columns:
        reference = tested if column.kind == "test" else first
        base = {} if reference is None else found[reference]
        cell = aggregate(column, outcomes, outcomes_of(base), seeds)
        if column.kind == "test" and place != reference:
            cell = replace(cell, test=tester.test(found[place], base, column.metric))
        cells.append(cell)
    return cells


def _lacks(
    found: Mapping[int, Run],
    seeds: Sequence[int],
    columns: Sequence[Column],
    rows: Sequence[str],
    choose: Choose,
) -> list[Lack]:
    """What one row lacks, with commands after the example of its finished run, if it has one."""
    example = min(found.values(), key=lambda run: run.record.status != "done")
    metrics = list(dict.fromkeys(column.metric for column in columns))

    def command(seed: int) -> str:
        return lacks.again(example, seed) or lacks.from_factors(example, rows, seed, choose)

    return lacks.of_row(found, seeds, metrics, command, lacks.caution(example))


def _absent(
    groups: Sequence[compare.Group],
    found: Sequence[Mapping[int, Run]],
    named: Sequence[Sequence[str]],
    columns: Sequence[Column],
    rows: Sequence[str],
    seeds: Sequence[int],
    choose: Choose,
) -> list[Row]:
    """Rows of the factors' product that have no run. The command is put together from rows that share a value."""
    have = set(zip(*named, strict=True))
    examples = [min(own.values(), key=lambda run: run.record.status != "done") for own in found]
    made = []
    for wanted in itertools.product(*(dict.fromkeys(names) for names in named)):
        if wanted in have:
            continue
        alike = [
            sum(names[i] == label for names, label in zip(named, wanted, strict=True))
            for i in range(len(groups))
        ]
        template = alike.index(max(alike))
        donors = {
            factor: examples[names.index(label)]
            for factor, names, label in zip(rows, named, wanted, strict=True)
            if names[template] != label
        }
        own = [int(wanted[rows.index("seed")])] if "seed" in rows else seeds
        commands = [lacks.combined(examples[template], donors, rows, seed, choose) for seed in own]
        lack = lacks.missing(own, commands, lacks.caution(examples[template]))
        cell = Cell(math.nan, math.nan, 0, len(own), (("missing", len(own)),))
        made.append(Row(wanted, (cell,) * len(columns), 0, lacks=(lack,)))
    return made


def _place(own: Sequence[str], lead: Sequence[str]) -> list[tuple[Any, ...]]:
    """The reference's group first, and in it the reference; all else by size and name."""
    return [(tuple(own[: i + 1]) != tuple(lead[: i + 1]), natural(label)) for i, label in enumerate(own)]


def natural(label: str) -> tuple[int, float, str]:
    """Numbers by size and before words."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label.lower())
