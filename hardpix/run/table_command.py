"""``hardpix table --published``: a paper's tables with our runs beside the printed numbers."""

from __future__ import annotations

import argparse

from hardpix.report import published, published_render
from hardpix.report.collect import Run, collect
from hardpix.report.command import emit
from hardpix.report.effort import Experiment
from hardpix.report.layout import layout, layouts, pattern_problem
from hardpix.report.reproduction import Comparison, comparison
from hardpix.run.config import conf_dir
from hardpix.run.experiments import experiments
from hardpix.types import HardpixError


def run(args: argparse.Namespace) -> int:
    """Without runs the table holds the printed numbers alone."""
    if args.published == "list":
        print(listing(), end="")
        return 0
    folder = conf_dir() / "table"
    shown = [layout(table, folder) for table in published.tables(args.published)]
    runs = collect(args.runs) if args.runs else []
    check_patterns(runs)
    known: list[Experiment] = []
    if runs:
        patterns = {str(pattern) for run in runs for pattern in run.record.factors.get("reproduces") or ()}
        cells = [cell for one in shown for cell in one.cells()]
        known = experiments([cell for cell in cells if any(published.matches(p, cell) for p in patterns)])
    made = [comparison(one, runs, known, args.ignore) for one in shown]
    notes = _told(made) if args.format == "csv" else []  # the others hold them
    emit(document(made, args.published, args.format, runs), notes, args)
    return 0


def document(made: list[Comparison], name: str, form: str, runs: list[Run]) -> str:
    """The tables in one text; HTML as a whole page."""
    text = published_render.render(made, form)
    if form != "html":
        return text
    from hardpix.report.html import index_page

    paper = published.paper(name.partition("/")[0])
    return index_page(f"{paper.title} ({paper.authors})", [text], runs=runs)


def listing() -> str:
    """Every table and the names of its cells."""
    lines = []
    for one in layouts(conf_dir() / "table"):
        rows = " ".join(row.id for row in one.rows)
        columns = " ".join(column.id for column in one.columns if not column.derived)
        lines += [f"{one.table.name}  {one.table.caption}", f"    rows     {rows}", f"    columns  {columns}"]
    return "\n".join(lines) + "\n"


def check_patterns(runs: list[Run]) -> None:
    """Raise for a run that stands for no published cell by what looks like a mistake in its name."""
    checked: dict[str, str] = {}
    for directory, record in runs:
        for pattern in map(str, record.factors.get("reproduces") or ()):
            problem = checked.setdefault(pattern, pattern_problem(pattern, conf_dir() / "table"))
            if problem:
                raise HardpixError(f"{directory}: reproduces: {problem}.")


def _told(made: list[Comparison]) -> list[str]:
    marked = [f"{mark}: {text}" for one in made for mark, text in one.our_notes]
    return [*marked, *(note for one in made for note in one.notes)]
