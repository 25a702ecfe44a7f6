"""Published tables beside ours as Markdown, LaTeX (booktabs), CSV (one line a cell) and HTML."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hardpix.report import published
from hardpix.report.layout import Column
from hardpix.report.render import LATEX
from hardpix.report.reproduction import CITED, NOT_RUN, Comparison, Entry

HEADS = ("published", "hardpix", "Δ")
UNITS = {"percent": "%", "MB": "MB", "seconds": "s"}  # others say nothing that the label does not


class Text(NamedTuple):
    """The content of one place: words, raised marks, and a style of the page."""

    words: str
    marks: tuple[str, ...] = ()
    style: str = ""


class Grid(NamedTuple):
    """A table of texts: per column a group and a head, per part a title and rows. ``left`` columns hold words."""

    heads: list[tuple[str, str]]
    parts: list[tuple[str, list[list[Text]]]]
    left: int


def render(tables: Sequence[Comparison], form: str) -> str:
    """``form``: ``md``, ``latex``, ``csv`` (unrounded, in the printed unit) or ``html`` (fragments)."""
    if form == "csv":
        return _csv(tables)
    forms: dict[str, Callable[[Comparison], str]] = {"md": _markdown, "latex": _latex, "html": _html}
    return "\n".join(forms[form](one) for one in tables)


def title(table: Comparison) -> str:
    made = table.layout.table
    return f"{made.name}: {made.caption}"


def texts(entry: Entry, column: Column, decimals: int) -> tuple[Text, Text, Text]:
    """Published value, ours, difference."""
    places = max(decimals, 2)
    printed = _printed(entry.published, decimals)
    if entry.aside is not None:
        printed += f" ({_printed(entry.aside, decimals)})"
    if column.factor:
        same = "same" if entry.word == printed else "differs"
        ours = Text(entry.word, entry.marks) if entry.word else Text(NOT_RUN, style="unrun")
        return (
            Text(printed, entry.published_marks),
            ours,
            Text(same if entry.word and printed != "-" else "-"),
        )
    if entry.cell is None:
        ours = Text("-" if entry.absent == CITED else NOT_RUN, style="unrun")
        return Text(printed, entry.published_marks), ours, Text("-")
    words, lacking = _ours(entry, places)
    difference = "-" if math.isnan(entry.difference) else format(entry.difference, f"+.{places}f")
    return (
        Text(printed, entry.published_marks),
        Text(words, entry.marks, "lacking" if lacking else ""),
        Text(difference),
    )


def _printed(value: published.Value, decimals: int) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else format(value, f".{decimals}f")


def _ours(entry: Entry, places: int) -> tuple[str, bool]:
    """``41.20 ± 0.30 (n=2), failed (1 of 3)``, and whether anything is lacking."""
    cell = entry.cell
    assert cell is not None
    value = "" if math.isnan(cell.mean) else format(cell.mean, f".{places}f")
    if value and not math.isnan(cell.std):
        value += f" ± {cell.std:.{places}f}"
    if value:
        value += f" (n={cell.n})"
    states = [s if count == cell.total == 1 else f"{s} ({count} of {cell.total})" for s, count in cell.states]
    return ", ".join(filter(None, [value, *states])) or "nan", bool(states) or not value


def _decimals(table: Comparison, column: Column) -> int:
    """As many as the paper prints in the column; trailing zeros are lost in the data."""
    values = [table.layout.published(row, column) for row in table.layout.rows]
    values += [row.cells.get(column.of) for row in table.layout.table.rows.values()] if column.of else []
    return max((len(str(v).partition(".")[2]) for v in values if isinstance(v, float)), default=0)


def _grid(table: Comparison) -> Grid:
    columns = table.layout.columns
    decimals = [_decimals(table, column) for column in columns]
    names = [("", "row" if name == "label" else name) for name in table.layout.labels]
    titles = [_column_title(column) for column in columns]
    if table.layout.stacked:
        heads = [*names, ("", ""), *(("", name) for name in titles)]
    else:
        heads = [*names, *((name, head) for name in titles for head in HEADS)]
    parts = []
    for part_title, lines in table.parts:
        rows: list[list[Text]] = []
        for line in lines:
            labels = [Text(label) for label in line.labels]
            cells = [texts(*three) for three in zip(line.entries, columns, decimals, strict=True)]
            if table.layout.stacked:
                shown = [0, 1] if all(e.cell is None and not e.word for e in line.entries) else [0, 1, 2]
                blank = [Text("")] * len(labels)
                rows += [
                    [*(blank if i else labels), Text(HEADS[i]), *(cell[i] for cell in cells)] for i in shown
                ]
            else:
                rows.append([*labels, *(text for cell in cells for text in cell)])
        parts.append((part_title, rows))
    return Grid(heads, parts, len(names) + table.layout.stacked)


def _column_title(column: Column) -> str:
    unit = UNITS.get(column.unit)
    return f"{column.label} ({unit})" if unit and column.label != column.unit else column.label


def _markdown(table: Comparison) -> str:
    grid = _grid(table)
    heads = [" ".join(filter(None, head)) for head in grid.heads]
    blocks = [f"### {title(table)}"]
    for part, rows in grid.parts:
        lines = [heads, *([text.words + _bracketed(text.marks) for text in row] for row in rows)]
        escaped = [[cell.replace("\\", "\\\\").replace("|", "\\|") for cell in line] for line in lines]
        blocks += [f"**{part}**"] * bool(part) + [_padded(escaped, grid.left)]
    notes = [f"- {mark}: {text}" for mark, text in (*table.our_notes, *table.published_notes)]
    blocks += ["\n".join(notes)] * bool(notes) + [f"Note: {note}" for note in table.notes]
    return "\n\n".join(blocks) + "\n"


def _bracketed(marks: Sequence[str]) -> str:
    return f" [{','.join(marks)}]" if marks else ""


def _padded(lines: list[list[str]], left: int) -> str:
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        places = enumerate(zip(cells, widths, strict=True))
        return "| " + " | ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in places) + " |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(map(line, [lines[0], rule, *lines[1:]]))


def _groups(grid: Grid) -> list[tuple[str, int]]:
    """The upper line of heads: titles and how many columns each spans; empty where there is none."""
    groups: list[tuple[str, int]] = []
    for group, _ in grid.heads[grid.left :]:
        if groups and groups[-1][0] == group and groups[-1][1] % len(HEADS):
            groups[-1] = (group, groups[-1][1] + 1)
        else:
            groups.append((group, 1))
    return groups if any(group for group, _ in groups) else []


def _latex(table: Comparison) -> str:
    grid = _grid(table)
    width = len(grid.heads)

    def text(one: Text) -> str:
        return _tex(one.words) + (f"$^{{{','.join(one.marks)}}}$" if one.marks else "")

    lines = [f"% {title(table)}", rf"\begin{{tabular}}{{{'l' * grid.left}{'r' * (width - grid.left)}}}"]
    lines.append(r"\toprule")
    if groups := _groups(grid):
        spans = [rf"\multicolumn{{{n}}}{{c}}{{{_tex(group)}}}" for group, n in groups]
        lines.append(" & ".join([*[""] * grid.left, *spans]) + r" \\")
    lines.append(" & ".join(_tex(head) for _, head in grid.heads) + r" \\")
    for part, rows in grid.parts:
        lines.append(r"\midrule")
        lines += [rf"\multicolumn{{{width}}}{{l}}{{\textit{{{_tex(part)}}}}} \\"] * bool(part)
        lines += [" & ".join(map(text, row)) + r" \\" for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = [f"$^{{{mark}}}$ {_tex(words)}" for mark, words in (*table.our_notes, *table.published_notes)]
    notes += [_tex(note) for note in table.notes]
    if notes:  # not comments: they belong below the table
        lines += [r"\par\raggedright\footnotesize", *(f"{note}\\par" for note in notes)]
    return "\n".join(lines) + "\n"


def _tex(words: str) -> str:
    return "".join(LATEX.get(character, character) for character in words)


def _csv(tables: Sequence[Comparison]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["paper", "table", "part", "row", "column", "row label", "column label", "unit", "published", "mean", "std",
         "n", "difference", "state", "notes"]
    )  # fmt: skip
    for table in tables:
        for part, lines in table.parts:
            for line in lines:
                for column, entry in zip(table.layout.columns, line.entries, strict=True):
                    made = table.layout.table
                    head = [made.paper, made.id, part, line.row.id, column.id, line.row.label, column.label]
                    writer.writerow([*head, column.unit, *_csv_values(entry, table)])
    return buffer.getvalue()


def _csv_values(entry: Entry, table: Comparison) -> list[str]:
    cell = entry.cell
    known = dict((*table.our_notes, *table.published_notes))
    notes = "; ".join(known[mark] for mark in (*entry.marks, *entry.published_marks))
    printed = "nan" if entry.published is None else str(entry.published)
    if cell is None:
        return [printed, entry.word or "nan", "nan", "0", "nan", "ok" if entry.word else entry.absent, notes]
    states = ", ".join(f"{state} ({count} of {cell.total})" for state, count in cell.states)
    numbers = [repr(cell.mean), repr(cell.std), str(cell.n), repr(entry.difference)]
    return [printed, *numbers, states or "ok", notes]


def _html(table: Comparison) -> str:
    grid = _grid(table)
    width = len(grid.heads)
    lines = [f"<h2>{html.escape(title(table))}</h2>", "<div class='scroll'><table>", "<thead>"]
    if groups := _groups(grid):
        spans = [f"<th class=group colspan={n}>{html.escape(group)}</th>" for group, n in groups]
        lines.append(f"<tr><th colspan={grid.left}></th>{''.join(spans)}</tr>")
    heads = [
        f"<th{'' if i < grid.left else ' class=number'}>{html.escape(head)}</th>"
        for i, (_, head) in enumerate(grid.heads)
    ]
    lines += [f"<tr>{''.join(heads)}</tr>", "</thead>", "<tbody>"]
    for part, rows in grid.parts:
        lines += [f"<tr><th class=part colspan={width}>{html.escape(part)}</th></tr>"] * bool(part)
        lines += [_html_row(row, grid.left) for row in rows]
    lines.append("</tbody></table></div>")
    for mark, words in (*table.our_notes, *table.published_notes):
        lines.append(f"<p class=note><sup>{mark}</sup> {html.escape(words)}</p>")
    lines += [f"<p class=note>{html.escape(note)}</p>" for note in table.notes]
    return "\n".join(lines) + "\n"


def _html_row(row: Sequence[Text], left: int) -> str:
    cells = []
    for i, text in enumerate(row):
        words = html.escape(text.words) + (f"<sup>{','.join(text.marks)}</sup>" if text.marks else "")
        if i < left:
            cells.append(f"<th scope=row>{words}</th>")
        else:
            cells.append(f"<td class='{' '.join(filter(None, ['number', text.style]))}'>{words}</td>")
    return f"<tr>{''.join(cells)}</tr>"
