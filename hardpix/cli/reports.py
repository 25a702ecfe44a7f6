"""``hardpix report``: one self-contained page of runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hardpix.arguments import Parser
from hardpix.report.page import page, write_page
from hardpix.report.page_explorer import Explorer
from hardpix.report.page_runs import Part, gather, parts
from hardpix.report.page_sweep import swept
from hardpix.run import writable
from hardpix.run.figure_options import OVERRIDE, names
from hardpix.types import ConfigError

FRAMES = 12


def main(arguments: list[str]) -> int:
    parser = Parser(
        "hardpix report",
        description="One page of runs in one file, without network: tables, learning curves, curves of swept settings, "
        "confusion matrices, cost against quality, and an explorer of hard pixels.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="run directories, or directories of runs; key=value overrides of inference and data for the explorer",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="a file that ends in .html"
    )
    parser.add_argument(
        "--rows", type=names, default=[],
        help="factors that tell rows apart, by commas: method,loss (default: those in which the runs differ)",
    )  # fmt: skip
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="N",
                        help=f"frames in the explorer, the worst ones (default: {FRAMES})")  # fmt: skip
    parser.add_argument("--split", default="test", choices=("train", "val", "test"),
                        help="of scores and of the explorer's frames")  # fmt: skip
    parser.add_argument("--no-explorer", action="store_true", help="do not load weights and data")
    parser.add_argument("--title", metavar="TEXT", help="of the page (default: hardpix and the data set)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    given = parser.parse_intermixed_args(arguments)
    _check(given)
    overrides = [word for word in given.runs if OVERRIDE.match(word)]
    runs, damaged = gather(word for word in given.runs if word not in overrides)
    made = parts(runs, given.split, given.rows)
    explorers: list[Explorer | None] = [None] * len(made)
    if not given.no_explorer:
        from hardpix.run.report_frames import explorer

        explorers = [explorer(part, overrides, given.split, given.frames, given.device) for part in made]
    title = given.title or " ".join(
        ["hardpix:", ", ".join(part.dataset for part in made if part.dataset) or "runs"]
    )
    commands = _commands(arguments, [word for word in given.runs if word not in overrides], made)
    text = page(title, made, explorers, damaged=damaged, commands=commands)
    write_page(text, given.out)
    _say(given.out, made, explorers, damaged, len(text.encode()))
    return 0


def _check(given: argparse.Namespace) -> None:
    if given.frames < 1:
        raise ConfigError(
            f"--frames {given.frames}: must be at least 1; --no-explorer leaves the explorer out"
        )
    if given.out.suffix.lower() not in (".html", ".htm") or given.out.is_dir():
        raise ConfigError(f"--out {given.out}: must be a file that ends in .html")
    writable.check("--out", given.out)
    if all(OVERRIDE.match(word) for word in given.runs):
        raise ConfigError("hardpix report: name at least one run, or a directory of runs")


def _commands(arguments: Sequence[str], runs: Sequence[str], made: Sequence[Part]) -> list[str]:
    """What makes this page, and its tables and curves as files of their own."""
    lines = [shlex.join(["hardpix", "report", *arguments])]
    if len(made) == 1 and made[0].table is not None:
        lines.append(shlex.join(["hardpix", "table", *runs, "--rows", ",".join(made[0].factors)]))
    return lines


def _say(
    out: Path,
    made: Sequence[Part],
    explorers: Sequence[Explorer | None],
    damaged: Sequence[tuple[str, str]],
    size: int,
) -> None:
    for part in made:
        if part.problem:
            print(f"note: {part.problem}", file=sys.stderr)
    for directory, why in damaged:
        print(f"note: {directory} is damaged: {why}", file=sys.stderr)
    for found in explorers:
        for note in found.notes if found else ():
            print(f"note: {note}", file=sys.stderr)
    runs = sum(len(part.runs) for part in made)
    swept_keys = [key for part in made for key in swept(part)]
    told = f", swept: {', '.join(swept_keys)}" if swept_keys else ""
    print(f"{runs} runs{told}; {size / 1e6:.1f} MB written to {out}")
