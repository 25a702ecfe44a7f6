"""``hardpix table``: arguments and output, and the commands that fill open cells.

Neither Hydra nor torch is imported before an experiment file must be composed: a table is there at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hardpix import record
from hardpix.cli.completion import defaults
from hardpix.config import catalog
from hardpix.config.catalog import conf_dir
from hardpix.config.command_line import Parser
from hardpix.record import write_text
from hardpix.tables.compare import Run, collect, text
from hardpix.tables.render import render
from hardpix.tables.significance import Options
from hardpix.tables.table import DEFAULT_ROWS, Choose, table
from hardpix.types import HardpixError

if TYPE_CHECKING:
    from hardpix.config.published import Layout
    from hardpix.tables.protocol_check import Experiment
    from hardpix.tables.reproduction import Comparison


NAME = re.compile(r"[a-z_]+(/\w+)?")  # lwm, lwm/II


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
    if not NAME.fullmatch(word):
        return False
    from hardpix.config import published

    paper, _, table = word.partition("/")
    known = published.papers().get(paper)
    return known is not None and (not table or table in known.tables)


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
    from hardpix.tables.reproduction import TableOptions, comparison

    if args.published == "list":
        print(listing(), end="")
        return 0
    folder = conf_dir() / "table"
    shown = [layout(table, folder) for table in published.tables(args.published)]
    runs, unreadable = collected(args) if args.runs else ([], [])
    check_patterns(runs)
    asked = TableOptions(
        args.relative_to,
        args.against,
        Options(args.resamples, args.random_seed),
        args.per_class,
        command,
    )
    known = declared(shown, runs)
    made = [comparison(one, runs, known, args.ignore, asked) for one in shown]
    if made and unreadable:
        made[0] = replace(made[0], notes=(*unreadable, *made[0].notes))
    notes = _told(made) if args.format == "csv" else []  # the others hold them
    emit(document(made, args.published, args.format, runs), notes, args)
    return 0


def declared(shown: list[Layout], runs: list[Run]) -> list[Experiment]:
    """The experiment files of the cells that some run stands for, composed."""
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
    from hardpix.page.page import index_page

    paper = published.paper(name.partition("/")[0])
    return index_page(f"{paper.title} ({paper.authors})", [text], runs=runs)


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
        from hardpix.page.page import index_page

        output = index_page(f"hardpix: {', '.join(args.rows)}", [output], runs=runs)
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


# Commands for open cells: the files of ``conf/`` behind a choice or a published cell.
#
# Standard library only, and no file is composed: a command needs a file's name.


TARGET = re.compile(r"^( *)_target_: *(\S+)", re.MULTILINE)
SETTING = re.compile(r"^(\w+): *([^#\n]*[^#\s])", re.MULTILINE)
DECLARED = re.compile(
    r"^reproduces:[ \t]*(?:\[(?P<inline>[^\]]*)\]|\n(?P<list>(?:[ ]*-.*\n?)+))", re.MULTILINE
)
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
SEED = re.compile(r" seed=\S+")


class Source(NamedTuple):
    """One pattern of cells that a file of ``conf/experiment`` declares."""

    pattern: str
    command: str  # without a seed


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


def command(cell: str, seeds: Sequence[int]) -> tuple[str, ...]:
    """The commands that fill a published cell; none where no experiment file declares it.

    One for all ``seeds`` where ``hardpix train`` does it, else one for each.
    """
    from hardpix.config.published import matches  # which reads YAML

    for source in _sources():
        if source.pattern.split("/")[:2] != cell.split("/")[:2]:  # a quick look first
            continue
        if not matches(REFERENCE.sub("*", source.pattern), cell):
            continue
        program, *words = source.command.removeprefix("hardpix ").split()
        given = _references(source.pattern, cell)
        words = [
            word for word in words if word.partition("=")[0] not in given and (word != "-m" or not given)
        ]
        if program == "chain":  # its stages are given all that varies
            return tuple(" ".join(["hardpix chain", *words, f"seed={seed}"]) for seed in seeds)
        words += [f"{key}={value}" for key, value in given.items()]
        if program == "evaluate":
            return (" ".join(["hardpix evaluate", *words]),)
        many = ["-m"] * (len(seeds) > 1 and "-m" not in words)
        return (" ".join(["hardpix train", *many, *words, f"seed={','.join(map(str, seeds))}"]),)
    return ()


def _references(pattern: str, cell: str) -> dict[str, str]:
    """``hl/7/c_${method.c}/resnet18`` and ``hl/7/c_0.1/resnet18`` give ``method.c`` the value 0.1."""
    keys = REFERENCE.findall(pattern)
    parts = REFERENCE.split(pattern)[::2]
    found = re.fullmatch("(.+)".join(re.escape(part).replace(r"\*", "[^/]*") for part in parts), cell)
    return dict(zip(keys, found.groups(), strict=True)) if found else {}


@cache
def _sources() -> tuple[Source, ...]:
    found = []
    for entry in catalog.entries("experiment"):
        content = entry.path.read_text(encoding="utf-8")
        declared = DECLARED.search(content)
        if declared is None:
            continue
        items = re.split(r",|\n *-|^ *-", declared["inline"] or declared["list"] or "")
        told = entry.use.replace("NAME", entry.name)
        command = SEED.sub("", told.partition("  ")[0])
        patterns = [item.partition(" #")[0].strip(" '\"\n") for item in items]
        found += [Source(pattern, command) for pattern in patterns if pattern]
    return tuple(found)
