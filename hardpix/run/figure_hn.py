"""``hardpix figure hn-heights``, ``hn-labels`` and ``stitch``: labels of height and normal, and their use."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hardpix.report import save
from hardpix.run import figure_options as options
from hardpix.run import figure_runs
from hardpix.run.hn_command import BINS, GRAVITY_RADIUS, RADIUS
from hardpix.types import ConfigError

if TYPE_CHECKING:
    from hardpix.data import Source
    from hardpix.data.hn_frame import HNSettings


def _add_data(parser: argparse.ArgumentParser, split: str) -> None:
    parser.add_argument("overrides", nargs="+", metavar="data=NAME", help="the data set and its settings")
    parser.add_argument("--split", default=split, help=f"(default: {split})")
    parser.add_argument(
        "--heights", type=int, choices=BINS, default=10, help="bins of 0.25 m (10, default) or 0.5 m"
    )
    parser.add_argument("--camera", type=float, nargs=4, metavar=("FX", "FY", "CX", "CY"),
                        help="in pixels of the depth, where the data set does not tell it")  # fmt: skip


def add_heights(parser: argparse.ArgumentParser) -> None:
    _add_data(parser, "train")
    parser.add_argument("--count", type=int, metavar="N", help="only so many frames, evenly spaced")


def add_labels(parser: argparse.ArgumentParser) -> None:
    _add_data(parser, "train")
    options.add_frames(parser)


def add_stitch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run directory, also of a run that is not done"
    )


def heights(given: argparse.Namespace, paths: list[Path]) -> None:
    if given.count is not None and given.count < 1:
        raise ConfigError(f"--count {given.count}: must be at least 1 frame")
    source, settings = _source(given, normals=1)

    from hardpix.report.hn_charts import height_chart, height_rows
    from hardpix.run.hn_rows import class_heights, wanted_keys
    from hardpix.run.progress import progress

    frames = source.frames(given.split, wanted_keys(source, labels=True))
    places = figure_runs.choose(frames, _about(source, given), [], given.count or len(frames))
    with progress() as bar:
        counts, rejected = class_heights(
            source, frames, places, settings, lambda done: bar(given.split, done, len(places))
        )
    if not counts.any():
        raise ConfigError(
            f"no pixel of {_about(source, given)} has a class and a height: the floor of {rejected} of "
            f"{len(places)} frames was not found"
        )
    used = f"{len(places) - rejected} frames of {source.info.name} {given.split}"
    title = f"Heights of classes: {used}" + (f", {rejected} more rejected" if rejected else "")
    names, edges = source.info.classes, settings.height_edges
    save.save_chart(height_chart(counts, names, edges, title=title), paths)
    header = ("class", "low", "high", "pixels", "share")
    save.save_numbers(header, height_rows(counts, names, edges), paths[0].with_suffix(".csv"))


def labels(given: argparse.Namespace, paths: list[Path]) -> None:
    options.check_frames(given)
    source, settings = _source(given, normals=2)

    from hardpix.report.grid import grid
    from hardpix.run.hn_rows import HEADER, label_info, view_rows, wanted_keys

    frames = source.frames(given.split, wanted_keys(source, labels=False))
    places = figure_runs.choose(frames, _about(source, given), given.frames, given.count)
    rows, numbers, entries = view_rows(source, frames, places, settings)
    title = f"Labels of height and normal: {source.info.name}, {given.split} split"
    save.save_picture(grid(rows, title=title, tile_width=given.tile or 240, entries=entries), paths)
    header = (*HEADER, *label_info(source, settings).classes)
    save.save_numbers(header, numbers, paths[0].with_suffix(".csv"))


def stitch(given: argparse.Namespace, paths: list[Path]) -> None:
    from hardpix.report.hn_charts import read_factors, stitch_chart

    factors = read_factors(given.run)
    title = f"Cross-stitch factors of {given.run.resolve().name}"
    save.save_chart(stitch_chart(factors, title=title), paths)
    save.save_numbers(("step", "unit", "stream", "value", "std"), factors, paths[0].with_suffix(".csv"))


def _source(given: argparse.Namespace, *, normals: int) -> tuple[Source, HNSettings]:
    if not any(word.startswith("data=") for word in given.overrides):
        raise ConfigError(f"hardpix figure {given.kind}: name the data set, for example data=nyuv2")
    from hardpix.data.hn_frame import HNSettings
    from hardpix.run.build import make
    from hardpix.run.config import compose, validate

    cfg = compose(given.overrides)
    validate(cfg)
    edges = tuple(BINS[given.heights] * place for place in range(given.heights))
    camera = None if given.camera is None else tuple(given.camera)
    settings = HNSettings(edges, normals, "gravity", RADIUS, GRAVITY_RADIUS, camera=camera)
    return make(cfg.data.source), settings


def _about(source: Source, given: argparse.Namespace) -> str:
    return f"the {given.split} split of {source.info.name}"
