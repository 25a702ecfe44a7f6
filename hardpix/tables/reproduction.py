"""A published table with our runs beside it: which runs stand for which cell, and what must be told about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from hardpix.report import compare, protocol, reservations, table
from hardpix.report.collect import Run
from hardpix.report.columns import with_classes
from hardpix.report.compare import folded, suggestion
from hardpix.report.effort import Departure, Experiment, Use, departure, refuse_unequal
from hardpix.report.lacks import reason
from hardpix.report.layout import Column, Layout, Row
from hardpix.report.our_cells import OurCells, Place
from hardpix.report.printed import aside, remarks
from hardpix.report.published import Value
from hardpix.report.sheet import Note
from hardpix.report.significance import Options, PairedTests
from hardpix.report.table import Cell
from hardpix.report.uses import uses_of
from hardpix.types import HardpixError

NOT_RUN, CITED = "not run", "cited"
AS_PUBLISHED = "as published"


@dataclass(frozen=True)
class Asked:
    """What else a table is to show: the difference from a row (or column) of ours, tested or not, classes, commands."""

    relative_to: str | None = None
    against: str | None = None
    options: Options = field(default_factory=Options)
    per_class: bool = False
    command: Callable[[str, Sequence[int]], tuple[str, ...]] = lambda cell, seeds: ()


@dataclass(frozen=True)
class Entry:
    """One cell: the printed value and ours in the printed unit. ``marks`` point to the notes below."""

    published: Value
    cell: Cell | None  # None: no run
    absent: str = NOT_RUN  # why there may be none: CITED where hardpix does not have the method
    aside: Value = None  # printed in parentheses beside it
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
    row: Row
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
    asked: Asked | None = None,
) -> Comparison:
    """Set ``runs`` beside the printed numbers; raise when that would compare what is not comparable."""
    asked = asked or Asked()
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
        *reservations.about(tests, lines.baseline, sorted({run.record.seed for run in used}), asked.options),
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
    told = f"no experiment here, methods that hardpix does not have: {cited}" if cited else ""
    return [note for note in (layout.note, *layout.notes, told) if note]


def _with_classes(layout: Layout, uses: dict[Place, list[Use]]) -> Layout:
    """After each column of mIoU one for each class that its runs know, unless the paper prints classes itself."""
    if any(column.metric.startswith("iou:") for column in layout.columns):
        return layout
    made: list[Column] = []
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
        asked: Asked,
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

    def line(self, row: Row) -> Line:
        entries = [self._entry(row, column) for column in self.layout.columns]
        names = [name for name in self.layout.labels if name != "label"]
        return Line(
            row,
            (row.label, *(str(row.facts.get(name, "-")) for name in names)),
            tuple(entries),
            self._protocol(row),
        )

    def _entry(self, row: Row, column: Column) -> Entry:
        layout, cells = self.layout, self.cells
        value = layout.published(row, column)
        printed = tuple(self.printed.mark(text) for text in remarks(row, column, value))
        own = tuple(self.ours.mark(text) for text in self._told(row, column))
        if column.factor:
            return Entry(value, None, word=cells.setting(row, column), published_marks=printed, marks=own)
        cell = cells.cell(row, column)
        words, commands = ("", ()) if row.cited else self._commands(row, column)
        if commands:
            own = (*own, self.fill.setdefault((words, commands), f"c{len(self.fill) + 1}"))
        apart = cells.apart(row, column, self._base(row, column), self.asked.against is not None)
        absent = CITED if row.cited else NOT_RUN
        return Entry(value, cell, absent, aside(row, column), "", printed, own, apart, commands)

    def _base(self, row: Row, column: Column) -> Place | None:
        if self.base is None:
            return None
        kind, named = self.base
        name = column.classes_of or column.id
        return (named.id, name) if kind == "row" else (row.id, named.id)

    def _commands(self, row: Row, column: Column) -> tuple[str, tuple[str, ...]]:
        """What is not run of the cell, or of those that it is computed from, and the commands for it."""
        found: dict[str, None] = {}
        absent: set[int] = set()
        for source in self.cells.sources(row, column):
            have = {use.run.record.seed for use in self.cells.uses.get(source, ())}
            seeds = [seed for seed in self.seeds if seed not in have]
            if seeds:
                name = f"{self.layout.table.name}/{'/'.join(source)}"
                found |= dict.fromkeys(self.asked.command(name, seeds))
                absent.update(seeds if have else ())
        named = (
            f"seed{'s' if len(absent) > 1 else ''} {', '.join(map(str, sorted(absent)))} " if absent else ""
        )
        return f"{named}not run", tuple(found)

    def _told(self, row: Row, column: Column) -> list[str]:
        """What to say below the table about a cell's runs."""
        uses = [use for place in self.cells.sources(row, column) for use in self.cells.uses.get(place, ())]
        texts = [self.departures[use.cell, use.run.directory].told() for use in uses]
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

    def _protocol(self, row: Row) -> str:
        """In few words what the footnotes of the row's runs hold."""
        uses = [use for (name, _), members in self.cells.uses.items() if name == row.id for use in members]
        words = []
        for use in uses:
            departed = self.departures[use.cell, use.run.directory]
            own = protocol.departures(use.factors, departed.keys, departed.frames)
            words.append(own or (AS_PUBLISHED if departed.known else "not checked"))
        return "; ".join(dict.fromkeys(words))


def _named(layout: Layout, selector: str, option: str) -> tuple[str, Row | Column]:
    """The row, or else the column, whose id or label is ``selector`` (``row=ls``, ``Ls``)."""
    word = folded(selector.rpartition("=")[2])
    places: tuple[tuple[str, Sequence[Row | Column]], ...] = (
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
