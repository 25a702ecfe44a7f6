"""Published tables next to ours as Markdown, LaTeX (booktabs), CSV (one line a cell), JSON and HTML."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from hardpix.config import published
from hardpix.config.published import LayoutColumn
from hardpix.tables import sheet
from hardpix.tables.render import SCHEMA, cell, dumped, ranked, state_words, test_text
from hardpix.tables.reproduction import CITED, NOT_RUN, Comparison, Entry, Line
from hardpix.tables.sheet import BEST, LACKING, SECOND, UNRUN, Note, Sheet, Text

HEADS = ("published", "hardpix", "Δ")
UNITS = {"percent": "%", "MB": "MB", "seconds": "s"}  # others say nothing that the label does not


def render(tables: Sequence[Comparison], form: str) -> str:
    """``form``: ``md``, ``latex``, ``csv``, ``json`` (unrounded, in the printed unit) or ``html`` (fragments)."""
    if form == "csv":
        return _csv(tables)
    if form == "json":
        content = {"schema": SCHEMA, "kind": "published", "tables": list(map(_json, tables))}
        return dumped(content)
    return "\n".join(sheet.render(_sheet(one), form) for one in tables)


def title(table: Comparison) -> str:
    made = table.layout.table
    return f"{made.name}: {made.caption}"


def texts(entry: Entry, column: LayoutColumn, decimals: int, style: str = "") -> tuple[Text, Text, Text]:
    """Published value, ours, difference. ``style``: BEST or SECOND, of ours."""
    places = max(decimals, 2)
    printed = _printed(entry.published, decimals)
    if entry.aside is not None:
        printed += f" ({_printed(entry.aside, decimals)})"
    if column.factor:
        same = "same" if entry.word == printed else "differs"
        ours = Text(entry.word, entry.marks) if entry.word else Text(NOT_RUN, entry.marks, UNRUN)
        return (
            Text(printed, entry.published_marks),
            ours,
            Text(same if entry.word and printed != "-" else "-"),
        )
    if entry.cell is None:
        ours = Text("-" if entry.absent == CITED else NOT_RUN, entry.marks, UNRUN)
        return Text(printed, entry.published_marks), ours, Text("-")
    words, lacking = _ours(entry, places)
    difference = "-" if math.isnan(entry.difference) else format(entry.difference, f"+.{places}f")
    return (
        Text(printed, entry.published_marks),
        Text(words, entry.marks, LACKING if lacking else style),
        Text(difference),
    )


def _printed(value: published.Value, decimals: int) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else format(value, f".{decimals}f")


def _ours(entry: Entry, places: int) -> tuple[str, bool]:
    """``41.20 ± 0.30 (n=2), failed (1 of 3)``, and whether anything is lacking."""
    made = entry.cell
    assert made is not None
    value = "" if math.isnan(made.mean) else format(made.mean, f".{places}f")
    if value and not math.isnan(made.std):
        value += f" ± {made.std:.{places}f}"
    if value:
        value += f" (n={made.n})"
    states = state_words(made)
    return ", ".join(filter(None, [value, *states])) or "nan", bool(states) or not value


def _difference(entry: Entry, places: int) -> Text:
    """The difference from our own baseline, with its interval and p where it was tested."""
    if entry.apart is None:
        return Text("-")
    if entry.apart.test is not None:
        return Text(test_text(entry.apart.test, 1.0, f".{places}f") or "-")
    made = entry.apart
    if math.isnan(made.mean):
        return Text(", ".join(state_words(made)) or "-")
    deviation = "" if math.isnan(made.std) else f" ± {made.std:.{places}f}"
    return Text(f"{made.mean:+.{places}f}{deviation}")


def _decimals(table: Comparison, column: LayoutColumn) -> int:
    """As many as the paper prints in the column; trailing zeros are lost in the data."""
    values = [table.layout.published(row, column) for row in table.layout.rows]
    values += [row.cells.get(column.of) for row in table.layout.table.rows.values()] if column.of else []
    return max((len(str(v).partition(".")[2]) for v in values if isinstance(v, float)), default=0)


def _sheet(table: Comparison) -> Sheet:
    layout, columns = table.layout, table.layout.columns
    decimals = [_decimals(table, column) for column in columns]
    names = [("", "row" if name == "label" else name) for name in layout.labels]
    titles = [_column_title(column) for column in columns]
    kinds = [*HEADS, *[f"Δ {table.baseline}"] * bool(table.baseline)]
    right = int(any(line.protocol for _, lines in table.parts for line in lines))
    if layout.stacked:
        heads = [*names, ("", ""), *(("", name) for name in titles)]
    else:
        heads = [
            *names,
            *((name, kinds[i]) for name, c in zip(titles, columns, strict=True) for i in _shown(c, kinds)),
        ]
    heads += [("", "protocol (the paper's)")] * right
    parts = []
    for part_title, lines in table.parts:
        rows: list[list[Text]] = []
        styles = _styles(table, lines, decimals)
        for line, own in zip(lines, styles, strict=True):
            labels = [Text(label) for label in line.labels]
            cells = [
                (*texts(entry, column, places, style), _difference(entry, max(places, 2)))[: len(kinds)]
                for entry, column, places, style in zip(line.entries, columns, decimals, own, strict=True)
            ]
            if layout.stacked:
                rows += _stacked(line, labels, cells, kinds, right)
            else:
                shown = [
                    four[i]
                    for four, column in zip(cells, columns, strict=True)
                    for i in _shown(column, kinds)
                ]
                rows.append([*labels, *shown, *[Text(line.protocol or "-")] * right])
        parts.append((part_title, rows))
    return Sheet(title(table), heads, parts, len(names) + layout.stacked, _notes(table), right)


def _shown(column: LayoutColumn, kinds: Sequence[str]) -> list[int]:
    """Which of ``kinds`` a column has: one of a class is ours alone."""
    return [i for i in range(len(kinds)) if not column.classes_of or i not in (0, 2)]


def _stacked(
    line: Line, labels: list[Text], cells: Sequence[Sequence[Text]], kinds: Sequence[str], right: int
) -> list[list[Text]]:
    """Published, ours and the differences below each other."""
    unrun = all(e.cell is None and not e.word for e in line.entries)
    blank = [Text("")] * len(labels)
    protocol = [[Text(line.protocol or "-" if i == 1 else "")] * right for i in range(len(kinds))]
    return [
        [*(blank if i else labels), Text(kinds[i]), *(cell[i] for cell in cells), *protocol[i]]
        for i in ([0, 1] if unrun else range(len(kinds)))
    ]


def _styles(table: Comparison, lines: Sequence[Line], decimals: Sequence[int]) -> list[list[str]]:
    """BEST and SECOND among our complete cells of one part and column, as they are printed."""
    styles = [[""] * len(table.layout.columns) for _ in lines]
    for i, column in enumerate(table.layout.columns):
        known = table.layout.table.columns.get(column.classes_of or column.id)
        if known is None or column.factor or column.minus or column.increase or column.of or column.range:
            continue
        made = [line.entries[i].cell for line in lines]
        values = [None if one is None or one.states else round(one.mean, max(decimals[i], 2)) for one in made]
        best, second = ranked(values, 1 if known.higher_is_better else -1)
        for r in range(len(lines)):
            styles[r][i] = BEST if r in best else SECOND if r in second else ""
    return styles


def _column_title(column: LayoutColumn) -> str:
    unit = UNITS.get(column.unit)
    return f"{column.label} ({unit})" if unit and column.label != column.unit else column.label


def _notes(table: Comparison) -> list[Note]:
    marked = [Note(mark, words) for mark, words in (*table.our_notes, *table.published_notes)]
    return [*marked, *table.fill, *(Note("", words) for words in table.notes)]


def _csv(tables: Sequence[Comparison]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["paper", "table", "part", "row", "column", "row label", "column label", "unit", "published", "mean", "std",
         "n", "difference", "baseline", "apart", "low", "high", "p", "state", "notes", "commands", "protocol"]
    )  # fmt: skip
    for table in tables:
        for part, lines in table.parts:
            for line in lines:
                for column, entry in zip(table.layout.columns, line.entries, strict=True):
                    made = table.layout.table
                    head = [made.paper, made.id, part, line.row.id, column.id, line.row.label, column.label]
                    tail = ["; ".join(entry.commands) or "-", line.protocol or "-"]
                    writer.writerow([*head, column.unit, *_csv_values(entry, table), *tail])
    return buffer.getvalue()


def _csv_values(entry: Entry, table: Comparison) -> list[str]:
    made = entry.cell
    notes = "; ".join(_note_text(entry, table))
    printed = "nan" if entry.published is None else str(entry.published)
    apart = [table.baseline or "-", *["nan"] * 4]
    if entry.apart is not None:
        test = entry.apart.test
        apart[1] = repr(entry.apart.mean)
        apart[2:] = ["nan"] * 3 if test is None else [repr(test.low), repr(test.high), repr(test.p)]
    if made is None:
        state = "ok" if entry.word else entry.absent
        return [printed, entry.word or "nan", "nan", "0", "nan", *apart, state, notes]
    states = ", ".join(f"{state} ({count} of {made.total})" for state, count in made.states)
    numbers = [repr(made.mean), repr(made.std), str(made.n), repr(entry.difference)]
    return [printed, *numbers, *apart, states or "ok", notes]


def _note_text(entry: Entry, table: Comparison) -> list[str]:
    known = dict((*table.our_notes, *table.published_notes))
    return [known[mark] for mark in (*entry.marks, *entry.published_marks) if mark in known]


def _json(table: Comparison) -> dict[str, Any]:
    layout = table.layout
    columns = [
        {
            "id": c.id,
            "label": c.label,
            "unit": c.unit,
            "dataset": c.dataset,
            "split": c.split,
            "metric": c.metric,
        }
        for c in layout.columns
    ]
    parts = [
        {"title": part, "rows": [_json_row(table, line) for line in lines]} for part, lines in table.parts
    ]
    return {
        "name": layout.table.name,
        "caption": layout.table.caption,
        "baseline": table.baseline or None,
        "columns": columns,
        "parts": parts,
        "notes": list(table.notes),
    }


def _json_row(table: Comparison, line: Line) -> dict[str, Any]:
    cells = []
    for column, entry in zip(table.layout.columns, line.entries, strict=True):
        own = {"state": entry.absent} if entry.cell is None and not entry.word else {}
        cells.append(
            {
                "column": column.id,
                "published": entry.published,
                "aside": entry.aside,
                "setting": entry.word or None,
                "ours": None if entry.cell is None else cell(entry.cell),
                "difference": entry.difference,
                "apart": None if entry.apart is None else cell(entry.apart),
                "notes": _note_text(entry, table),
                "commands": list(entry.commands),
                **own,
            }
        )
    labels = dict(zip(table.layout.labels, line.labels, strict=True))
    return {"row": line.row.id, "labels": labels, "protocol": line.protocol or None, "cells": cells}
