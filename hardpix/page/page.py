"""``hardpix page``: runs, or a table of them, as one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hardpix.draw.charts import axis_kind
from hardpix.draw.svg import Series, chart, key, number
from hardpix.page.runs import (
    COSTS,
    Curve,
    Line,
    Part,
    Row,
    alike,
    curves,
    matrices,
    mean_std,
    metric_title,
    outcome,
    swept,
    thinned,
)
from hardpix.record import write_text
from hardpix.scores import is_fraction
from hardpix.tables.columns import titles
from hardpix.tables.compare import ABSENT, Run, text
from hardpix.tables.render import best_rows, cell_text, render
from hardpix.tables.table import table
from hardpix.types import HardpixError

if TYPE_CHECKING:
    from hardpix.page.explorer import Explorer

SHOWN = 12  # values in a line of the facts
Drawn = tuple[Markup, list[tuple[Markup, str]]]  # a chart, and its own legend where it has one


class Section(NamedTuple):
    """``kind`` names a macro of the template, which gets ``content``."""

    kind: str
    title: str
    content: Any


def page(
    title: str,
    parts: Sequence[Part],
    explorers: Sequence[Explorer | None],
    *,
    damaged: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> str:
    """A complete HTML document. ``explorers``: of each part, None where it is not wanted.

    The same runs give the same bytes. Names of runs and classes are escaped, whatever they hold.
    """
    lead, sections = [], []
    for part, found in zip(parts, explorers, strict=True):
        before = f"{part.dataset or 'unknown data'}: " if len(parts) > 1 else ""
        lead.append(f"{before}{outcome(part)}")
        sections += [one._replace(title=before + one.title) for one in _sections(part, found) if one.content]
    unfinished = [run for part in parts for run in part.runs if run.record.status != "done"]
    missing = [("damaged", place, why) for place, why in damaged]
    missing += [(run.record.outcome, run.directory, run.record.reason) for run in unfinished]
    if commands:
        sections.append(Section("commands", "Commands", "\n".join(commands)))
    return document(title, sections, lead=[*lead, *notes], missing=missing)


def document(
    title: str,
    sections: Sequence[Section],
    *,
    lead: Sequence[str] = (),
    missing: Sequence[tuple[str, str, str]] = (),
) -> str:
    """``lead``: the first sentences. ``missing``: status, directory and reason of what has no score."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    script = asset("page.js")
    return environment.from_string(asset("page.html")).render(
        title=title,
        sections=sections,
        lead=lead,
        missing=missing,
        policy=policy(script),
        style=Markup(asset("page.css")),
        script=Markup(script),
        number=number,
    )


def table_page(title: str, made: str, runs: Sequence[Run] = ()) -> str:
    """A document of a table that was rendered as HTML, and of the runs in it."""
    named = [(run.record.name or run.record.run_id, run) for run in runs]
    sections = [Section("table", "", Markup(made)), Section("runs", "Runs", named)]
    return document(title, [section for section in sections if section.content])


def policy(script: str) -> str:
    """The content security policy: nothing from outside, and no script but this one."""
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def asset(name: str) -> str:
    """The template, style or script."""
    return files("hardpix.page").joinpath(name).read_text(encoding="utf-8")


def write_page(content: str, path: Path) -> None:
    """Write the file, or leave the one that is there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, content)
    except OSError as error:
        raise HardpixError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None


def _sections(part: Part, found: Explorer | None) -> list[Section]:
    notes: list[str] = []
    charts = {
        "rows": [(Markup(key(i)), row.label) for i, row in enumerate(part.rows)],
        "charts": [*_learning_charts(part, notes), *_cost_charts(part), *_swept_charts(part)],
        "maps": _heat_maps(part),
        "score": metric_title(part.metric),
    }
    classes = {**_per_class(part, notes), "matrices": _matrices(part, notes)}
    made = part.table and Markup(render(part.table, "html"))
    label = {run.directory: row.label for row in part.rows for run in row.runs}
    runs = [(label.get(run.directory) or run.record.name or run.record.run_id, run) for run in part.runs]
    return [
        Section("scores", "Scores", {"table": made, "problem": part.problem}),
        Section("explorer", "Hard pixels", found and {"notes": found.notes, "data": found.content()}),
        Section("charts", "Charts", charts if charts["charts"] else None),
        Section("classes", "Classes", classes if classes["iou"] or classes["matrices"] else None),
        Section("facts", "Setup", {"facts": _facts(part), "notes": list(dict.fromkeys(notes))}),
        Section("runs", "Runs", runs),
    ]  # fmt: skip


def _facts(part: Part) -> dict[str, str]:
    """What was compared, on which data, how it was trained."""
    records = [run.record for run in part.runs]
    frames = {name: count for r in records for name, count in sorted(r.frames.items())}
    outcomes = [r.outcome for r in records]

    def values(name: str) -> str:
        found = {r.seed if name == "seed" else r.factors.get(name, ABSENT) for r in records} - {ABSENT, None}
        return ", ".join(text(value) for value in sorted(found, key=lambda v: (str(type(v)), v)))

    def short(labels: Sequence[str]) -> str:
        more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
        return ", ".join(labels[:SHOWN]) + more

    facts = {
        "data set": part.dataset or "not known: the runs failed before it was read",
        "frames": ", ".join(f"{name.rpartition('/')[2]} {count:,}" for name, count in frames.items()),
        **{name: short([label for label in own if label != "-"]) for name, own in part.compared.items()},
        "seeds": values("seed"),
        "runs": ", ".join(f"{outcomes.count(name)} {name}" for name in dict.fromkeys(sorted(outcomes))),
        "optimiser steps": values("trainer.max_steps"),
        "epochs": values("trainer.max_epochs"),
        "batch size": values("data.batch_size"),
        "code": "; ".join(sorted({_version(r.code) for r in records})),
        "devices": ", ".join(sorted({r.host.get("device", "") for r in records} - {""})),
    }
    return {name: value for name, value in facts.items() if value}


def _version(code: dict[str, str]) -> str:
    dirty = code.get("dirty", "").lower() in ("true", "1", "yes", "dirty")
    commit = f" at {code['commit'][:12]}" if code.get("commit") else ""
    torch = f", torch {code['torch']}" if "torch" in code else ""
    own = f"hardpix {code['hardpix']}" if "hardpix" in code else "hardpix"
    return own + commit + ", with uncommitted changes" * dirty + torch


def _per_class(part: Part, notes: list[str]) -> dict[str, Any]:
    """Labels of rows, and of each class the rows' IoU over seeds and whether it is the best."""
    try:
        made = part.table and table(part.runs, part.factors, [part.metric], per_class=True)
    except HardpixError as error:
        notes.append(str(error))
        made = None
    if made is None:
        return {"rows": [], "iou": []}
    label = {run.directory: row.label for row in part.rows for run in row.runs}
    iou = []
    for i, column in enumerate(made.columns[1:], 1):
        cells, best = [row.cells[i] for row in made.rows], best_rows(made, i)
        words = ["absent" if "nan" in dict(c.states) else cell_text(c, column).split(",")[0] for c in cells]
        iou.append((column.metric.partition(":")[2], [(word, k in best) for k, word in enumerate(words)]))
    return {"rows": [label[row.runs[0].directory] for row in made.rows], "iou": iou}


def _matrices(part: Part, notes: list[str]) -> list[tuple[str, list[str], list[tuple[str, list[Any]]]]]:
    """By row: class names, and of each class what it was predicted as: pixels, and their share of the class."""
    found = []
    for label, (names, matrix) in matrices(part, notes).items():
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        lines = [list(zip(*pair, strict=True)) for pair in zip(matrix.tolist(), share.tolist(), strict=True)]
        found.append((label, names, list(zip(names, lines, strict=True))))
    return found


def _learning_charts(part: Part, notes: list[str]) -> list[Drawn]:
    """Training loss and the main score of the validation over the steps; none where no run has left any."""
    found: dict[str, dict[str, Curve]] = {}
    for run in (run for row in part.rows for run in row.runs):
        try:
            found[run.directory] = curves(run)
        except HardpixError as error:
            notes.append(str(error))
    charts: list[Drawn] = []
    for metric in ("train/loss", f"val/{part.metric.partition('/')[2]}"):
        own = {directory: known[metric] for directory, known in found.items() if known.get(metric)}
        last = max((max(curve) for curve in own.values()), default=0)
        scale = 100.0 if is_fraction(metric) else 1.0
        thin = {d: {s: scale * v for s, v in thinned(curve, last).items()} for d, curve in own.items()}
        series = []
        for i, row in enumerate(part.rows):
            # A run that is not done has no part in the mean: its thin line is all that there is to see.
            alone = [thin[r.directory] for r in row.runs if r.directory in thin and r.record.status != "done"]
            series += [Series(i, "run", list(curve), list(curve.values())) for curve in alone]
            mean = over_seeds([thin[r.directory] for r in row.done if r.directory in thin])
            means, deviations = zip(*mean.values(), strict=True) if mean else ((), ())
            series += [Series(i, "curve", list(mean), means, deviations)] * bool(mean)
        if series:
            charts.append((Markup(chart(series, x_label="step", y_label=metric_title(metric))), []))
    return charts


def over_seeds(members: Sequence[Curve]) -> dict[int, tuple[float, float]]:
    """Mean and deviation by step, of the curves that have it."""
    steps = sorted(set().union(*members))
    return {step: mean_std([curve[step] for curve in members if step in curve]) for step in steps}


def _cost_charts(part: Part) -> list[Drawn]:
    """The main score over each cost in which rows differ by a hundredth or more."""
    charts: list[Drawn] = []
    for cost, name in COSTS.items():
        rows = [(i, r) for i, r in enumerate(part.rows) if r.values(cost) and r.values(part.metric)]
        means = [mean_std(row.values(cost))[0] for _, row in rows]
        if not means or max(means) - min(means) < 0.01 * max(means) or max(means) == 0:
            continue
        series = []
        for i, row in rows:
            (x, x_std), (y, y_std) = mean_std(row.values(cost)), mean_std(row.percent(part.metric))
            series.append(Series(i, "points", [x], [y], [y_std], [x_std]))
        charts.append((Markup(chart(series, x_label=name, y_label=metric_title(part.metric))), []))
    return charts


def _swept_charts(part: Part) -> list[Drawn]:
    """The main score over each swept setting."""
    found = swept(part)
    names = titles(list(found))
    return [_swept_chart(part, name, lines) for name, lines in zip(names, found.values(), strict=True)]


def _swept_chart(part: Part, name: str, lines: Sequence[Line]) -> Drawn:
    values = sorted({value for line in lines if not line.level for value, _ in line.points})
    kind = axis_kind([str(value) for value in values])
    series, rows = [], []
    for line in lines:
        i = part.rows.index(line.points[0][1])  # looks as in the other charts
        places = [values.index(v) if kind == "even" and not line.level else v or 0 for v, _ in line.points]
        y, y_std = zip(*(mean_std(row.percent(part.metric)) for _, row in line.points), strict=True)
        series.append(Series(i, "level" if line.level else "points", places, y, y_std))
        rows.append((Markup(key(i)), f"{line.label}, without it" if line.level else line.label))
    ticks = [(i if kind == "even" else value, number(value)) for i, value in enumerate(values)]
    shown = ticks if kind != "linear" or len(ticks) <= 7 else ()
    drawn = chart(series, x_label=name, y_label=metric_title(part.metric), ticks=shown, log=kind == "log")
    return Markup(drawn), rows


def _heat_maps(part: Part) -> list[dict[str, Any]]:
    """The main score over each pair of swept settings."""
    found = list(swept(part))
    names = dict(zip(found, titles(found), strict=True))
    return [
        _heat_map(part, rows, one, other) | {"names": (names[one], names[other])}
        for i, one in enumerate(found)
        for other in found[i + 1 :]
        for rows in alike(part, one, other).values()
        if min(len({row.factors[factor] for row in rows}) for factor in (one, other)) > 1
    ]


def _heat_map(part: Part, rows: Sequence[Row], one: str, other: str) -> dict[str, Any]:
    """Means of the score: ``one`` down, ``other`` across."""
    means = {(r.factors[one], r.factors[other]): mean_std(r.percent(part.metric))[0] for r in rows}
    low, high = min(means.values()), max(means.values())
    downs, acrosses = (sorted({place[i] for place in means}) for i in (0, 1))

    def cell(place: tuple[Any, Any]) -> tuple[str, float] | None:
        if place not in means:
            return None
        shade = (means[place] - low) / (high - low) if high > low else 0.5
        words = f"{means[place]:.2f}" if is_fraction(part.metric) else number(means[place])
        return words, 0.08 + 0.92 * shade

    lines = [(down, [cell((down, across)) for across in acrosses]) for down in downs]
    return {"across": acrosses, "lines": lines}
