"""Scores over swept settings on a page of runs: a chart for each setting, a heat map for each pair."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hardpix.report.charts import axis_kind
from hardpix.report.compare import ABSENT, text
from hardpix.report.labels import titles
from hardpix.report.page_charts import button, mean_std, shown, title, told
from hardpix.report.page_runs import Part, Row
from hardpix.report.render import is_fraction
from hardpix.report.svg import Axis, Chart, attribute, even, linear, logarithmic, number


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
        tip = f"{line.label}: {told(line.points[0][1].values(metric), metric)}"
        chart.mark(10**middle if chart.x.log else middle, mean, i, tip, group, hidden=True)
        return
    places = [float(named.index(v)) if named else float(v) for v, _ in line.points]
    chart.line(places, [mean for mean, _ in pairs], i, group)
    for x, (mean, std), (value, row) in zip(places, pairs, line.points, strict=True):
        if std:
            chart.whisker((x, x), (mean - std, mean + std), i, group)
        chart.mark(x, mean, i, f"{line.label}, {number(value)}: {told(row.values(metric), metric)}", group)


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
            tip, style = attribute(told(cells[y, x], metric)), f"--v:{0.08 + 0.92 * shade:.2f}"
            lines.append(
                f'<td class="cell{strong}" style="{style}" title="{tip}">{shown(means[y, x], metric)}</td>'
            )
        lines.append("</tr>")
    about = f"{attribute(title(metric))} over {attribute(one)} (down) and {attribute(other)} (across), means over seeds"
    return "".join(lines) + f"</tbody></table></div><figcaption>{about}</figcaption></figure>"
