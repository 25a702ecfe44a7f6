"""``hardpix table``: its arguments and its run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hardpix.arguments import Parser
from hardpix.atomic import write_text
from hardpix.report.collect import Run, collect
from hardpix.report.lacks import Choose
from hardpix.report.render import render
from hardpix.report.significance import Options
from hardpix.report.table import DEFAULT_ROWS, table
from hardpix.types import HardpixError


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        "hardpix table",
        description="Compare runs in a table: mean, deviation and n over seeds; runs that differ in anything "
        "undeclared are refused. NAME RUN... is a published table with its numbers beside ours.",
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
        help="a paper's table with its printed numbers beside ours, or PAPER for all of its tables (--rows and "
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
    parser.add_argument("--resamples", type=_count, default=2000, help="of --against (default 2000)")
    parser.add_argument(
        "--random-seed", type=int, default=0, metavar="N", help="of the resampling of --against (default 0)"
    )
    parser.add_argument(
        "--combinations", action="store_true", help="also rows of the product of --rows that have no run"
    )
    parser.add_argument(
        "--ignore", type=_list, default=[], help="factors not to compare; told below the table"
    )
    parser.add_argument(
        "--strict", action="store_true", help="a damaged record is an error, not a note below the table"
    )
    parser.add_argument("--format", choices=("md", "latex", "csv", "json", "html"), default="md")
    parser.add_argument("--out", metavar="FILE", help="write there instead of on the screen")


def run(args: argparse.Namespace, choose: Choose = lambda group, factors: "") -> int:
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
        from hardpix.report.html import index_page

        output = index_page(f"hardpix: {', '.join(args.rows)}", [output], runs=runs)
    emit(output, made.notes, args)
    return 0


def collected(args: argparse.Namespace) -> tuple[list[Run], list[str]]:
    """The runs, and a sentence about those whose records cannot be read."""
    problems: list[str] = []
    runs = collect(args.runs, None if args.strict else problems)
    count = len(problems)
    told = f"{count} record{'s' if count > 1 else ''} could not be read: {' '.join(problems)}"
    return runs, [told] * bool(problems)


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
