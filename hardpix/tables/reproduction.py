"""A published table with our measured cells next to the printed ones."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from hardpix.config.command_line import suggestion
from hardpix.config.published import Layout, LayoutColumn, LayoutRow, Value
from hardpix.config.rows import Fill
from hardpix.tables import columns, compare, significance, table
from hardpix.tables.columns import with_classes
from hardpix.tables.compare import Run, folded
from hardpix.tables.protocol_check import (
    VALUE,
    Departure,
    Experiment,
    Use,
    departure,
    metric_of,
    of_class,
    reduced,
    refuse_unequal,
    uses_of,
)
from hardpix.tables.sheet import Note
from hardpix.tables.significance import Options, PairedTest, PairedTests
from hardpix.tables.table import Cell, Outcome, reason
from hardpix.types import HardpixError

NOT_RUN, CITED = "not run", "cited"
AS_PUBLISHED = "as published"


@dataclass(frozen=True)
class TableOptions:
    """What else a table is to show: the difference from a row (or column) of ours, tested or not, classes, commands."""

    relative_to: str | None = None
    against: str | None = None
    options: Options = field(default_factory=Options)
    per_class: bool = False
    fill: Callable[[str, Sequence[int]], Fill] = lambda cell, seeds: Fill()


@dataclass(frozen=True)
class Entry:
    """One cell: the printed value and ours in the printed unit. ``marks`` point to the notes below."""

    published: Value
    cell: Cell | None  # None: no run
    absent: str = NOT_RUN  # why there may be none: CITED where hardpix does not have the method
    aside: Value = None  # printed in parentheses next to it
    word: str = ""  # ours, of a column that shows a setting
    published_marks: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    apart: Cell | None = None  # from our baseline, if one is named
    commands: tuple[str, ...] = ()  # that fill it

    @property
    def difference(self) -> float:
        """Ours minus the printed number; NaN unless both are there."""
        printed = self.published
        if self.cell is None or not isinstance(printed, int | float):
            return math.nan
        return self.cell.mean - printed


@dataclass(frozen=True)
class Line:
    row: LayoutRow
    labels: tuple[str, ...]
    entries: tuple[Entry, ...]
    protocol: str = ""  # what differs from the paper's; empty without runs


@dataclass(frozen=True)
class Comparison:
    layout: Layout
    parts: tuple[tuple[str, tuple[Line, ...]], ...]
    published_notes: tuple[tuple[str, str], ...]  # mark and text: about printed values
    our_notes: tuple[tuple[str, str], ...]  # about our cells
    notes: tuple[str, ...]
    fill: tuple[Note, ...] = ()  # the commands of cells without runs
    baseline: str = ""  # label of the row or column that `apart` is from


def comparison(
    layout: Layout,
    runs: Sequence[Run],
    experiments: Sequence[Experiment] = (),
    ignore: Sequence[str] = (),
    asked: TableOptions | None = None,
) -> Comparison:
    """Set ``runs`` next to the printed numbers; raise when that would compare what is not comparable."""
    asked = asked or TableOptions()
    runs = sorted(runs, key=lambda run: run.directory)
    notes: list[str] = []
    uses = uses_of(layout, runs, notes)
    every = [use for members in uses.values() for use in members]
    departures = [departure(use, experiments) for use in every]
    refuse_unequal(every, departures, ignore)
    if asked.per_class:
        layout = _with_classes(layout, uses)
    cells = OurCells(layout, uses, ignore, notes, PairedTests(asked.options))
    lines = _Lines(layout, cells, every, departures, asked)
    parts = tuple((part.title, tuple(map(lines.line, part.rows))) for part in layout.parts)
    used = list({use.run.directory: use.run for use in every}.values())
    tests = [
        (line.row.label, entry.apart.test)
        for _, own in parts
        for line in own
        for entry in line.entries
        if entry.apart is not None and entry.apart.test is not None
    ]
    notes = [
        *_general(layout),
        *dict.fromkeys(notes),
        *significance.about(tests, lines.baseline, sorted({run.record.seed for run in used}), asked.options),
        *(compare.warnings(used, ignore) if used else ()),
    ]
    fill = tuple(Note(mark, words, commands) for (words, commands), mark in lines.fill.items())
    return Comparison(
        layout, parts, lines.printed.notes(), lines.ours.notes(), tuple(notes), fill, lines.baseline
    )


class _Marks:
    """Footnotes: equal texts share a mark; letters, or numbers where none are given."""

    def __init__(self, letters: str) -> None:
        self.letters, self.texts = letters, {}  # type: tuple[str, dict[str, str]]

    def mark(self, text: str) -> str:
        return self.texts.setdefault(text, self._name(len(self.texts)))

    def notes(self) -> tuple[tuple[str, str], ...]:
        return tuple((mark, text) for text, mark in self.texts.items())

    def _name(self, index: int) -> str:
        if not self.letters:
            return str(index + 1)
        turns, place = divmod(index, len(self.letters))
        return self.letters[place] * (turns + 1)


def _general(layout: Layout) -> list[str]:
    cited = ", ".join(dict.fromkeys(row.label for row in layout.rows if row.cited))
    summary = f"no row here, methods that hardpix does not have: {cited}" if cited else ""
    return [note for note in (layout.note, *layout.notes, summary) if note]


def _with_classes(layout: Layout, uses: dict[Place, list[Use]]) -> Layout:
    """After each column of mIoU one for each class that its runs know, unless the paper prints classes itself."""
    if any(column.metric.startswith("iou:") for column in layout.columns):
        return layout
    made: list[LayoutColumn] = []
    for column in layout.columns:
        made.append(column)
        if column.derived or column.factor or column.range or column.metric != "miou":
            continue
        runs = [use.run for (_, name), members in uses.items() if name == column.id for use in members]
        made += [
            replace(column, id=f"{column.id}:{name}", label=name, metric=f"iou:{name}", classes_of=column.id)
            for name in with_classes(runs)[1]
        ]
    return replace(layout, columns=tuple(made))


class _Lines:
    """The rows of one table, and the notes that they ask for."""

    def __init__(
        self,
        layout: Layout,
        cells: OurCells,
        uses: Sequence[Use],
        departures: Sequence[Departure],
        asked: TableOptions,
    ) -> None:
        self.layout, self.cells, self.asked = layout, cells, asked
        self.departures = {
            (use.cell, use.run.directory): departed for use, departed in zip(uses, departures, strict=True)
        }
        self.seeds = sorted({use.run.record.seed for use in uses}) or [0]
        self.printed, self.ours = _Marks(""), _Marks("abcdefghijklmnopqrstuvwxyz")
        self.fill: dict[tuple[str, tuple[str, ...]], str] = {}
        selector = asked.against if asked.against is not None else asked.relative_to
        option = "--against" if asked.against is not None else "--relative-to"
        self.base = None if selector is None else _named(layout, selector, option)
        self.baseline = "" if self.base is None else self.base[1].label

    def line(self, row: LayoutRow) -> Line:
        entries = [self._entry(row, column) for column in self.layout.columns]
        names = [name for name in self.layout.labels if name != "label"]
        return Line(
            row,
            (row.label, *(str(row.facts.get(name, "-")) for name in names)),
            tuple(entries),
            self._protocol(row),
        )

    def _entry(self, row: LayoutRow, column: LayoutColumn) -> Entry:
        layout, cells = self.layout, self.cells
        value = layout.published(row, column)
        printed = tuple(self.printed.mark(text) for text in remarks(row, column, value))
        own = tuple(self.ours.mark(text) for text in self._told(row, column))
        word = cells.setting(row, column) if column.factor else ""
        words, commands = ("", ()) if row.cited or word else self._commands(row, column)
        if commands:
            own = (*own, self.fill.setdefault((words, commands), f"c{len(self.fill) + 1}"))
        if column.factor:
            return Entry(value, None, word=word, published_marks=printed, marks=own, commands=commands)
        cell = cells.cell(row, column)
        apart = cells.apart(row, column, self._base(row, column), self.asked.against is not None)
        absent = CITED if row.cited else NOT_RUN
        return Entry(
            value, cell, absent, value_in_parentheses(row, column), "", printed, own, apart, commands
        )

    def _base(self, row: LayoutRow, column: LayoutColumn) -> Place | None:
        if self.base is None:
            return None
        kind, named = self.base
        name = column.classes_of or column.id
        return (named.id, name) if kind == "row" else (row.id, named.id)

    def _commands(self, row: LayoutRow, column: LayoutColumn) -> tuple[str, tuple[str, ...]]:
        """What is not run of the cell, or of those that it is computed from, and the commands for it."""
        found: dict[str, None] = {}
        about: dict[str, None] = {}
        absent: set[int] = set()
        for source in self.cells.sources(row, column):
            have = {use.run.record.seed for use in self.cells.uses.get(source, ())}
            seeds = [seed for seed in self.seeds if seed not in have]
            if seeds:
                name = f"{self.layout.table.name}/{'/'.join(source)}"
                fill = self.asked.fill(name, seeds)
                found |= dict.fromkeys(fill.commands)
                about |= dict.fromkeys([fill.about] * bool(fill.about))
                absent.update(seeds if have else ())
        named = (
            f"seed{'s' if len(absent) > 1 else ''} {', '.join(map(str, sorted(absent)))} " if absent else ""
        )
        words = f" ({'; '.join(about)})" if about else ""
        return f"{named}not run{words}", tuple(found)

    def _told(self, row: LayoutRow, column: LayoutColumn) -> list[str]:
        """What to say below the table about a cell's runs."""
        uses = [use for place in self.cells.sources(row, column) for use in self.cells.uses.get(place, ())]
        texts = [self.departures[use.cell, use.run.directory].describe() for use in uses]
        texts += [
            f"seed {use.run.record.seed} {reason(use.run)} ({use.run.directory})"
            for use in uses
            if use.run.record.status != "done"
        ]
        own = self.cells.uses.get((row.id, column.id), [])
        if column.range and own:
            values = sorted({compare.text(use.factors.get(row.over)) for use in own}, key=table.natural)
            texts.append(f"{column.range} over {len(values)} value(s) of {row.over}: {', '.join(values)}")
        return list(dict.fromkeys(filter(None, texts)))

    def _protocol(self, row: LayoutRow) -> str:
        """In few words what the footnotes of the row's runs hold."""
        uses = [use for (name, _), members in self.cells.uses.items() if name == row.id for use in members]
        words = []
        for use in uses:
            departed = self.departures[use.cell, use.run.directory]
            own = columns.departures(use.factors, departed.keys, departed.frames)
            words.append(own or (AS_PUBLISHED if departed.known else "not checked"))
        return "; ".join(dict.fromkeys(words))


def _named(layout: Layout, selector: str, option: str) -> tuple[str, LayoutRow | LayoutColumn]:
    """The row, or else the column, whose id or label is ``selector`` (``row=ls``, ``Ls``)."""
    word = folded(selector.rpartition("=")[2])
    places: tuple[tuple[str, Sequence[LayoutRow | LayoutColumn]], ...] = (
        ("row", layout.rows),
        ("column", layout.columns),
    )
    for kind, known in places:
        by_id = [one for one in known if word == folded(one.id)]
        found = by_id or [one for one in known if word == folded(one.label)]
        if len(found) == 1:
            return kind, found[0]
    names = [one.id for _, known in places for one in known]
    hint = suggestion(selector.rpartition("=")[2], names) or f" (known: {', '.join(names)})"
    raise HardpixError(f"{option}: {layout.table.name} has no one row or column {selector!r}{hint}.")


# Our measured value of every cell of a published table.


Place = tuple[str, str]  # row and column


class OurCells:
    """``uses``: the runs of each cell. What is left out for a better attempt is added to ``notes``."""

    def __init__(
        self,
        layout: Layout,
        uses: dict[Place, list[Use]],
        ignore: Sequence[str],
        notes: list[str],
        tester: PairedTests,
    ) -> None:
        self.layout, self.uses = layout, uses
        self.ignore, self.notes, self.tester = ignore, notes, tester
        self.by_id = {column.id: column for column in layout.columns}
        self.rows = {row.id: row for row in layout.rows}

    def cell(self, row: LayoutRow, column: LayoutColumn) -> Cell | None:
        """In the printed unit; None where there is no run."""
        return scaled(self._cell(row, column), column.unit)

    def apart(self, row: LayoutRow, column: LayoutColumn, base: Place | None, tested: bool) -> Cell | None:
        """The difference from the cell ``base`` over common seeds, tested if asked for; None where one has no run."""
        place = (row.id, column.classes_of or column.id)
        if base is None or base == place or not self.uses.get(place) or not self.uses.get(base):
            return None
        if column.derived and not column.classes_of:
            return None
        if column.range or column.factor:
            return None
        metric = self._metric(row.id, column)
        own, theirs = (self._runs(*one, column, metric) for one in (place, base))
        column_of = table.Column(metric, "difference")
        cell = table.aggregate(column_of, table.outcomes_of(own), table.outcomes_of(theirs), sorted(own))
        if tested:
            cell = replace(cell, test=self.tester.test(own, theirs, metric))
        return scaled(cell, column.unit)

    def sources(self, row: LayoutRow, column: LayoutColumn) -> list[Place]:
        """The cells that a cell is computed from."""
        if column.of:
            return [(row.id, column.of), (row.against, column.of)] if row.against else []
        if column.classes_of:
            return [(row.id, column.classes_of)]
        return [(row.id, name) for name in column.minus or column.increase or (column.id,)]

    def setting(self, row: LayoutRow, column: LayoutColumn) -> str:
        """The value of a setting in the cell's runs, whatever became of them."""
        values = [
            use.factors.get(column.factor, compare.ABSENT) for use in self.uses.get((row.id, column.id), ())
        ]
        words = [
            "x".join(map(str, value)) if isinstance(value, list) else compare.text(value) for value in values
        ]
        return ", ".join(dict.fromkeys(column.words.get(word, word) for word in words))

    def _cell(self, row: LayoutRow, column: LayoutColumn) -> Cell | None:
        if column.range:
            return self._range(row, column)
        sources = self.sources(row, column)
        if not sources or any(not self.uses.get(source) for source in sources):
            return None
        outcomes = [self._outcomes(*source, column) for source in sources]
        seeds = sorted(outcomes[0])
        if len(outcomes) == 1:
            return table.aggregate(table.Column(VALUE), outcomes[0], {}, seeds)
        kind: table.Kind = "ratio" if column.increase else "difference"
        made = table.aggregate(table.Column(VALUE, kind), outcomes[0], outcomes[1], seeds)
        return replace(made, mean=made.mean - 1) if column.increase else made

    def _outcomes(self, row: str, name: str, column: LayoutColumn) -> dict[int, Outcome]:
        """One outcome per seed of a cell's runs."""
        return table.outcomes_of(self._runs(row, name, column, VALUE))

    def _runs(self, row: str, name: str, column: LayoutColumn, called: str) -> dict[int, Run]:
        """By seed the runs of a cell, which must agree in all else, with its score as ``called``."""
        uses = self.uses[row, name]
        differing = compare.disagreements([use.run for use in uses], (*self.ignore, *uses[0].free))
        if differing:
            raise HardpixError(
                f"The {len(uses)} runs of {uses[0].cell} are not seeds of one setting, because they differ in "
                f"{'; '.join(differing[: compare.MAX_KEYS])}: leave runs out, or name with --ignore a key that cannot "
                "matter."
            )
        if column.classes_of:
            uses = [of_class(use, column) for use in uses]
        metric = self._metric(row, column if column.classes_of else self.by_id[name])
        return table.by_seed([reduced(use, metric, called) for use in uses], self.notes)

    def _metric(self, row: str, column: LayoutColumn) -> str:
        return column.metric if column.classes_of else metric_of(self.rows[row], column)

    def _range(self, row: LayoutRow, column: LayoutColumn) -> Cell | None:
        """The lowest or highest mean over the values of the row's key; each value's runs are its seeds."""
        uses = self.uses.get((row.id, column.id))
        if not uses:
            return None
        metric = metric_of(row, column)
        runs = [reduced(use, metric) for use in uses]
        groups = compare.group(runs, [row.over], self.ignore)
        outcomes = [table.outcomes_by_seed(group.runs, self.notes) for group in groups]
        cells = [table.aggregate(table.Column(VALUE), own, {}, sorted(own)) for own in outcomes]
        lacking: dict[str, int] = defaultdict(int)
        for cell in cells:
            for state, count in cell.states:
                lacking[state] += count
        means = [cell.mean for cell in cells if not math.isnan(cell.mean)]
        best = {"min": min, "max": max}[column.range](means) if means else math.nan
        n, total = sum(cell.n for cell in cells), sum(cell.total for cell in cells)
        return Cell(best, math.nan, n, total, tuple(sorted(lacking.items())))


def scaled(cell: Cell | None, unit: str) -> Cell | None:
    if cell is None or unit != "percent":
        return cell
    return replace(cell, mean=cell.mean * 100.0, std=cell.std * 100.0, test=_scaled(cell.test))


def _scaled(test: PairedTest | None) -> PairedTest | None:
    if test is None:
        return None
    return replace(test, delta=test.delta * 100.0, low=test.low * 100.0, high=test.high * 100.0)


# Footnotes of printed values: copied, doubtful, deduced.


def value_in_parentheses(row: LayoutRow, column: LayoutColumn) -> Value:
    """The value printed in parentheses next to the cell's own."""
    return row.facts.get("copied_cells", {}).get(column.id)


def remarks(row: LayoutRow, column: LayoutColumn, value: Value) -> list[str]:
    """One sentence for each reservation about a printed cell."""
    if value is None or column.derived:
        return []
    facts = row.facts
    found = []
    if facts.get("copied") or column.id in facts.get("copied_from_source_paper", ()):
        found.append("copied by the paper from the cited work")
    if value_in_parentheses(row, column) is not None:
        found.append("the authors' own re-run, in parentheses the value of the cited work")
    if facts.get("confidence", "certain") != "certain":
        found.append(f"{facts['confidence']}: {facts['evidence']}")
    if facts.get("suspect"):
        found.append("doubtful as printed")
    if facts.get("note"):
        found.append(str(facts["note"]))
    if log := facts.get("released_log"):
        parts = [f"crop {log['crop']}", f"{log['iterations']} iterations", f"batch {log['total_batch']}"]
        found.append(f"released log: {', '.join(parts)}")
    return found
