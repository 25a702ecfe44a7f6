"""SVG charts of a page of runs: learning curves, cost against quality."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from hardpix.page.content import COSTS, Curve, Part, Row, curves, thinned
from hardpix.scores import is_fraction
from hardpix.types import HardpixError

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 46
STYLES = 7  # colours; a further line has the first colour again, with another dash
SHAPES = "osD^vPX"


class Axis(NamedTuple):
    """From ``low`` to ``high`` in numbers as drawn: of a logarithmic axis their logarithms."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def unit(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``."""
        place = math.log10(value) if self.log else value
        return (place - self.low) / (self.high - self.low)


def linear(values: Sequence[float], pad: float = 0.06) -> Axis:
    """Round ticks (1, 2 or 5 times a power of ten) over the values and a margin."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    span = high - low or abs(high) * 0.2 or 1.0
    low, high = low - pad * span, high + pad * span
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)
    first, last = math.ceil(low / step), math.floor(high / step)
    return Axis(low, high, tuple((i * step, number(i * step)) for i in range(first, last + 1)))


def logarithmic(values: Sequence[float], ticks: Sequence[float]) -> Axis:
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = 0.08 * (high - low) or 0.5
    return Axis(low - pad, high + pad, tuple((math.log10(t), number(t)) for t in ticks), log=True)


def even(count: int, names: Sequence[str]) -> Axis:
    """Places 0, 1, .. with a name each."""
    return Axis(-0.4, count - 0.6, tuple((float(i), name) for i, name in enumerate(names)))


def number(value: float) -> str:
    """Four digits, large numbers with k, M or G."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            scale = 1e3 if letter == "k" else unit
            return f"{value / scale:.4g}{letter}"
    return f"{value:.4g}" if value else "0"


def attribute(text: object) -> str:
    return html.escape(str(text), quote=True)


class Chart:
    """One plot; what is added first lies below. ``group``: attributes by which a legend switches it off."""

    def __init__(self, title: str, x: Axis, y: Axis, x_label: str, y_label: str) -> None:
        self.title, self.x, self.y, self.x_label, self.y_label = title, x, y, x_label, y_label
        self.parts: list[str] = []

    def band(
        self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], i: int, group: str
    ) -> None:
        """The area between two lines."""
        there = [self._point(x, y) for x, y in zip(xs, high, strict=True)]
        back = [self._point(x, y) for x, y in zip(xs, low, strict=True)]
        if len(there) > 1:
            points = " ".join([*there, *reversed(back)])
            self.parts.append(f'<polygon class="band s{i % STYLES}" {group} points="{points}"/>')

    def line(
        self, xs: Sequence[float], ys: Sequence[float], i: int, group: str = "", kind: str = "mean"
    ) -> None:
        """``kind``: ``mean``, or ``one`` for a thin line of a single run."""
        points = " ".join(self._point(x, y) for x, y in zip(xs, ys, strict=True))
        self.parts.append(
            f'<polyline class="{kind} s{i % STYLES}{self._dash(i)}" {group} points="{points}"/>'
        )

    def level(self, y: float, i: int, group: str = "") -> None:
        """A horizontal line through the whole plot."""
        height = self._y(y)
        self.parts.append(
            f'<line class="level s{i % STYLES}" {group} x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>'
        )

    def strip(self, low: float, high: float, i: int, group: str = "") -> None:
        """A horizontal band through the whole plot."""
        top, bottom = sorted((float(self._y(low)), float(self._y(high))))
        self.parts.append(
            f'<rect class="band s{i % STYLES}" {group} x="{LEFT}" width="{WIDTH - RIGHT - LEFT}" y="{top:.1f}" '
            f'height="{bottom - top:.1f}"/>'
        )

    def whisker(self, x: tuple[float, float], y: tuple[float, float], i: int, group: str = "") -> None:
        """An error bar between two points of one height or one place."""
        (x1, y1), (x2, y2) = (self._xy(a, b) for a, b in zip(x, y, strict=True))
        dx, dy = (0, 4) if abs(x2 - x1) > abs(y2 - y1) else (4, 0)
        path = f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"
        for px, py in ((x1, y1), (x2, y2)):
            path += f"M{px - dx:.1f} {py - dy:.1f}L{px + dx:.1f} {py + dy:.1f}"
        self.parts.append(f'<path class="whisker s{i % STYLES}" {group} d="{path}"/>')

    def mark(self, x: float, y: float, i: int, tip: str, group: str = "", hidden: bool = False) -> None:
        """A point; ``tip`` is what hovering or the arrow keys tell of it. ``hidden``: not drawn until then."""
        px, py = self._xy(x, y)
        kind = "mark hid" if hidden else "mark"
        self.parts.append(
            f'<path class="{kind} s{i % STYLES}" {group} data-tip="{attribute(tip)}" data-x="{px:.1f}" '
            f'data-y="{py:.1f}" d="{shape(i, px, py)}"/>'
        )

    def svg(self) -> str:
        """Readable by itself; the page's script adds the tips."""
        lines = [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" '
            f'aria-label="{attribute(self.title)}">',
            *self._axes(),
            *self.parts,
            "</svg>",
        ]
        return "\n".join(lines)

    def _axes(self) -> list[str]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        lines = ['<g class="axes">']
        for place, name in self.y.ticks:
            y = TOP + (1 - (place - self.y.low) / (self.y.high - self.y.low)) * (bottom - TOP)
            lines.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{attribute(name)}</text>')
        for place, name in self.x.ticks:
            x = LEFT + (place - self.x.low) / (self.x.high - self.x.low) * (right - LEFT)
            lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            lines.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{attribute(name)}</text>')
        lines.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}"/>')
        middle = (LEFT + right) / 2
        lines.append(
            f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{attribute(self.x_label)}</text>'
        )
        across = (TOP + bottom) / 2
        lines.append(
            f'<text x="14" y="{across}" text-anchor="middle" transform="rotate(-90 14 {across})">'
            f"{attribute(self.y_label)}</text></g>"
        )
        return lines

    def _xy(self, x: float, y: float) -> tuple[float, float]:
        return LEFT + self.x.unit(x) * (WIDTH - RIGHT - LEFT), float(self._y(y))

    def _y(self, y: float) -> str:
        return f"{TOP + (1 - self.y.unit(y)) * (HEIGHT - BOTTOM - TOP):.1f}"

    def _point(self, x: float, y: float) -> str:
        return "{:.1f},{:.1f}".format(*self._xy(x, y))

    @staticmethod
    def _dash(i: int) -> str:
        return f" d{i // STYLES % 4}" if i >= STYLES else ""


# Corners of marks whose half width is 1; a plus has arms as wide as two thirds.
THIRD = 1 / 3
PLUS = (
    *((-THIRD, -1), (THIRD, -1), (THIRD, -THIRD), (1, -THIRD), (1, THIRD), (THIRD, THIRD)),
    *((THIRD, 1), (-THIRD, 1), (-THIRD, THIRD), (-1, THIRD), (-1, -THIRD), (-THIRD, -THIRD)),
)
CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "s": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "D": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    "^": ((0, -1.2), (1.2, 0.9), (-1.2, 0.9)),
    "v": ((0, 1.2), (1.2, -0.9), (-1.2, -0.9)),
    "P": PLUS,
    "X": tuple(((a - b) * 0.75, (a + b) * 0.75) for a, b in PLUS),
}


def shape(i: int, x: float, y: float, r: float = 4.5) -> str:
    """The path of a mark around (x, y): circle, square, diamond, two triangles, plus, cross."""
    kind = SHAPES[i % len(SHAPES)]
    if kind == "o":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    return "M" + "L".join(f"{x + r * a:.1f} {y + r * b:.1f}" for a, b in CORNERS[kind]) + "z"


def key(i: int) -> str:
    """A small picture of a line and its mark, for a legend."""
    dash = Chart._dash(i)
    line = f'<path class="mean s{i % STYLES}{dash}" d="M0 6H28"/>'
    mark = f'<path class="mark s{i % STYLES}" d="{shape(i, 14, 6)}"/>'
    return f'<svg class="key" viewBox="0 0 28 12" aria-hidden="true">{line}{mark}</svg>'


# The charts of a page of runs: learning curves, cost against quality, and what all of its charts share.


def shown(value: float, metric: str) -> str:
    return f"{100 * value:.2f}" if is_fraction(metric) else number(value)


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """The sample deviation is 0 below two values, where nothing is drawn of it."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def mean_std_text(values: Sequence[float], metric: str) -> str:
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
        costs, scores = row.values(cost), row.values(part.metric)
        tip = f"{row.label}: {name} {mean_std_text(costs, cost)}, {mean_std_text(scores, part.metric)}"
        chart.mark(x, y, i, tip, group)
    caption = f"{attribute(title(part.metric))} over {attribute(name)}, mean ± std over seeds"
    return f'<figure data-choice="{attribute(name)}"><figcaption>{caption}</figcaption>{chart.svg()}</figure>'
