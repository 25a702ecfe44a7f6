"""Render a table of runs as Markdown, LaTeX, CSV, JSON and HTML; fractions become percent only here."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from hardpix.scores import brief, is_fraction
from hardpix.tables import sheet
from hardpix.tables.columns import Column, direction, title
from hardpix.tables.compare import Run
from hardpix.tables.sheet import BEST, LACKING, SECOND, TIMES, Note, Sheet, Text
from hardpix.tables.significance import PairedTest
from hardpix.tables.table import UNSTEADY, Cell, Gap, Row, Table, joined_commands, reason


def render(table: Table, form: str) -> str:
    """``form``: ``md``, ``latex``, ``csv`` and ``json`` (unrounded, fractions as they are) or ``html`` (a fragment)."""
    if form == "csv":
        return _csv(table)
    if form == "json":
        return of_runs(table)
    return sheet.render(_sheet(table), form)


def cell_text(cell: Cell, column: Column) -> str:
    """``41.20 ± 0.30``; then n, where a seed gave no value, and why: ``41.20 (n=1), failed (2 of 3)``."""
    value = _number(cell, column)
    if value and cell.n < cell.total:
        value += f" (n={cell.n})"
    if column.kind == "test":  # the metric's own column says what is lacking
        return value or "-"
    return ", ".join(filter(None, [value, *state_words(cell)])) or "nan"


def state_words(cell: Cell) -> list[str]:
    return [s if count == cell.total == 1 else f"{s} ({count} of {cell.total})" for s, count in cell.states]


def test_text(test: PairedTest, scale: float, form: str) -> str:
    """``+1.20 [+0.30, +2.10], p=0.012``, as much of it as there is. A rounded p stays on its side of 0.05."""
    if math.isnan(test.delta):
        return ""
    words = _plain(test.delta * scale, f"+{form}")
    if not math.isnan(test.low):
        words += f" [{_plain(test.low * scale, f'+{form}')}, {_plain(test.high * scale, f'+{form}')}]"
        words += f" ({test.label})" if test.label else ""
    if not math.isnan(test.p):
        rounded = (f"{test.p:.{digits}g}" for digits in range(2, 17))
        shown = next((p for p in rounded if (float(p) < 0.05) == (test.p < 0.05)), repr(test.p))
        words += f", p={shown}" if test.p >= 0.001 else ", p<0.001"
    return words


def best_rows(table: Table, index: int) -> set[int]:
    """Rows with the best complete mean of one column; none where the metric's direction is not known."""
    return ranked(
        [_key(row.cells[index], table.columns[index]) for row in table.rows],
        direction(table.columns[index].metric),
    )[0]


def ranked(values: Sequence[float | None], sign: int) -> tuple[set[int], set[int]]:
    """Places of the best and, among three different values or more, of the second; equal ones share a rank."""
    known = {i: sign * value for i, value in enumerate(values) if value is not None and not math.isnan(value)}
    order = sorted(set(known.values()), reverse=True)
    if not sign or len(order) < 2:
        return set(), set()
    best, second = ({i for i, value in known.items() if value == order[rank]} for rank in (0, 1))
    return best, second if len(order) > 2 else set()


def _key(cell: Cell, column: Column) -> float | None:
    """The mean as it is printed; None where it is of too few seeds, or only a test."""
    if cell.states or column.kind == "test" or math.isnan(cell.mean):
        return None
    scale, form = scaling(column)
    return float(_plain(cell.mean * scale, form))


def scaling(column: Column) -> tuple[float, str]:
    """The factor and format of a column's numbers."""
    if column.kind == "ratio":
        return 1.0, ".2f"
    return (100.0, ".2f") if is_fraction(column.metric) else (1.0, ".4g")


def _number(cell: Cell, column: Column) -> str:
    scale, form = scaling(column)
    if column.kind == "test":
        return "" if cell.test is None else test_text(cell.test, scale, form)
    if math.isnan(cell.mean):
        return ""
    if column.kind == "ratio":
        itself = cell.mean == 1 and cell.std == 0  # the reference row relative to itself
        deviation = "" if math.isnan(cell.std) or itself else f" ± {cell.std:.2f}"
        return f"{cell.mean:.2f}{deviation}{TIMES}"
    sign = "+" if column.kind == "difference" else ""
    value = _plain(cell.mean * scale, sign + form)
    return value if math.isnan(cell.std) else f"{value} ± {_plain(cell.std * scale, form)}"


def _plain(value: float, form: str) -> str:
    """Large numbers without an exponent: 12345 rather than 1.234e+04."""
    if form.endswith(".4g") and 1e4 <= abs(value) < 1e15:
        form = form.replace(".4g", ".0f")
    return format(value, form)


def _sheet(table: Table) -> Sheet:
    names = [("", name) for name in table.factors]
    heads = [*names, *(("", title(column)) for column in table.columns), ("", "n")]
    marks: dict[tuple[str, tuple[str, ...]], str] = {}
    rank = [
        ranked([_key(row.cells[i], column) for row in table.rows], direction(column.metric))
        for i, column in enumerate(table.columns)
    ]
    common, own = protocols(table.rows)
    body = []
    shown = [brief(column) for column in zip(*(row.labels for row in table.rows), strict=True)]
    grouped = sheet.grouped(list(zip(*shown, strict=True)))
    for r, (row, labels) in enumerate(zip(table.rows, grouped, strict=True)):
        line = list(labels)
        for i, (cell, column) in enumerate(zip(row.cells, table.columns, strict=True)):
            lacking = LACKING if column.kind != "test" else ""
            style = lacking if cell.states else BEST if r in rank[i][0] else SECOND if r in rank[i][1] else ""
            found = [lack for lack in row.lacks if concerns(lack, cell, column)]
            marked = [marks.setdefault((x.words, x.commands), str(len(marks) + 1)) for x in found]
            line.append(Text(cell_text(cell, column), tuple(marked), style))
        line += [Text(str(row.n)), *([Text(own[r])] if any(own) else [])]
        body.append(line)
    notes = [Note(mark, words, joined_commands(commands)) for (words, commands), mark in marks.items()]
    notes += [Note("", words) for words in (*references(table), *filter(None, [common]), *table.notes)]
    heads += [("", "protocol")] * any(own)
    return Sheet("", heads, [("", body)], len(table.factors), notes, int(any(own)))


def concerns(lack: Gap, cell: Cell, column: Column) -> bool:
    """Whether a note about a row says why one of its cells is not complete, or tells little."""
    known = {*dict(cell.states), UNSTEADY}
    return lack.state in known and lack.metric in ("", column.metric) and column.kind != "test"


def references(table: Table) -> list[str]:
    """What ratios and differences are to."""
    kinds = {column.kind for column in table.columns}
    said = [sign for sign, kind in ((TIMES, "ratio"), ("Δ", "difference")) if kind in kinds]
    return [f"{' and '.join(said)}: beside {table.reference}."] if said else []


def protocols(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """A sentence with what all rows share of their trainings, and what each has for itself."""
    parts = [row.protocol.split(", ") if row.protocol else [] for row in rows]
    trained = [own for own, row in zip(parts, rows, strict=True) if row.runs]
    shared = [word for word in (trained[0] if trained else []) if all(word in own for own in trained)]
    apart = [", ".join(word for word in own if word not in shared) for own in parts]
    return f"All rows: {', '.join(shared)}." if shared else "", apart


def _csv(table: Table) -> str:
    """Four columns for each metric; ``state`` is ``ok`` or says what is lacking; a test's p and its interval."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    suffixes = {"value": "", "ratio": ":x", "difference": ":delta", "test": ":test"}
    heads = [
        f"{column.metric}{suffixes[column.kind]} {part}"
        for column in table.columns
        for part in _parts(column)
    ]
    writer.writerow([*table.factors, *heads, "protocol", "lacking", "commands"])
    for row in table.rows:
        line: list[str] = list(row.labels)
        for cell, column in zip(row.cells, table.columns, strict=True):
            states = ", ".join(f"{state} ({count} of {cell.total})" for state, count in cell.states) or "ok"
            if column.kind != "test":
                line += [repr(cell.mean), repr(cell.std), str(cell.n), states]
            elif cell.test is None:
                line += ["nan", "nan", "nan", "nan", "0", "0", "reference"]
            else:
                test = cell.test
                line += [repr(test.delta), repr(test.low), repr(test.high), repr(test.p)]
                line += [str(len(test.seeds)), str(test.images), states]
        commands = [command for lack in row.lacks for command in lack.commands]
        words = "; ".join(lack.words for lack in row.lacks)
        writer.writerow([*line, row.protocol or "-", words or "-", "; ".join(commands) or "-"])
    return buffer.getvalue()


def _parts(column: Column) -> tuple[str, ...]:
    if column.kind == "test":
        return ("delta", "low", "high", "p", "seeds", "images", "state")
    return ("mean", "std", "n", "state")


# Tables as JSON, for programs: full precision, fractions as fractions, ``null`` where there is no number.
#
# ``schema`` grows by one when a key changes its meaning or goes; further keys may come without. Of both
# kinds: ``notes`` (sentences below the table), and in each cell ``mean``, ``std``, ``n``, ``states``
# (seeds without a value) and, where asked for, ``test`` with ``delta``, ``low``, ``high``, ``p``,
# ``label`` (of an interval over images alone), ``seeds``, ``images`` and ``why`` (without images). A
# column's ``unit`` says what its numbers are: ``fraction``, ``ratio``, ``percent``, or nothing where its
# metric says it.


SCHEMA = 2


def of_runs(table: Table) -> str:
    """``kind: runs``. Rows have ``labels`` by factor, ``runs``, ``protocol``, ``lacking`` and ``cells``.

    ``lacking`` also has the values that tell little: state ``uneven``, a time per step whose steps spread widely.
    """

    best = [best_rows(table, i) for i in range(len(table.columns))]
    columns = [
        {
            "metric": column.metric,
            "kind": column.kind,
            "title": title(column),
            "unit": "ratio" if column.kind == "ratio" else "fraction" if is_fraction(column.metric) else "",
        }
        for column in table.columns
    ]
    return dumped(
        {
            "schema": SCHEMA,
            "kind": "runs",
            "factors": list(table.factors),
            "reference": table.reference or None,
            "against": table.against or None,
            "columns": columns,
            "rows": [_row(table, row, [r in own for own in best]) for r, row in enumerate(table.rows)],
            "notes": list(table.notes),
        }
    )


def _row(table: Table, row: Row, best: list[bool]) -> dict[str, Any]:
    cells = []
    for column, made, leads in zip(table.columns, row.cells, best, strict=True):
        values = {run.record.seed: run.record.metrics.get(column.metric) for run in row.runs}
        own = (
            {"values": {str(seed): value for seed, value in values.items()}} if column.kind == "value" else {}
        )
        cells.append({"metric": column.metric, "kind": column.kind, **cell(made), "best": leads, **own})
    return {
        "labels": dict(zip(table.factors, row.labels, strict=True)),
        "n": row.n,
        "protocol": row.protocol or None,
        "runs": list(map(run_entry, row.runs)),
        "lacking": [
            {
                "state": lack.state,
                "seeds": list(lack.seeds),
                "metric": lack.metric or None,
                "note": lack.words,
                "commands": list(lack.commands),
            }
            for lack in row.lacks
        ],
        "cells": cells,
    }


def cell(made: Cell) -> dict[str, Any]:
    own = {"mean": made.mean, "std": made.std, "n": made.n, "total": made.total, "states": dict(made.states)}
    return own if made.test is None else own | {"test": tested(made.test)}


def tested(test: PairedTest) -> dict[str, Any]:
    return {
        "delta": test.delta,
        "low": test.low,
        "high": test.high,
        "p": test.p,
        "label": test.label or None,
        "seeds": list(test.seeds),
        "images": test.images,
        "why": test.why or None,
    }


def run_entry(run: Run) -> dict[str, Any]:
    own = run.record
    summary = None if own.status == "done" else reason(run)
    return {
        "directory": run.directory,
        "run_id": own.run_id,
        "seed": own.seed,
        "status": own.outcome,
        "reason": summary,
    }


def dumped(content: dict[str, Any]) -> str:
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
