"""Our side of every cell of a published table: what the runs that stand for it scored."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from hardpix.report import compare, table
from hardpix.report.collect import Run
from hardpix.report.effort import Use
from hardpix.report.layout import Column, Layout, Row
from hardpix.report.significance import PairedTest, PairedTests
from hardpix.report.table import Cell, Outcome
from hardpix.report.uses import VALUE, metric_of, of_class, reduced
from hardpix.types import HardpixError

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

    def cell(self, row: Row, column: Column) -> Cell | None:
        """In the printed unit; None where there is no run."""
        return scaled(self._cell(row, column), column.unit)

    def apart(self, row: Row, column: Column, base: Place | None, tested: bool) -> Cell | None:
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

    def sources(self, row: Row, column: Column) -> list[Place]:
        """The cells that a cell is computed from."""
        if column.of:
            return [(row.id, column.of), (row.against, column.of)] if row.against else []
        if column.classes_of:
            return [(row.id, column.classes_of)]
        return [(row.id, name) for name in column.minus or column.increase or (column.id,)]

    def setting(self, row: Row, column: Column) -> str:
        """The value of a setting in the cell's runs, whatever became of them."""
        values = [
            use.factors.get(column.factor, compare.ABSENT) for use in self.uses.get((row.id, column.id), ())
        ]
        words = [
            "x".join(map(str, value)) if isinstance(value, list) else compare.text(value) for value in values
        ]
        return ", ".join(dict.fromkeys(column.words.get(word, word) for word in words))

    def _cell(self, row: Row, column: Column) -> Cell | None:
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

    def _outcomes(self, row: str, name: str, column: Column) -> dict[int, Outcome]:
        """One outcome per seed of a cell's runs."""
        return table.outcomes_of(self._runs(row, name, column, VALUE))

    def _runs(self, row: str, name: str, column: Column, called: str) -> dict[int, Run]:
        """By seed the runs of a cell, which must agree in all else, with its score as ``called``."""
        uses = self.uses[row, name]
        differing = compare.disagreements([use.run for use in uses], self.ignore)
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

    def _metric(self, row: str, column: Column) -> str:
        return column.metric if column.classes_of else metric_of(self.rows[row], column)

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


def scaled(cell: Cell | None, unit: str) -> Cell | None:
    if cell is None or unit != "percent":
        return cell
    return replace(cell, mean=cell.mean * 100.0, std=cell.std * 100.0, test=_scaled(cell.test))


def _scaled(test: PairedTest | None) -> PairedTest | None:
    if test is None:
        return None
    return replace(test, delta=test.delta * 100.0, low=test.low * 100.0, high=test.high * 100.0)
