"""The charts of a page of runs: learning curves, cost against quality, and what all of its charts share."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from hardpix.report.page_runs import COSTS, Curve, Part, Row, curves, thinned
from hardpix.report.render import is_fraction
from hardpix.report.svg import Chart, attribute, key, linear, number
from hardpix.types import HardpixError


def shown(value: float, metric: str) -> str:
    return f"{100 * value:.2f}" if is_fraction(metric) else number(value)


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """The sample deviation is 0 below two values, where nothing is drawn of it."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def told(values: Sequence[float], metric: str) -> str:
    """``41.20 ± 0.30 (n=2)``."""
    mean, std = mean_std(values)
    spread = f" ± {shown(std, metric)}" if len(values) > 1 else ""
    return f"{shown(mean, metric)}{spread} (n={len(values)})"


def title(metric: str) -> str:
    return f"{metric} (%)" if is_fraction(metric) else metric


def button(kind: str, of: object, i: int, label: str, pressed: bool = True) -> str:
    """Switches what has ``data-{kind}="{of}"`` on and off; drawn with the line and mark of style ``i``."""
    return (
        f'<button type="button" aria-pressed="{str(pressed).lower()}" data-toggle="{kind}" data-of="{of}">'
        f"{key(i)} {attribute(label)}</button>"
    )


def legend(rows: Sequence[Row], runs: bool = False) -> str:
    """Buttons that switch rows, and with ``runs`` each of their runs, on and off."""
    whole = "".join(button("row", i, i, row.label) for i, row in enumerate(rows))
    made = f'<div class="legend" role="group" aria-label="rows that are shown">{whole}</div>'
    if not runs:
        return made
    single = []
    for i, row in enumerate(rows):
        for j, run in enumerate(row.runs):
            done = run.record.status == "done"
            label = f"{row.label}, seed {run.record.seed}{'' if done else f', {run.record.outcome}'}"
            single.append(button("run", f"{i}-{j}", i, label, pressed=not done))
    return f'{made}<details class="legend"><summary>single runs</summary>{"".join(single)}</details>'


def learning_curves(part: Part, notes: list[str]) -> str:
    """Training loss and the main score of the validation over the steps; empty where no run has left any."""
    found: dict[str, dict[str, Curve]] = {}
    for row in part.rows:
        for run in row.runs:
            try:
                found[run.directory] = curves(run)
            except HardpixError as error:
                notes.append(str(error))
    wanted = ["train/loss", f"val/{part.metric.partition('/')[2]}"]
    charts = [_curve_chart(part, metric, found) for metric in wanted]
    drawn = [chart for chart in charts if chart]
    return f'<div class="charts">{"".join(drawn)}</div>{legend(part.rows, True)}' if drawn else ""


def _curve_chart(part: Part, metric: str, found: dict[str, dict[str, Curve]]) -> str:
    whole = {directory: own[metric] for directory, own in found.items() if own.get(metric)}
    if not whole:
        return ""
    last = max(max(curve) for curve in whole.values())
    scale = 100.0 if is_fraction(metric) else 1.0
    thin = {
        directory: {step: scale * value for step, value in thinned(curve, last).items()}
        for directory, curve in whole.items()
    }
    means = [_over_seeds([thin[r.directory] for r in row.done if r.directory in thin]) for row in part.rows]
    ends = [value for curve in thin.values() for value in curve.values()]
    ends += [mean + sign * std for own in means for mean, std, _ in own.values() for sign in (-1, 1)]
    chart = Chart(f"{metric} over steps", linear([0, last], 0.02), linear(ends), "step", title(metric))
    for i, (row, own) in enumerate(zip(part.rows, means, strict=True)):
        for j, run in enumerate(row.runs):
            if run.directory in thin:
                curve = thin[run.directory]
                group = f'data-row="{i}" data-run="{i}-{j}"'
                # Of a run that has no part in the mean, this is all that there is to see.
                group += ' hidden=""' if run.record.status == "done" else ""
                chart.line(list(curve), list(curve.values()), i, group, "one")
        if own:
            _mean_curve(chart, i, f"{row.label}, step", own)
    return f"<figure><figcaption>{attribute(title(metric))} over steps</figcaption>{chart.svg()}</figure>"


def _over_seeds(members: list[Curve]) -> dict[int, tuple[float, float, int]]:
    """(mean, deviation, n) by step, of the runs that have it."""
    steps = sorted(set().union(*members))
    each = {step: [curve[step] for curve in members if step in curve] for step in steps}
    return {step: (*mean_std(values), len(values)) for step, values in each.items()}


def _mean_curve(chart: Chart, i: int, label: str, own: dict[int, tuple[float, float, int]]) -> None:
    steps, group = list(own), f'data-row="{i}"'
    chart.band(steps, [m - s for m, s, _ in own.values()], [m + s for m, s, _ in own.values()], i, group)
    chart.line(steps, [mean for mean, _, _ in own.values()], i, group)
    for step, (mean, std, n) in own.items():
        spread = f" ± {std:.4g}" if n > 1 else ""
        chart.mark(
            step, mean, i, f"{label} {step}: {mean:.4g}{spread} (n={n})", group, hidden=len(steps) > 15
        )


def cost_quality(part: Part) -> str:
    """The main score over each cost; the script shows one at a time. Empty where no run has a cost."""
    figures = [_cost_chart(part, cost) for cost in COSTS]
    drawn = [figure for figure in figures if figure]
    return (
        f'<div class="charts choose" data-label="cost">{"".join(drawn)}</div>{legend(part.rows)}'
        if drawn
        else ""
    )


def _cost_chart(part: Part, cost: str) -> str:
    scale = 100.0 if is_fraction(part.metric) else 1.0
    rows = [
        (i, row, mean_std(row.values(cost)), mean_std([scale * v for v in row.values(part.metric)]))
        for i, row in enumerate(part.rows)
        if row.values(cost) and row.values(part.metric)
    ]
    if not rows:
        return ""
    xs = [mean + sign * std for _, _, (mean, std), _ in rows for sign in (-1, 1)]
    ys = [mean + sign * std for _, _, _, (mean, std) in rows for sign in (-1, 1)]
    name = COSTS[cost]
    chart = Chart(f"{part.metric} over {name}", linear(xs, 0.1), linear(ys, 0.1), name, title(part.metric))
    for i, row, (x, dx), (y, dy) in rows:
        group = f'data-row="{i}"'
        if dx:
            chart.whisker((x - dx, x + dx), (y, y), i, group)
        if dy:
            chart.whisker((x, x), (y - dy, y + dy), i, group)
        tip = f"{row.label}: {name} {told(row.values(cost), cost)}, {told(row.values(part.metric), part.metric)}"
        chart.mark(x, y, i, tip, group)
    caption = f"{attribute(title(part.metric))} over {attribute(name)}, mean ± std over seeds"
    return f'<figure data-choice="{attribute(name)}"><figcaption>{caption}</figcaption>{chart.svg()}</figure>'
