"""``hardpix table``: arguments and output, and the commands that fill open cells.

Neither Hydra nor torch is imported before a published row must be composed: a table is there at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardpix import record
from hardpix.cli.completion import defaults
from hardpix.config import catalog
from hardpix.config.catalog import conf_dir
from hardpix.config.command_line import Parser
from hardpix.record import FILE_NAME, write_text
from hardpix.tables.compare import Run, collect, text
from hardpix.tables.render import render
from hardpix.tables.significance import Options
from hardpix.tables.table import DEFAULT_ROWS, Choose, table
from hardpix.types import HardpixError

if TYPE_CHECKING:
    from hardpix.config.published import Layout
    from hardpix.tables.protocol_check import Experiment
    from hardpix.tables.reproduction import Comparison


def start(args: argparse.Namespace) -> int:
    """A table of runs, or a published one where its name is the first word."""
    if args.out:
        record.check_output("--out", Path(args.out))
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
    return published_tables(args) if args.published else table_of_runs(args, choice)


def _is_published(word: str) -> bool:
    if not (conf_dir() / "table" / f"{word.partition('/')[0]}.yaml").is_file():
        return False  # a path, most likely: a table of runs needs no YAML
    from hardpix.config import published

    return published.is_published(word)


def _nearest(word: str) -> str:
    """The name of a table or a paper that looks like ``word``; empty where none does."""
    import difflib

    from hardpix.config import published

    known = [f"{paper.id}/{table}" for paper in published.papers().values() for table in paper.tables]
    return next(iter(difflib.get_close_matches(word, [*known, *published.papers()], n=1, cutoff=0.7)), "")


def published_tables(args: argparse.Namespace) -> int:
    """A published table. Without runs it holds the printed numbers alone."""
    from hardpix.config import published
    from hardpix.config.published import layout
    from hardpix.config.rows import fill
    from hardpix.tables.reproduction import TableOptions, comparison

    if args.published == "list":
        print(listing(), end="")
        return 0
    folder = conf_dir() / "table"
    shown = [layout(table, folder) for table in published.tables(args.published)]
    runs, unreadable = collected(args) if _hold_runs(args.runs) else ([], _without_runs(args.runs))
    check_patterns(runs)
    asked = TableOptions(
        args.relative_to,
        args.against,
        Options(args.resamples, args.random_seed),
        args.per_class,
        fill,
    )
    known = declared(shown, runs)
    made = [comparison(one, runs, known, args.ignore, asked) for one in shown]
    if made and unreadable:
        made[0] = replace(made[0], notes=(*unreadable, *made[0].notes))
    notes = _told(made) if args.format == "csv" else []  # the others hold them
    emit(document(made, args.published, args.format, runs), notes, args)
    return 0


def _hold_runs(folders: Sequence[str]) -> bool:
    """Whether any run is there yet; an absent folder is an error."""
    if absent := next((path for path in folders if not Path(path).exists()), None):
        raise HardpixError(
            f"{absent}: no such folder; leave it out to see the table and its commands without runs"
        )
    return any(next(Path(path).rglob(FILE_NAME), None) or Path(path).is_file() for path in folders)


def _without_runs(folders: Sequence[str]) -> list[str]:
    return [f"No run below {', '.join(folders)} yet: the commands of open cells are listed."] * bool(folders)


def declared(shown: list[Layout], runs: list[Run]) -> list[Experiment]:
    """The rows of the cells that some run stands for, composed."""
    if not runs:
        return []
    from hardpix.cli.published_rows import experiments
    from hardpix.config import published

    patterns = {str(pattern) for run in runs for pattern in run.record.factors.get("reproduces") or ()}
    cells = [cell for one in shown for cell in one.cells()]
    filled = [cell for cell in cells if any(published.matches(p, cell) for p in patterns)]
    return experiments(filled) if filled else []


def document(made: list[Comparison], name: str, form: str, runs: list[Run]) -> str:
    """The tables in one text; HTML as a whole page."""
    from hardpix.config import published
    from hardpix.tables import published_render

    text = published_render.render(made, form)
    if form != "html":
        return text
    from hardpix.page.page import table_page

    paper = published.paper(name.partition("/")[0])
    return table_page(f"{paper.title} ({paper.authors})", text, runs)


def listing() -> str:
    """Every table and the names of its cells."""
    from hardpix.config.published import layouts

    lines = []
    for one in layouts(conf_dir() / "table"):
        rows = " ".join(row.id for row in one.rows)
        columns = " ".join(column.id for column in one.columns if not column.derived)
        lines += [f"{one.table.name}  {one.table.caption}", f"    rows     {rows}", f"    columns  {columns}"]
    return "\n".join(lines) + "\n"


def check_patterns(runs: list[Run]) -> None:
    """Raise for a run that stands for no published cell by what looks like a mistake in its name."""
    from hardpix.config.published import pattern_problem

    checked: dict[str, str] = {}
    for directory, found in runs:
        for pattern in map(str, found.factors.get("reproduces") or ()):
            if pattern not in checked:
                checked[pattern] = pattern_problem(pattern, conf_dir() / "table")
            if checked[pattern]:
                raise HardpixError(f"{directory}: reproduces: {checked[pattern]}.")


def _told(made: list[Comparison]) -> list[str]:
    marked = [f"{mark}: {text}" for one in made for mark, text in one.our_notes]
    return [*marked, *(note for one in made for note in one.notes)]


# ``hardpix table``: its arguments and its run.


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        "hardpix table",
        description="Compare runs in a table: mean, deviation and n over seeds; runs that differ in anything "
        "undeclared are refused. NAME RUN... is a published table with its numbers next to ours.",
    )
    add_arguments(parser)
    return parser.parse_intermixed_args(arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="run directories, or directories of runs; before them the name of a "
        "published table (lwm/II), or of a paper, as with --published",
    )  # fmt: skip
    parser.add_argument(
        "--published",
        metavar="PAPER/TABLE",
        help="a paper's table with its printed numbers next to ours, or PAPER for all of its tables (--rows and "
        "--columns do not apply); list shows the tables and the names of their cells",
    )
    parser.add_argument(
        "--rows",
        type=_list,
        default=list(DEFAULT_ROWS),
        help="declared factors, separated by commas: keys (method.alpha) or groups (default method,loss)",
    )
    parser.add_argument(
        "--columns",
        type=_list,
        default=[],
        help="metrics, separated by commas; iou:CLASS is one of a class, NAME:x is the ratio to and NAME:delta the "
        "difference from the reference row, NAME=Title renames, * is a wildcard; default the split's mIoU and "
        "accuracies",
    )
    parser.add_argument("--per-class", action="store_true", help="the IoU of every class as well")
    parser.add_argument(
        "--relative-to",
        metavar="ROW",
        help="the reference row, by FACTOR=VALUE (loss=cross_entropy) or its label",
    )
    parser.add_argument(
        "--against",
        metavar="ROW",
        help="test the difference of every row from this one: interval and p of one paired bootstrap over "
        "images and seeds",
    )
    parser.add_argument(
        "--resamples", type=_count, default=Options.resamples, help="of --against (default %(default)s)"
    )
    parser.add_argument(
        "--random-seed", type=int, default=0, metavar="N", help="of the resampling of --against (default 0)"
    )
    parser.add_argument(
        "--combinations", action="store_true", help="also rows of the product of --rows that have no run"
    )
    parser.add_argument(
        "--ignore", type=_list, default=[], help="factors not to compare; listed below the table"
    )
    parser.add_argument(
        "--strict", action="store_true", help="a damaged record is an error, not a note below the table"
    )
    parser.add_argument("--format", choices=("md", "latex", "csv", "json", "html"), default="md")
    parser.add_argument("--out", metavar="FILE", help="write there instead of on the screen")


def table_of_runs(args: argparse.Namespace, choose: Choose = lambda group, factors: "") -> int:
    """``choose`` names files of the configuration, for the commands of what is missing."""
    runs, unreadable = collected(args)
    made = table(
        runs,
        args.rows,
        args.columns,
        args.relative_to,
        args.ignore,
        against=args.against,
        options=Options(args.resamples, args.random_seed),
        per_class=args.per_class,
        combinations=args.combinations,
        choose=choose,
    )
    made = replace(made, notes=(*unreadable, *made.notes))
    output = render(made, args.format)
    if args.format == "html":
        from hardpix.page.page import table_page

        output = table_page(f"hardpix: {', '.join(args.rows)}", output, runs)
    emit(output, made.notes, args)
    return 0


def collected(args: argparse.Namespace) -> tuple[list[Run], list[str]]:
    """The runs, and a sentence about those whose records cannot be read."""
    problems: list[str] = []
    runs = collect(args.runs, None if args.strict else problems)
    count = len(problems)
    summary = f"{count} record{'s' if count > 1 else ''} could not be read: {' '.join(problems)}"
    return runs, [summary] * bool(problems)


def emit(output: str, notes: Sequence[str], args: argparse.Namespace) -> None:
    """Write to ``--out`` or the screen; notes that the format has no place for go to the error stream."""
    if args.out:
        path = Path(args.out)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, output)
        except OSError as error:
            raise HardpixError(f"--out {path}: cannot be written ({error.strerror}).") from None
    else:
        sys.stdout.write(output)
    if args.out or args.format == "csv":  # CSV has no place for them
        for note in notes:
            print(f"note: {note}", file=sys.stderr)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1")
    return int(text)


# The file of ``conf/`` behind a choice, for the commands of runs that are missing. Standard library only.


TARGET = re.compile(r"^( *)_target_: *(\S+)", re.MULTILINE)
SETTING = re.compile(r"^(\w+): *([^#\n]*[^#\s])", re.MULTILINE)


def choice(group: str, factors: Mapping[str, Any]) -> str:
    """The file of ``conf/GROUP`` that made these factors, nearest in its own values; empty where none fits."""
    wanted = {factors.get(f"{group}._target_"), factors.get(f"{group}.source._target_")} - {None}
    best: tuple[int, str] | None = None
    for entry in catalog.entries(group) if group in catalog.groups() else ():
        content = _with_defaults(entry.path)
        targets = {target for _, target in TARGET.findall(content)}
        main = next((target for indent, target in reversed(TARGET.findall(content)) if not indent), None)
        if not targets & wanted or (main is not None and main not in wanted):
            continue
        own = {key: value for key, value in SETTING.findall(content) if f"{group}.{key}" in factors}
        wrong = sum(
            text(factors[f"{group}.{key}"]) != value.strip("'\"")
            for key, value in own.items()
            if key != "_target_"
        )
        best = min(filter(None, (best, (wrong, entry.name))))
    return best[1] if best else ""


def _with_defaults(path: Path) -> str:
    """The text of a file after those of the files of its own group that it takes its defaults from."""
    content = path.read_text(encoding="utf-8")
    below = (path.with_name(f"{name}.yaml") for group, name in defaults(content) if not group)
    return "".join(map(_with_defaults, below)) + content
