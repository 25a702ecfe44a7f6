"""Options that several kinds of ``hardpix figure`` share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from hardpix.run import figure_runs
from hardpix.run.figure_runs import FigureRun
from hardpix.types import ConfigError

OVERRIDE = re.compile(r"(inference|data|trusted)(\.[^=/]*)?=")


def names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def epochs(text: str) -> list[int]:
    if not all(part.isdecimal() for part in names(text)):
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers, separated by commas")
    return sorted({int(part) for part in names(text)})


def add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="run directories; key=value overrides of inference and data")  # fmt: skip
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--labels", type=names, default=[], help="names of the runs in the figure, by commas")


def add_frames(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frames", type=names, default=[], metavar="NAMES", help="frames, separated by commas"
    )
    parser.add_argument("--count", type=int, default=4, metavar="N",
                        help="without --frames so many, evenly spaced (default: 4)")  # fmt: skip
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="width of a picture")


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", default="last", choices=("last", "best"))


def check_frames(given: argparse.Namespace) -> None:
    if given.count < 1:
        raise ConfigError(f"--count {given.count}: must be at least 1 frame")
    if given.tile is not None and given.tile < 16:
        raise ConfigError(f"--tile {given.tile}: must be at least 16 pixels")


def opened(given: argparse.Namespace, *more: Path) -> tuple[list[FigureRun], list[str]]:
    """The runs of the command line, ``more`` at their end, and the overrides among its words."""
    overrides = [word for word in given.runs if OVERRIDE.match(word)]
    directories = [Path(word) for word in given.runs if word not in overrides]
    if not directories:
        raise ConfigError("hardpix figure: name at least one run")
    labels = given.labels and [*given.labels, *(path.resolve().name for path in more)]
    runs = figure_runs.open_runs([*directories, *more], labels, overrides, given.split, given.ignore)
    return runs, overrides


def each_opened(given: argparse.Namespace) -> tuple[list[FigureRun], list[str]]:
    """The same of runs that need neither the same classes nor the same data."""
    overrides = [word for word in given.runs if OVERRIDE.match(word)]
    directories = [Path(word) for word in given.runs if word not in overrides]
    return figure_runs.open_runs(directories, given.labels, overrides, given.split, None), overrides


def only_run(given: argparse.Namespace) -> tuple[FigureRun, list[str]]:
    """The one run of a kind that draws no more, and the overrides."""
    runs, overrides = opened(given)
    if len(runs) > 1:
        raise ConfigError(f"hardpix figure {given.kind}: draws one run, and {len(runs)} are named")
    return runs[0], overrides


def about(given: argparse.Namespace, runs: Sequence[FigureRun]) -> str:
    return f"{runs[0].data_name}, {given.split} split"


def device(name: str) -> str:
    from hardpix.run.predict import find_device

    return find_device(name)
