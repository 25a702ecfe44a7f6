"""``hardpix figure``: figures drawn from runs, as PNG and PDF, with a CSV of their numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hardpix.cli import figure_kinds
from hardpix.cli.prepare import BINS, GRAVITY_RADIUS, RADIUS
from hardpix.config.command_line import Parser
from hardpix.draw import charts
from hardpix.figures import runs as figure_runs
from hardpix.types import ConfigError

if TYPE_CHECKING:
    from hardpix.data import Source
    from hardpix.data.hn_labels import HNSettings


def main(arguments: list[str]) -> int:
    parser = Parser("hardpix figure", description="Draw figures from runs: PNG, PDF and CSV.")
    commands = parser.add_subparsers(dest="kind", metavar="KIND")
    for name, (add, _, text) in KINDS.items():
        one = commands.add_parser(name, help=text.split(":")[0], description=text)
        one.add_argument("--out", type=Path, required=True, metavar="FILE_OR_FOLDER",
                         help="a file that ends in .png or .pdf, or a folder for both; and a .csv")  # fmt: skip
        one.add_argument("--ignore", type=figure_kinds.names, default=[], metavar="KEYS",
                         help="settings that may differ between the runs, separated by commas")  # fmt: skip
        one.set_defaults(kind=name)
        add(one)
    if not arguments:
        parser.print_help()
        return 0
    if arguments[0] not in KINDS:
        parser.parse_args(arguments)  # prints the help, or which kinds there are
        return 2
    given = commands.choices[arguments[0]].parse_intermixed_args(arguments[1:])
    paths = charts.targets(given.out, arguments[0])
    KINDS[arguments[0]][1](given, paths)
    for path in [*paths, paths[0].with_suffix(".csv")]:
        print(f"written to {path}")
    return 0


def _add_depth_error(parser: argparse.ArgumentParser) -> None:
    figure_kinds.add_runs(parser)
    figure_kinds.add_weights(parser)
    parser.add_argument("--depth-from", type=Path, metavar="RUN",
                        help="draw all runs over the depth error of this one")  # fmt: skip


def _add_maps(parser: argparse.ArgumentParser) -> None:
    figure_kinds.add_runs(parser)
    figure_kinds.add_frames(parser)
    parser.add_argument(
        "--epochs", type=figure_kinds.epochs, default=[], help="by commas (default: all that the run keeps)"
    )
    parser.add_argument("--maps", type=figure_kinds.names, default=[],
                        help="of dpe,dse,hardness,curriculum (default: all of the run's loss)")  # fmt: skip


def _add_panels(parser: argparse.ArgumentParser) -> None:
    figure_kinds.add_runs(parser)
    figure_kinds.add_weights(parser)
    figure_kinds.add_frames(parser)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or directories of runs")
    parser.add_argument(
        "--x",
        required=True,
        metavar="FACTOR",
        help="the swept setting: method.alpha; or pretraining.frames: of the run that each starts from "
        "(name those runs, too)",
    )
    parser.add_argument("--metric", default="test/miou", help="(default: test/miou)")
    parser.add_argument("--lines", metavar="FACTOR", help="a line for each value of this setting")


def depth_error(given: argparse.Namespace, paths: list[Path]) -> None:
    places = [Path(word).resolve() for word in given.runs if not figure_kinds.OVERRIDE.match(word)]
    extra = [] if given.depth_from is None or given.depth_from.resolve() in places else [given.depth_from]
    opened, overrides = figure_kinds.opened(given, *extra)
    runs = opened[: len(opened) - len(extra)]
    device = figure_kinds.pick_device(given.device)

    from hardpix.draw.charts import binned, depth_error_chart
    from hardpix.figures.maps import depth_errors

    built = {run.label: figure_runs.build(run, overrides, given.weights, device) for run in opened}
    source = next(
        (r for r in opened if given.depth_from and r.directory.resolve() == given.depth_from.resolve()), None
    )
    for run in [source] if source else runs:
        figure_runs.check_depth(run, built[run.label][1], built[run.label][0])
    data = built[(source or runs[0]).label][0]
    methods = {run.label: built[run.label][1] for run in runs}
    _say_amount(data, given.split, len(opened))
    found = depth_errors(methods, data, given.split, built[source.label][1] if source else None)
    if not any(errors.pixels.any() for errors in found.values()):
        raise ConfigError(f"the {given.split} split of {data.info.name} has no labelled pixel with depth")
    bins = binned(found)
    title = f"Segmentation errors by depth error: {figure_kinds.data_title(given, runs)}"
    charts.save_chart(depth_error_chart(bins, title=title, shared=source.label if source else ""), paths)
    header = ("run", "depth_from", "bin", "low", "high", "pixels", "wrong", "rate")
    rows = [
        (run, source.label if source else run, i + 1, b.low, b.high, b.pixels, b.wrong, b.rate)
        for run, members in bins.items()
        for i, b in enumerate(members)
    ]
    charts.save_numbers(header, rows, paths[0].with_suffix(".csv"))


def maps(given: argparse.Namespace, paths: list[Path]) -> None:
    figure_kinds.check_frames(given)
    run, overrides = figure_kinds.only_run(given)
    epochs = figure_runs.check_snapshots(run, given.epochs)
    device = figure_kinds.pick_device(given.device)

    from hardpix.draw.pictures import grid
    from hardpix.figures.maps import LEFT_OUT, fusion_title, lwm_maps, map_rows

    data, method = figure_runs.build(run, overrides, "last", device)
    figure_runs.check_depth(run, method, data)
    names = lwm_maps(run, given.maps)
    places = figure_runs.choose_frames(data, given.split, given.frames, given.count)
    rows, numbers = map_rows(run, data, method, places, given.split, epochs, names)
    weight = f"; M: {fusion_title(run)}" if {"hardness", "curriculum"} & set(names) else ""
    picture = grid(
        rows,
        title=f"{run.label}: hardness maps on {figure_kinds.data_title(given, [run])}{weight}",
        tile_width=given.tile or 160,
        entries=[("left out or undefined", LEFT_OUT)],
        bar="map low to high",
    )
    charts.save_picture(picture, paths)
    charts.save_numbers(("frame", "epoch", "map", "mean", "kept"), numbers, paths[0].with_suffix(".csv"))


def panels(given: argparse.Namespace, paths: list[Path]) -> None:
    figure_kinds.check_frames(given)
    runs, overrides = figure_kinds.opened(given)
    device = figure_kinds.pick_device(given.device)

    from hardpix.draw.pictures import WRONG, class_entries, grid
    from hardpix.figures.maps import panel_rows

    built = {run.label: figure_runs.build(run, overrides, given.weights, device) for run in runs}
    data = built[runs[0].label][0]
    places = figure_runs.choose_frames(data, given.split, given.frames, given.count)
    rows, numbers, present = panel_rows({k: m for k, (_, m) in built.items()}, data, places, given.split)
    picture = grid(
        rows,
        title=f"Predictions on {figure_kinds.data_title(given, runs)}",
        tile_width=given.tile or 240,
        entries=[*class_entries(present, data.info), ("wrong", WRONG)],
    )
    charts.save_picture(picture, paths)
    charts.save_numbers(("frame", "run", "pixels", "wrong", "rate"), numbers, paths[0].with_suffix(".csv"))


def sweep(given: argparse.Namespace, paths: list[Path]) -> None:
    from hardpix.figures.curves import draw_sweep

    for note in draw_sweep(given.runs, given.x, given.metric, given.lines, given.ignore, paths):
        print(f"note: {note}")


def _say_amount(data, split: str, runs: int) -> None:
    print(
        f"{len(data.evaluation_dataset(split))} frames of {data.info.name} {split}, {runs} run(s)", flush=True
    )


Kind = tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace, list[Path]], None], str]


# ``hardpix figure hn-heights``, ``hn-labels`` and ``stitch``: labels of height and normal, and their use.


def add_heights(parser: argparse.ArgumentParser) -> None:
    _add_data(parser, "train")
    parser.add_argument("--count", type=int, metavar="N", help="only so many frames, evenly spaced")


def heights(given: argparse.Namespace, paths: list[Path]) -> None:
    if given.count is not None and given.count < 1:
        raise ConfigError(f"--count {given.count}: must be at least 1 frame")
    source, settings = _source(given, normals=1)

    from hardpix.data.prepare.recipe import progress
    from hardpix.draw.charts import height_chart, height_rows
    from hardpix.figures.hn import class_heights, wanted_keys

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
    charts.save_chart(height_chart(counts, names, edges, title=title), paths)
    header = ("class", "low", "high", "pixels", "share")
    charts.save_numbers(header, height_rows(counts, names, edges), paths[0].with_suffix(".csv"))


def add_labels(parser: argparse.ArgumentParser) -> None:
    _add_data(parser, "train")
    _add_normals(parser, 2)
    parser.add_argument(
        "--semantics", action="store_true", help="also the labels of the data set's own classes"
    )
    figure_kinds.add_frames(parser)


def labels(given: argparse.Namespace, paths: list[Path]) -> None:
    figure_kinds.check_frames(given)
    source, settings = _source(given, normals=given.normals)

    from hardpix.draw.pictures import grid
    from hardpix.figures.hn import HEADER, label_info, view_rows, wanted_keys

    frames = source.frames(given.split, wanted_keys(source, labels=given.semantics))
    places = figure_runs.choose(frames, _about(source, given), given.frames, given.count)
    rows, numbers, entries = view_rows(source, frames, places, settings, semantics=given.semantics)
    title = f"{_title(given)}: {source.info.name}, {given.split} split"
    charts.save_picture(grid(rows, title=title, tile_width=given.tile or 240, entries=entries), paths)
    header = (*HEADER, *label_info(source, settings).classes)
    charts.save_numbers(header, numbers, paths[0].with_suffix(".csv"))


def add_cloud(parser: argparse.ArgumentParser) -> None:
    _add_data(parser, "train")
    _add_normals(parser, 1)
    parser.add_argument(
        "--image",
        metavar="NAME",
        help="a frame, or its index from 0 (default: the first that is not rejected)",
    )
    parser.add_argument("--color", default="labels", choices=("labels", "image"),
                        help="of the points in the PLY file (default: labels)")  # fmt: skip
    parser.add_argument("--turn", type=float, default=20.0, metavar="DEGREES",
                        help="how far to the right of the camera the viewer stands (default: 20)")  # fmt: skip
    parser.add_argument("--tilt", type=float, default=20.0, metavar="DEGREES",
                        help="how far it looks down (default: 20)")  # fmt: skip
    parser.add_argument("--tile", type=int, default=480, metavar="PIXELS", help="width of a picture")


def cloud(given: argparse.Namespace, paths: list[Path]) -> None:
    source, settings = _source(given, normals=given.normals)

    from hardpix.draw import pictures
    from hardpix.figures.hn import HEADER, first_cloud, label_entries, label_info, wanted_keys

    frames = source.frames(given.split, wanted_keys(source, labels=False, depth=True))
    image = given.image
    tried = (
        range(len(frames)) if image is None else [figure_runs.place_in(frames, _about(source, given), image)]
    )
    found, info = first_cloud(source, frames, tried, settings), label_info(source, settings)
    view = {"width": 2 * given.tile, "turn": given.turn, "tilt": given.tilt}
    tiles = [
        pictures.Tile(
            pictures.cloud(found.points, colors, **view), f"points in colours of the {name}", smooth=True
        )
        for name, colors in found.colors.items()
    ]
    row = [pictures.ColumnGroup("", [found.tile, *tiles])]
    title = f"{_title(given)} in space: {source.info.name}, {given.split} split"
    picture = pictures.grid([row], title=title, tile_width=given.tile, entries=label_entries(info))
    charts.save_picture(picture, paths)
    charts.save_numbers((*HEADER, *info.classes), [found.numbers], paths[0].with_suffix(".csv"))
    ply = paths[0].with_suffix(".ply")
    charts.save_points(found.points, found.colors[given.color], ply)
    print(f"written to {ply}")


def _title(given: argparse.Namespace) -> str:
    return "Labels of height" + (" and normal" if given.normals == 2 else "")


def add_stitch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run directory, also of a run that is not done"
    )


def stitch(given: argparse.Namespace, paths: list[Path]) -> None:
    from hardpix.draw.charts import read_factors, stitch_chart

    factors = read_factors(given.run)
    title = f"Cross-stitch factors of {given.run.resolve().name}"
    charts.save_chart(stitch_chart(factors, title=title), paths)
    charts.save_numbers(("step", "unit", "stream", "value", "std"), factors, paths[0].with_suffix(".csv"))


def _add_data(parser: argparse.ArgumentParser, split: str) -> None:
    parser.add_argument("overrides", nargs="+", metavar="data=NAME", help="the data set and its settings")
    parser.add_argument("--split", default=split, help=f"(default: {split})")
    parser.add_argument(
        "--heights", type=int, choices=BINS, default=10, help="bins of 0.25 m (10, default) or 0.5 m"
    )
    parser.add_argument("--camera", type=float, nargs=4, metavar=("FX", "FY", "CX", "CY"),
                        help="in pixels of the depth, where the data set does not tell it")  # fmt: skip


def _add_normals(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument("--normals", type=int, default=default, choices=(1, 2),
                        help=f"1: heights; 2: horizontal and vertical surfaces apart (default: {default})")  # fmt: skip


def _source(given: argparse.Namespace, *, normals: int) -> tuple[Source, HNSettings]:
    if not any(word.startswith("data=") for word in given.overrides):
        raise ConfigError(f"hardpix figure {given.kind}: name the data set, for example data=nyuv2")
    from hardpix.config.compose import compose, validate
    from hardpix.data.hn_labels import HNSettings
    from hardpix.train.build import make

    cfg = compose(given.overrides)
    validate(cfg)
    edges = tuple(BINS[given.heights] * place for place in range(given.heights))
    camera = None if given.camera is None else tuple(given.camera)
    settings = HNSettings(edges, normals, "gravity", RADIUS, GRAVITY_RADIUS, camera=camera)
    return make(cfg.data.source), settings


def _about(source: Source, given: argparse.Namespace) -> str:
    return f"the {given.split} split of {source.info.name}"


KINDS: dict[str, Kind] = {
    "depth-error": (_add_depth_error, depth_error,
                    "segmentation errors by depth error: the share of wrong pixels in ten bins of |log D - log D*|"),
    "maps": (_add_maps, maps, "hardness maps over epochs: DPE, DSE, their fusion and what the curriculum keeps of it"),
    "sweep": (_add_sweep, sweep, "a score against a swept setting: mean and standard deviation over seeds"),
    "errors": (figure_kinds.add_errors, figure_kinds.errors,
               "errors of a segmenter, true and predicted: and which of them a detail branch repairs"),
    "thresholds": (figure_kinds.add_thresholds, figure_kinds.thresholds,
                   "scores over the threshold of predicted errors: error IoU, hard recall and mIoU after fusion"),
    "deciles": (figure_kinds.add_deciles, figure_kinds.deciles,
                "scores by hardness: mIoU and accuracy in ten groups of equally many pixels, ranked by a hardness map"),
    "ranking": (figure_kinds.add_ranking, figure_kinds.ranking,
                "how hardness maps rank errors: AUROC and average precision of every map of the runs"),
    "ssim": (figure_kinds.add_ssim, figure_kinds.ssim,
             "similarity of two runs' hardness maps: SSIM, averaged over the frames of a split"),
    "evolution": (figure_kinds.add_evolution, figure_kinds.evolution,
                  "a hardness map over training, with loss and prediction on one frame, at the epochs that are kept"),
    "hn-heights": (add_heights, heights,
                   "heights of classes above the floor: of a data set with labels, depth and camera"),
    "hn-labels": (add_labels, labels,
                  "labels of height and normal next to their frames: of a data set with depth, or of data=hn"),
    "hn-cloud": (add_cloud, cloud,
                 "labels of height on a point cloud: a picture of one frame in space, and its points as a PLY file"),
    "stitch": (add_stitch, stitch,
               "cross-stitch factors over training: of a run with model=cross_stitch"),
    "panels": (_add_panels, panels, "predictions of several runs side by side: with the truth and the errors"),
}  # fmt: skip
