"""``hardpix figure errors`` and ``thresholds``: what is known of a segmenter's errors, and what a repair changes."""

from __future__ import annotations

import argparse
from pathlib import Path

from hardpix.report import save
from hardpix.run import figure_options as options
from hardpix.run import figure_runs


def add_errors(parser: argparse.ArgumentParser) -> None:
    options.add_runs(parser)
    options.add_weights(parser)
    options.add_frames(parser)


def add_thresholds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or directories of runs")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--lines", default="method", metavar="FACTOR",
                        help="a line for each value of this setting (default: method)")  # fmt: skip
    parser.add_argument("--published", action="store_true", help="add the curve that the paper prints")


def errors(given: argparse.Namespace, paths: list[Path]) -> None:
    options.check_frames(given)
    run, overrides = options.only_run(given)
    check_method(run)
    device = options.device(given.device)

    from hardpix.report.error_map import CHANGE_ENTRIES, ERROR_ENTRIES
    from hardpix.report.figures import class_entries
    from hardpix.report.grid import grid
    from hardpix.run.error_rows import HEADER, error_rows, summary

    data, method = figure_runs.build(run, overrides, given.weights, device)
    places = figure_runs.choose_frames(data, given.split, given.frames, given.count)
    width = given.tile or 240
    rows, numbers, present = error_rows(method, data, places, given.split, width)
    repairs = len(rows[0]) > 3
    picture = grid(
        rows,
        title=f"{run.label}, {options.about(given, [run])}, {summary(numbers)}",
        tile_width=width,
        entries=[*class_entries(present, data.info), *ERROR_ENTRIES, *(CHANGE_ENTRIES if repairs else [])],
        bar=f"P(error) 0 to 1, outlined above t = {method.t:g}",
    )
    save.save_picture(picture, paths)
    save.save_numbers(HEADER, numbers, paths[0].with_suffix(".csv"))


def check_method(run: figure_runs.FigureRun) -> None:
    """Raise unless the run's method predicts a segmenter's errors."""
    from hardpix.run.build import method_class
    from hardpix.types import ConfigError

    method = method_class(run.cfg)
    if not hasattr(method, "error_logits"):
        raise ConfigError(
            f"{run.directory} is a run of {method.__name__}, which predicts no errors of a segmenter: name a run of "
            "method=error_prediction or method=detail"
        )


def thresholds(given: argparse.Namespace, paths: list[Path]) -> None:
    from hardpix.report.thresholds import draw_thresholds

    for note in draw_thresholds(given.runs, given.split, given.lines, given.published, given.ignore, paths):
        print(f"note: {note}")
