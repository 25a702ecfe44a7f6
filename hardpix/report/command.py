"""``hardpix table``: its arguments and its run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hardpix.report.collect import collect
from hardpix.report.render import render
from hardpix.report.table import DEFAULT_ROWS, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run directories, or directories of runs")
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
        help="metrics, separated by commas; NAME:x is the ratio to and NAME:delta the difference from the "
        "reference row, NAME=Title renames, * is a wildcard; default the split's mIoU and accuracies",
    )
    parser.add_argument("--relative-to", metavar="FACTOR=VALUE", help="the reference row: loss=cross_entropy")
    parser.add_argument(
        "--ignore", type=_list, default=[], help="factors not to compare; told below the table"
    )
    parser.add_argument("--format", choices=("md", "latex", "csv", "html"), default="md")
    parser.add_argument("--out", metavar="FILE", help="write there instead of on the screen")


def run(args: argparse.Namespace) -> int:
    made = table(collect(args.runs), args.rows, args.columns, args.relative_to, args.ignore)
    emit(render(made, args.format), made.notes, args)
    return 0


def emit(output: str, notes: Sequence[str], args: argparse.Namespace) -> None:
    """Write to ``--out`` or the screen; notes that the format has no place for go to the error stream."""
    if args.out:
        Path(args.out).write_text(output, encoding="utf-8")
    else:
        sys.stdout.write(output)
    if args.out or args.format == "csv":  # CSV has no place for them
        for note in notes:
            print(f"note: {note}", file=sys.stderr)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
