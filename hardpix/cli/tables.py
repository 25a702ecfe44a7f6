"""``hardpix table``: runs in a table, or a paper's tables with our runs beside the printed numbers.

Neither Hydra nor torch is imported before an experiment file must be composed: a table is there at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hardpix.report import command
from hardpix.report.collect import Run
from hardpix.run import fill, writable
from hardpix.run.catalog import conf_dir
from hardpix.types import HardpixError

if TYPE_CHECKING:
    from hardpix.report.effort import Experiment
    from hardpix.report.layout import Layout
    from hardpix.report.reproduction import Comparison

NAME = re.compile(r"[a-z_]+(/\w+)?")  # lwm, lwm/II


def start(args: argparse.Namespace) -> int:
    """A table of runs, or a published one where its name is the first word."""
    if args.out:
        writable.check("--out", Path(args.out))
    first = args.runs[0] if args.runs and not args.published else ""
    if first and _is_published(first):
        if Path(first).exists():
            print(
                f"note: {first} is a path here and a published table, too: taken as the path; --published {first} "
                "for the table",
                file=sys.stderr,
            )
        else:
            args.published, args.runs = first, args.runs[1:]
    elif first and not Path(first).exists() and (close := _nearest(first)):
        raise HardpixError(f"{first} is no run, and no published table; did you mean {close}?")
    return run(args) if args.published else command.run(args, fill.choice)


def _is_published(word: str) -> bool:
    if not NAME.fullmatch(word):
        return False
    from hardpix.report import published

    paper, _, table = word.partition("/")
    known = published.papers().get(paper)
    return known is not None and (not table or table in known.tables)


def _nearest(word: str) -> str:
    """The name of a table or a paper that looks like ``word``; empty where none does."""
    import difflib

    from hardpix.report import published

    known = [f"{paper.id}/{table}" for paper in published.papers().values() for table in paper.tables]
    return next(iter(difflib.get_close_matches(word, [*known, *published.papers()], n=1, cutoff=0.7)), "")


def run(args: argparse.Namespace) -> int:
    """A published table. Without runs it holds the printed numbers alone."""
    from hardpix.report import published
    from hardpix.report.layout import layout
    from hardpix.report.reproduction import Asked, comparison
    from hardpix.report.significance import Options

    if args.published == "list":
        print(listing(), end="")
        return 0
    folder = conf_dir() / "table"
    shown = [layout(table, folder) for table in published.tables(args.published)]
    runs, unreadable = command.collected(args) if args.runs else ([], [])
    check_patterns(runs)
    asked = Asked(
        args.relative_to,
        args.against,
        Options(args.resamples, args.random_seed),
        args.per_class,
        fill.command,
    )
    known = declared(shown, runs)
    made = [comparison(one, runs, known, args.ignore, asked) for one in shown]
    if made and unreadable:
        made[0] = replace(made[0], notes=(*unreadable, *made[0].notes))
    notes = _told(made) if args.format == "csv" else []  # the others hold them
    command.emit(document(made, args.published, args.format, runs), notes, args)
    return 0


def declared(shown: list[Layout], runs: list[Run]) -> list[Experiment]:
    """The experiment files of the cells that some run stands for, composed."""
    if not runs:
        return []
    from hardpix.report import published
    from hardpix.run.experiments import experiments

    patterns = {str(pattern) for run in runs for pattern in run.record.factors.get("reproduces") or ()}
    cells = [cell for one in shown for cell in one.cells()]
    filled = [cell for cell in cells if any(published.matches(p, cell) for p in patterns)]
    return experiments(filled) if filled else []


def document(made: list[Comparison], name: str, form: str, runs: list[Run]) -> str:
    """The tables in one text; HTML as a whole page."""
    from hardpix.report import published, published_render

    text = published_render.render(made, form)
    if form != "html":
        return text
    from hardpix.report.html import index_page

    paper = published.paper(name.partition("/")[0])
    return index_page(f"{paper.title} ({paper.authors})", [text], runs=runs)


def listing() -> str:
    """Every table and the names of its cells."""
    from hardpix.report.layout import layouts

    lines = []
    for one in layouts(conf_dir() / "table"):
        rows = " ".join(row.id for row in one.rows)
        columns = " ".join(column.id for column in one.columns if not column.derived)
        lines += [f"{one.table.name}  {one.table.caption}", f"    rows     {rows}", f"    columns  {columns}"]
    return "\n".join(lines) + "\n"


def check_patterns(runs: list[Run]) -> None:
    """Raise for a run that stands for no published cell by what looks like a mistake in its name."""
    from hardpix.report.layout import pattern_problem

    checked: dict[str, str] = {}
    for directory, record in runs:
        for pattern in map(str, record.factors.get("reproduces") or ()):
            if pattern not in checked:
                checked[pattern] = pattern_problem(pattern, conf_dir() / "table")
            if checked[pattern]:
                raise HardpixError(f"{directory}: reproduces: {checked[pattern]}.")


def _told(made: list[Comparison]) -> list[str]:
    marked = [f"{mark}: {text}" for one in made for mark, text in one.our_notes]
    return [*marked, *(note for one in made for note in one.notes)]
