"""A published table with our runs beside it: which runs stand for which cell, and what must be told about them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hardpix.report import compare, table
from hardpix.report.collect import Run
from hardpix.report.effort import Experiment, Use, departure, refuse_unequal
from hardpix.report.layout import Column, Layout, Row
from hardpix.report.printed import aside, remarks
from hardpix.report.published import Value
from hardpix.report.table import Cell, Outcome
from hardpix.report.uses import VALUE, metric_of, reduced, uses_of
from hardpix.types import HardpixError

NOT_RUN, CITED = "not run", "cited"


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


@dataclass(frozen=True)
class Comparison:
    layout: Layout
    parts: tuple[tuple[str, tuple[Line, ...]], ...]
    published_notes: tuple[tuple[str, str], ...]  # mark and text: about printed values
    our_notes: tuple[tuple[str, str], ...]  # about our cells
    notes: tuple[str, ...]


def comparison(
    layout: Layout,
    runs: Sequence[Run],
    experiments: Sequence[Experiment] = (),
    ignore: Sequence[str] = (),
) -> Comparison:
    """Set ``runs`` beside the printed numbers; raise when that would compare what is not comparable."""
    notes: list[str] = []
    uses = uses_of(layout, runs, notes)
    every = [use for members in uses.values() for use in members]
    departures = [departure(use, experiments) for use in every]
    refuse_unequal(every, departures, ignore)
    told = {
        (use.cell, use.run.directory): departed.told()
        for use, departed in zip(every, departures, strict=True)
    }
    cells = _Cells(layout, uses, told, ignore, notes)
    marks, ours = _Marks("abcdefghijklmnopqrstuvwxyz"), _Marks("")
    parts = tuple(
        (part.title, tuple(_line(layout, row, cells, ours, marks) for row in part.rows))
        for part in layout.parts
    )
    used = list({use.run.directory: use.run for use in every}.values())
    notes = [*_general(layout), *dict.fromkeys(notes), *(compare.warnings(used, ignore) if used else ())]
    return Comparison(layout, parts, ours.notes(), marks.notes(), tuple(notes))


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


def _line(layout: Layout, row: Row, cells: _Cells, printed: _Marks, ours: _Marks) -> Line:
    entries = []
    for column in layout.columns:
        made = cells.entry(row, column)
        told = [printed.mark(text) for text in remarks(row, column, made.published)]
        own = [ours.mark(text) for text in cells.told(row, column)]
        entries.append(replace(made, published_marks=tuple(told), marks=tuple(own)))
    words = [row.label, *(str(row.facts.get(name, "-")) for name in layout.labels if name != "label")]
    return Line(row, tuple(words), tuple(entries))


class _Cells:
    """Our side of every cell."""

    def __init__(
        self,
        layout: Layout,
        uses: dict[tuple[str, str], list[Use]],
        departures: dict[tuple[str, str], str],
        ignore: Sequence[str],
        notes: list[str],
    ) -> None:
        self.layout, self.uses, self.departures = layout, uses, departures
        self.ignore, self.notes = ignore, notes
        self.by_id = {column.id: column for column in layout.columns}
        self.rows = {row.id: row for row in layout.rows}

    def entry(self, row: Row, column: Column) -> Entry:
        printed = self.layout.published(row, column)
        if column.factor:
            return Entry(printed, None, word=self._setting(row, column))
        cell = _scaled(self._cell(row, column), column.unit)
        return Entry(printed, cell, CITED if row.cited else NOT_RUN, aside(row, column))

    def told(self, row: Row, column: Column) -> list[str]:
        """What to say below the table about a cell's runs."""
        sources = self._sources(row, column)
        texts = [
            self.departures[use.cell, use.run.directory]
            for source in sources
            for use in self.uses.get(source, ())
        ]
        uses = self.uses.get((row.id, column.id), [])
        if column.range and uses:
            values = sorted({compare.text(use.factors.get(row.over)) for use in uses}, key=table.natural)
            texts.append(f"{column.range} over {len(values)} value(s) of {row.over}: {', '.join(values)}")
        return list(dict.fromkeys(filter(None, texts)))

    def _sources(self, row: Row, column: Column) -> list[tuple[str, str]]:
        """The cells that a cell is computed from."""
        if column.of:
            return [(row.id, column.of), (row.against, column.of)] if row.against else []
        return [(row.id, name) for name in column.minus or column.increase or (column.id,)]

    def _cell(self, row: Row, column: Column) -> Cell | None:
        if column.range:
            return self._range(row, column)
        sources = self._sources(row, column)
        if not sources or any(not self.uses.get(source) for source in sources):
            return None
        outcomes = [self._outcomes(*source) for source in sources]
        seeds = sorted(outcomes[0])
        if len(outcomes) == 1:
            return table.aggregate(table.Column(VALUE), outcomes[0], {}, seeds)
        kind: table.Kind = "ratio" if column.increase else "difference"
        made = table.aggregate(table.Column(VALUE, kind), outcomes[0], outcomes[1], seeds)
        return replace(made, mean=made.mean - 1) if column.increase else made

    def _outcomes(self, row: str, column: str) -> dict[int, Outcome]:
        """One outcome per seed of a cell's runs, which must agree in all else."""
        uses = self.uses[row, column]
        differing = compare.disagreements([use.run for use in uses], self.ignore)
        if differing:
            raise HardpixError(
                f"The {len(uses)} runs of {uses[0].cell} are not seeds of one setting, because they differ in "
                f"{'; '.join(differing[: compare.MAX_KEYS])}: leave runs out, or name with --ignore a key that cannot "
                "matter."
            )
        metric = metric_of(self.rows[row], self.by_id[column])
        return table.outcomes_by_seed([reduced(use, metric) for use in uses], self.notes)

    def _range(self, row: Row, column: Column) -> Cell | None:
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

    def _setting(self, row: Row, column: Column) -> str:
        """The value of a setting in the cell's runs, whatever became of them."""
        values = [
            use.factors.get(column.factor, compare.ABSENT) for use in self.uses.get((row.id, column.id), ())
        ]
        words = [
            "x".join(map(str, value)) if isinstance(value, list) else compare.text(value) for value in values
        ]
        return ", ".join(dict.fromkeys(column.words.get(word, word) for word in words))


def _scaled(cell: Cell | None, unit: str) -> Cell | None:
    factor = 100.0 if unit == "percent" else 1.0
    return None if cell is None else replace(cell, mean=cell.mean * factor, std=cell.std * factor)
