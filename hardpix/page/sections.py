"""Sections of a page of runs: tables, confusion matrices, swept settings."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hardpix.draw.charts import axis_kind
from hardpix.page.content import Part, Row, confusion
from hardpix.page.svg import (
    Axis,
    Chart,
    attribute,
    button,
    even,
    linear,
    logarithmic,
    mean_std,
    mean_std_text,
    number,
    shown,
    title,
)
from hardpix.scores import is_fraction, per_class_rows
from hardpix.tables.columns import titles
from hardpix.tables.compare import ABSENT, Run, text
from hardpix.tables.render import render
from hardpix.types import DataError, HardpixError

MAX_CLASSES = 30  # of a confusion matrix; the rarer ones stand together
SHOWN = 12  # values in a line of the summary


def summary(part: Part) -> str:
    """What was compared, as a list of facts."""
    records = [run.record for run in part.runs]
    kinds = ("done", "running", "interrupted", "failed", "pruned", "fast_dev_run")
    status = {s: sum(r.outcome == s for r in records) for s in kinds}
    frames = {key: value for r in records for key, value in sorted(r.frames.items())}
    code = sorted({_version(r.code) for r in records})
    facts = {
        "data set": part.dataset or "not known: the runs failed before it was read",
        "frames": ", ".join(f"{key.rpartition('/')[2]} {value:,}" for key, value in frames.items()),
        "runs": ", ".join(f"{count} {name}" for name, count in status.items() if count),
        "rows": f"{len(part.rows)}, told apart by {', '.join(part.factors)}" if part.rows else "",
        "seeds": _values(records, "seed"),
        "optimiser steps": _values(records, "trainer.max_steps"),
        "epochs": _values(records, "trainer.max_epochs"),
        "batch size": _values(records, "data.batch_size"),
        "differing settings": ", ".join(part.varied[:SHOWN])
        + (f" and {len(part.varied) - SHOWN} more" if len(part.varied) > SHOWN else ""),
        "code": "; ".join(code),
        "devices": ", ".join(sorted({r.host.get("device", "") for r in records} - {""})),
    }
    rows = [f"<dt>{name}</dt><dd>{attribute(value)}</dd>" for name, value in facts.items() if value]
    return f'<dl class="facts">{"".join(rows)}</dl>'


def _version(code: dict[str, str]) -> str:
    dirty = (
        ", with uncommitted changes" if code.get("dirty", "").lower() in ("true", "1", "yes", "dirty") else ""
    )
    own = f"hardpix {code['hardpix']}" if "hardpix" in code else "hardpix"
    commit = f" at {code['commit'][:12]}" if code.get("commit") else ""
    torch = f", torch {code['torch']}" if "torch" in code else ""
    return f"{own}{commit}{dirty}{torch}"


def _values(records: Sequence[Any], key: str) -> str:
    """The values of a factor, each once; empty where nobody has it."""
    found = {r.seed if key == "seed" else r.factors.get(key, ABSENT) for r in records} - {ABSENT, None}
    return ", ".join(text(value) for value in sorted(found, key=lambda v: (str(type(v)), v)))


def scores(part: Part) -> str:
    """The table over seeds, or why there is none."""
    if part.table is None:
        return f'<p class="lacking">There is no common table of these runs. {attribute(part.problem)}</p>'
    return f'<div class="sortable">{render(part.table, "html")}</div>'


def without_score(part: Part) -> str:
    """The runs that are not done, told before anything else; empty where all are."""
    left = [run for run in part.runs if run.record.status != "done"]
    lines = [
        f"<li><strong>{run.record.outcome}</strong> {attribute(run.directory)}"
        f"{f': {attribute(run.record.reason)}' if run.record.reason else ''}</li>"
        for run in left
    ]
    return f'<ul class="lacking">{"".join(lines)}</ul>' if lines else ""


def run_list(runs: Sequence[Run]) -> str:
    """Every run, with the overrides that it is named by."""
    heads = ("run", "status", "seed", "seconds", "directory")
    lines = ['<div class="sortable"><div class="scroll" tabindex="0"><table><thead><tr>']
    lines += [f'<th scope="col">{head}</th>' for head in heads] + ["</tr></thead><tbody>"]
    for directory, record in runs:
        seconds = record.metrics.get("run/seconds")
        lines.append(
            f'<tr><th scope="row">{attribute(record.name or record.run_id)}</th>'
            f'<td class="{record.outcome}">{record.outcome}</td><td class="number">{record.seed}</td>'
            f'<td class="number">{"" if seconds is None else f"{seconds:.1f}"}</td><td>{attribute(directory)}</td></tr>'
        )
    return "".join([*lines, "</tbody></table></div></div>"])


def matrices(part: Part, notes: list[str]) -> dict[int, tuple[list[str], np.ndarray]]:
    """By row: class names and the confusion matrix, summed over the finished seeds."""
    found: dict[int, tuple[list[str], np.ndarray]] = {}
    for i, row in enumerate(part.rows):
        for run in row.done:
            try:
                own = confusion(run)
                names = [] if own is None else class_names(run, len(own))
            except HardpixError as error:
                notes.append(str(error))
                continue
            if own is None:
                notes.append(f"{run.directory} has left no confusion.npy; `hardpix evaluate` writes one.")
            elif i not in found:
                found[i] = (names, own)
            elif found[i][0] == names:
                found[i] = (names, found[i][1] + own)
            else:
                notes.append(
                    f"{run.directory} has other classes than the other seeds of its row and is left out."
                )
    return found


def class_names(run: Run, count: int) -> list[str]:
    """From ``classes.json``; numbers where it is lacking."""
    path = Path(run.directory) / "classes.json"
    if not path.is_file():
        return [str(i) for i in range(count)]
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}).") from None
    if not isinstance(names, list) or len(names) != count:
        raise DataError(f"{path} does not name the {count} classes of confusion.npy.")
    return [str(name) for name in names]


def per_class(part: Part, notes: list[str]) -> str:
    """IoU of each class: mean and deviation over the seeds of each row; the best mean of a class stands out."""
    columns: list[tuple[Row, dict[str, list[float]]]] = []
    pixels: dict[str, int] = {}
    for row in part.rows:
        scores: dict[str, list[float]] = {}
        for run in row.done:
            try:
                own = confusion(run)
                rows = [] if own is None else per_class_rows(own, class_names(run, len(own)))
            except HardpixError:
                continue  # told with the confusion matrices
            for one in rows:
                scores.setdefault(one["class"], []).append(one["iou"])
                pixels.setdefault(one["class"], one["pixels"])
        if scores:
            columns.append((row, scores))
    if not columns:
        return ""
    heads = "".join(f'<th scope="col" class="number">{attribute(row.label)}</th>' for row, _ in columns)
    lines = ['<div class="sortable"><div class="scroll" tabindex="0"><table><thead><tr>',
             f'<th scope="col">class</th><th scope="col" class="number">pixels</th>{heads}',
             "</tr></thead><tbody>"]  # fmt: skip
    for name, count in pixels.items():
        lines.append(f'<tr><th scope="row">{attribute(name)}</th><td class="number">{count:,}</td>')
        lines += [*_class_cells([scores.get(name, []) for _, scores in columns]), "</tr>"]
    lines.append("</tbody></table></div></div>")
    lines.append('<p class="note">IoU in percent; absent: neither in the truth nor predicted.</p>')
    return "".join(lines)


def _class_cells(columns: Sequence[Sequence[float]]) -> list[str]:
    values = [[v for v in column if not math.isnan(v)] for column in columns]
    means = [statistics.fmean(v) if v else math.nan for v in values]
    known = {round(100 * m, 2) for m in means if not math.isnan(m)}
    cells = []
    for own, mean in zip(values, means, strict=True):
        if not own:
            cells.append('<td class="number">absent</td>')
            continue
        best = " best" if len(known) > 1 and round(100 * mean, 2) == max(known) else ""
        spread = f" ± {100 * statistics.stdev(own):.2f}" if len(own) > 1 else ""
        cells.append(f'<td class="number{best}">{100 * mean:.2f}{spread}</td>')
    return cells


def confusion_matrices(part: Part, found: dict[int, tuple[list[str], np.ndarray]]) -> str:
    """One table for each row of the page, the first one open; the script shows the difference of two."""
    lines = []
    for i, (names, matrix) in found.items():
        opened = " open" if i == min(found) else ""
        row = part.rows[i]
        lines.append(
            f'<details class="confusion" data-label="{attribute(row.label)}"{opened}><summary>{attribute(row.label)} '
            f"(n={len(row.done)})</summary>{_matrix(names, matrix)}</details>"
        )
    about = "Rows are the truth, columns the prediction; a cell is the share of its row in percent, summed over seeds."
    return f'<p class="note">{about}</p><div class="matrices">{"".join(lines)}</div>' if lines else ""


def _matrix(names: list[str], matrix: np.ndarray) -> str:
    names, matrix = _frequent(names, matrix)
    total = matrix.sum(1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    heads = "".join(f'<th scope="col"><span>{attribute(name)}</span></th>' for name in names)
    lines = [
        f'<div class="scroll" tabindex="0"><table class="matrix"><thead><tr><td></td>{heads}</tr></thead><tbody>'
    ]
    for i, name in enumerate(names):
        lines.append(f'<tr><th scope="row">{attribute(name)}</th>')
        for j in range(len(names)):
            percent = 100 * share[i, j]
            shown = f"{percent:.0f}" if percent >= 0.5 else ""
            strong = " strong" if percent > 55 else ""
            lines.append(
                f'<td class="cell{strong}" data-n="{matrix[i, j]}" style="--v:{share[i, j]:.2f}">{shown}</td>'
            )
        lines.append("</tr>")
    return "".join(lines) + "</tbody></table></div>"


def _frequent(names: list[str], matrix: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Of many classes the most frequent ones, the others as one."""
    if len(names) <= MAX_CLASSES:
        return names, matrix
    kept = sorted(np.argsort(-matrix.sum(1), kind="stable")[: MAX_CLASSES - 1].tolist())
    place = np.full(len(names), len(kept))
    place[kept] = np.arange(len(kept))
    folded = np.zeros((len(kept) + 1,) * 2, np.int64)
    np.add.at(folded, (place[:, None], place[None, :]), matrix)
    return [*(names[k] for k in kept), f"{len(names) - len(kept)} others"], folded


# Scores over swept settings on a page of runs: a chart for each setting, a heat map for each pair.


@dataclass(frozen=True)
class Line:
    """Mean and deviation of one row at each value of a swept setting; ``level``: a row that does not have it."""

    label: str
    points: tuple[tuple[Any, Row], ...]
    level: bool = False


def swept(part: Part) -> dict[str, list[Line]]:
    """Per setting with at least two numbers in otherwise equal rows: its lines, and as levels the rows without it."""
    found = {}
    for factor in part.varied:
        lines = _lines(part, factor)
        if lines:
            absent = [row for row in part.rows if factor not in row.factors and row.values(part.metric)]
            found[factor] = [*lines, *(Line(row.label, ((None, row),), level=True) for row in absent)]
    return found


def _lines(part: Part, factor: str) -> list[Line]:
    buckets: dict[tuple[str, ...], list[Row]] = {}
    others = [key for key in part.varied if key != factor]
    for row in part.rows:
        if _is_number(row.factors.get(factor)) and row.values(part.metric):
            context = tuple(text(row.factors.get(key, ABSENT)) for key in others)
            buckets.setdefault(context, []).append(row)
    kept = {context: rows for context, rows in buckets.items() if len({r.factors[factor] for r in rows}) > 1}
    names = titles(others)
    telling = [i for i in range(len(others)) if len({context[i] for context in kept}) > 1]
    lines = []
    for context, rows in sorted(kept.items()):
        told_apart = [f"{names[i]}={_short(others[i], context[i])}" for i in telling]
        points = tuple(sorted(((row.factors[factor], row) for row in rows), key=lambda point: point[0]))
        lines.append(Line(", ".join(told_apart) or _owner(factor, rows[0]), points))
    return lines


def _short(key: str, value: str) -> str:
    return value.rpartition(".")[2] if key.endswith("_target_") else value


def _owner(factor: str, row: Row) -> str:
    """The class that a setting belongs to, else the setting's own name."""
    target = row.factors.get(f"{factor.partition('.')[0]}._target_")
    return titles([factor])[0] if target is None else _short("_target_", str(target))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def sensitivity(part: Part) -> str:
    """A chart for each swept setting, and a heat map for each pair of them; empty where nothing is swept."""
    found = swept(part)
    charts = [_sensitivity_chart(part, factor, lines) for factor, lines in found.items()]
    factors = list(found)
    maps = [_heat_map(part, a, b) for i, a in enumerate(factors) for b in factors[i + 1 :]]
    return f'<div class="charts">{"".join([*charts, *maps])}</div>' if charts else ""


def _sensitivity_chart(part: Part, factor: str, lines: Sequence[Line]) -> str:
    metric, scale = part.metric, 100.0 if is_fraction(part.metric) else 1.0
    values = sorted({value for line in lines if not line.level for value, _ in line.points})
    kind = axis_kind([str(value) for value in values])
    axis = _x_axis(kind, values)
    every = [mean_std([scale * v for v in row.values(metric)]) for line in lines for _, row in line.points]
    ends = [edge for mean, std in every for edge in (mean - std, mean + std)]
    chart = Chart(f"{metric} over {factor}", axis, linear(ends), factor, title(metric))
    entries = []
    for place, line in enumerate(lines):
        i = part.rows.index(line.points[0][1])  # looks as in the other charts
        _draw(chart, line, i, f'data-row="{place}"', metric, values if kind == "even" else ())
        entries.append(button("row", place, i, line.label))
    level = "; level lines: rows without this setting" if any(line.level for line in lines) else ""
    about = f"{attribute(title(metric))} over {attribute(factor)}, mean ± std over seeds{level}"
    return (
        f'<figure class="own"><figcaption>{about}</figcaption>{chart.svg()}'
        f'<div class="legend" role="group" aria-label="lines that are shown">{"".join(entries)}</div></figure>'
    )


def _draw(chart: Chart, line: Line, i: int, group: str, metric: str, named: Sequence[float]) -> None:
    """``named``: values that stand at 0, 1, .. of an axis with names."""
    scale = 100.0 if is_fraction(metric) else 1.0
    pairs = [mean_std([scale * v for v in row.values(metric)]) for _, row in line.points]
    if line.level:
        (mean, std), middle = pairs[0], (chart.x.low + chart.x.high) / 2
        chart.strip(mean - std, mean + std, i, group)
        chart.level(mean, i, group)
        tip = f"{line.label}: {mean_std_text(line.points[0][1].values(metric), metric)}"
        chart.mark(10**middle if chart.x.log else middle, mean, i, tip, group, hidden=True)
        return
    places = [float(named.index(v)) if named else float(v) for v, _ in line.points]
    chart.line(places, [mean for mean, _ in pairs], i, group)
    for x, (mean, std), (value, row) in zip(places, pairs, line.points, strict=True):
        if std:
            chart.whisker((x, x), (mean - std, mean + std), i, group)
        chart.mark(
            x, mean, i, f"{line.label}, {number(value)}: {mean_std_text(row.values(metric), metric)}", group
        )


def _x_axis(kind: str, values: Sequence[float]) -> Axis:
    if kind == "even":
        return even(len(values), [number(v) for v in values])
    if kind == "log":
        return logarithmic(values, values)
    axis = linear(values)
    return axis._replace(ticks=tuple((v, number(v)) for v in values)) if len(values) <= 7 else axis


def _heat_map(part: Part, one: str, other: str) -> str:
    """Means over two settings in otherwise equal rows, as a table; empty unless both have two values there."""
    others = [key for key in part.varied if key not in (one, other)]
    buckets: dict[tuple[str, ...], list[Row]] = {}
    for row in part.rows:
        if (
            _is_number(row.factors.get(one))
            and _is_number(row.factors.get(other))
            and row.values(part.metric)
        ):
            context = tuple(text(row.factors.get(key, ABSENT)) for key in others)
            buckets.setdefault(context, []).append(row)
    made = []
    for rows in buckets.values():
        ys, xs = (sorted({row.factors[factor] for row in rows}) for factor in (one, other))
        if len(ys) > 1 and len(xs) > 1:
            made.append(_heat_table(part.metric, one, other, rows, ys, xs))
    return "".join(made)


def _heat_table(
    metric: str, one: str, other: str, rows: Sequence[Row], ys: Sequence[float], xs: Sequence[float]
) -> str:
    cells = {(row.factors[one], row.factors[other]): row.values(metric) for row in rows}
    means = {place: statistics.fmean(values) for place, values in cells.items()}
    low, high = min(means.values()), max(means.values())
    lines = ['<figure><div class="scroll" tabindex="0"><table class="matrix"><thead><tr>']
    lines.append(f'<th scope="col">{attribute(one)} \\ {attribute(other)}</th>')
    lines += [f'<th scope="col">{number(x)}</th>' for x in xs] + ["</tr></thead><tbody>"]
    for y in ys:
        lines.append(f'<tr><th scope="row">{number(y)}</th>')
        for x in xs:
            if (y, x) not in means:
                lines.append("<td></td>")
                continue
            shade = (means[y, x] - low) / (high - low) if high > low else 0.5
            strong = " strong" if shade > 0.55 else ""
            tip, style = attribute(mean_std_text(cells[y, x], metric)), f"--v:{0.08 + 0.92 * shade:.2f}"
            lines.append(
                f'<td class="cell{strong}" style="{style}" title="{tip}">{shown(means[y, x], metric)}</td>'
            )
        lines.append("</tr>")
    about = f"{attribute(title(metric))} over {attribute(one)} (down) and {attribute(other)} (across), means over seeds"
    return "".join(lines) + f"</tbody></table></div><figcaption>{about}</figcaption></figure>"
