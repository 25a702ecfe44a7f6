"""Tables as Markdown, LaTeX (booktabs), CSV and HTML. The only place that turns fractions into percent."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Callable, Sequence

from hardpix.report.table import Cell, Column, Table

# Words of a metric's name that say it is a fraction in [0, 1].
FRACTIONS = frozenset({"miou", "iou", "fgiou", "acc", "macc", "aacc", "accuracy", "dice"})
# Words that say less is better; fractions are better when more.
COSTS = frozenset({"loss", "seconds", "time", "ms", "memory", "mib", "gib", "bytes", "params", "flops"})

TIMES = "\u00d7"

LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    TIMES: r"$\times$",
    "Δ": r"$\Delta$",
}


def render(table: Table, form: str) -> str:
    """``form``: ``md``, ``latex``, ``csv`` (unrounded, fractions as they are) or ``html`` (a fragment)."""
    forms: dict[str, Callable[[Table], str]] = {"md": _markdown, "latex": _latex, "csv": _csv, "html": _html}
    return forms[form](table)


def cell_text(cell: Cell, column: Column) -> str:
    """``41.20 ± 0.30``; then n, where a seed gave no value, and why: ``41.20 (n=1), failed (2 of 3)``."""
    value = _number(cell, column)
    if value and cell.n < cell.total:
        value += f" (n={cell.n})"
    states = [s if count == cell.total == 1 else f"{s} ({count} of {cell.total})" for s, count in cell.states]
    return ", ".join(filter(None, [value, *states])) or "nan"


def column_title(column: Column, table: Table) -> str:
    if column.title:
        return column.title
    if column.kind == "ratio":
        return f"{column.metric} {TIMES} vs {table.reference}"
    unit = " (%)" if is_fraction(column.metric) else ""
    return (
        f"{column.metric}{unit}"
        if column.kind == "value"
        else f"Δ {column.metric}{unit} vs {table.reference}"
    )


def is_fraction(metric: str) -> bool:
    return bool(FRACTIONS & _words(metric))


def best_rows(table: Table, index: int) -> set[int]:
    """Rows with the best complete mean of one column; none where the metric's direction is not known."""
    column = table.columns[index]
    if is_fraction(column.metric):
        sign = 1
    elif COSTS & _words(column.metric):
        sign = -1
    else:
        return set()
    means = {
        i: sign * row.cells[index].mean for i, row in enumerate(table.rows) if not row.cells[index].states
    }
    means = {i: mean for i, mean in means.items() if not math.isnan(mean)}
    best = max(means.values(), default=0.0)
    return {i for i, mean in means.items() if mean == best} if len(set(means.values())) > 1 else set()


def _number(cell: Cell, column: Column) -> str:
    if math.isnan(cell.mean):
        return ""
    if column.kind == "ratio":
        itself = cell.mean == 1 and cell.std == 0  # the reference row beside itself
        deviation = "" if math.isnan(cell.std) or itself else f" ± {cell.std:.2f}"
        return f"{cell.mean:.2f}{deviation}{TIMES}"
    scale, form = (100.0, ".2f") if is_fraction(column.metric) else (1.0, ".4g")
    sign = "+" if column.kind == "difference" else ""
    value = _plain(cell.mean * scale, sign + form)
    return value if math.isnan(cell.std) else f"{value} ± {_plain(cell.std * scale, form)}"


def _plain(value: float, form: str) -> str:
    """Large numbers without an exponent: 12345 rather than 1.234e+04."""
    if form.endswith(".4g") and 1e4 <= abs(value) < 1e15:
        form = form.replace(".4g", ".0f")
    return format(value, form)


def _words(metric: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", metric.lower()))


def _grid(table: Table) -> tuple[list[str], list[list[str]]]:
    header = [*table.factors, *(column_title(column, table) for column in table.columns), "n"]
    body = [
        [*row.labels, *(cell_text(*pair) for pair in zip(row.cells, table.columns, strict=True)), str(row.n)]
        for row in table.rows
    ]
    return header, body


def _markdown(table: Table) -> str:
    header, body = _grid(table)
    lines = [[_escaped(cell) for cell in line] for line in [header, *body]]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    left = len(table.factors)

    def line(cells: Sequence[str]) -> str:
        padded = [
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    text = "\n".join(map(line, [lines[0], rule, *lines[1:]])) + "\n"
    return text + "".join(f"\nNote: {note}\n" for note in table.notes)


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _latex(table: Table) -> str:
    header, body = _grid(table)

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(c, c) for c in cell) for cell in cells) + r" \\"

    alignment = "l" * len(table.factors) + "r" * (len(table.columns) + 1)
    lines = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", line(header), r"\midrule"]
    lines += [*map(line, body), r"\bottomrule", r"\end{tabular}"]
    lines += [f"% {note}" for note in table.notes]
    return "\n".join(lines) + "\n"


def _csv(table: Table) -> str:
    """Four columns for each metric; ``state`` is ``ok`` or says what is lacking."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [
        column.metric + {"value": "", "ratio": ":x", "difference": ":delta"}[column.kind]
        for column in table.columns
    ]
    parts = ("mean", "std", "n", "state")
    writer.writerow([*table.factors, *(f"{name} {part}" for name in names for part in parts)])
    for row in table.rows:
        line: list[str] = list(row.labels)
        for cell in row.cells:
            states = ", ".join(f"{state} ({count} of {cell.total})" for state, count in cell.states)
            line += [repr(cell.mean), repr(cell.std), str(cell.n), states or "ok"]
        writer.writerow(line)
    return buffer.getvalue()


def _html(table: Table) -> str:
    header, body = _grid(table)
    left = len(table.factors)
    best = [best_rows(table, i) for i in range(len(table.columns))]
    lines = ["<div class='scroll'><table>", "<thead><tr>"]
    lines += [
        f"<th{'' if i < left else ' class=number'}>{html.escape(cell)}</th>" for i, cell in enumerate(header)
    ]
    lines += ["</tr></thead>", "<tbody>"]
    for r, (row, cells) in enumerate(zip(table.rows, body, strict=True)):
        lines.append("<tr>" + "".join(f"<th scope=row>{html.escape(cell)}</th>" for cell in cells[:left]))
        for i, cell in enumerate(row.cells):
            kind = " lacking" if cell.states else " best" if r in best[i] else ""
            lines.append(f"<td class='number{kind}'>{html.escape(cells[left + i])}</td>")
        lines.append(f"<td class=number>{row.n}</td></tr>")
    lines.append("</tbody></table></div>")
    lines += [f"<p class=note>{html.escape(note)}</p>" for note in table.notes]
    return "\n".join(lines) + "\n"
