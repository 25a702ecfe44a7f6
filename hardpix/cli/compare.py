"""``hardpix compare``: what runs differ in."""

from __future__ import annotations

from pathlib import Path

from hardpix import record
from hardpix.cli.tables import emit
from hardpix.config.command_line import Parser
from hardpix.tables.differences import Side, as_json, differences, markdown, side
from hardpix.train import rundir
from hardpix.types import ConfigError


def main(arguments: list[str]) -> int:
    parser = Parser(
        "hardpix compare",
        description="What runs differ in: settings, scores, costs, classes and images, each against the first run.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories, or evaluations in them"
    )
    parser.add_argument("--images", type=int, default=5, metavar="N",
                        help="how many images to show that lose most, gain most, are worst (default: 5)")  # fmt: skip
    parser.add_argument("--format", choices=("md", "json"), default="md", help="json has all images")
    parser.add_argument("--out", metavar="FILE", help="write there instead of on the screen")
    given = parser.parse_args(arguments)
    if len(given.runs) < 2:
        raise ConfigError(f"{given.runs[0]} alone cannot be compared: name two runs or more")
    if given.images < 0:
        raise ConfigError(f"--images {given.images}: must be 0 or above")
    found = differences([read_side(run) for run in given.runs])
    emit(as_json(found) if given.format == "json" else markdown(found, given.images), [], given)
    return 0


def read_side(run_dir: Path) -> Side:
    """A run with the settings it would have today, and what only its record knows (``evaluation.split``)."""
    found = record.read(run_dir)
    settings = record.flatten(rundir.plain(rundir.read_config(run_dir)))
    return side(run_dir, found, settings | found.factors)
