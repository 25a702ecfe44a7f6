"""``hardpix table``: its arguments and its run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hardpix.report.collect import collect
from hardpix.report.render import render
from hardpix.report.table import DEFAULT_ROWS, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or directories of runs")
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
    output = render(made, args.format)
    if args.out:
        Path(args.out).write_text(output, encoding="utf-8")
    else:
        sys.stdout.write(output)
    if args.out or args.format == "csv":  # CSV has no place for them
        for note in made.notes:
            print(f"note: {note}", file=sys.stderr)
    return 0


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
