"""``hardpix figure``: figures drawn from runs, as PNG and PDF, with a CSV of their numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from hardpix.arguments import Parser
from hardpix.report import save
from hardpix.run import figure_errors, figure_hardness, figure_hn, figure_runs
from hardpix.run import figure_options as options
from hardpix.types import ConfigError


def main(arguments: list[str]) -> int:
    parser = Parser("hardpix figure", description="Draw figures from runs: PNG, PDF and CSV.")
    commands = parser.add_subparsers(dest="kind", metavar="KIND")
    for name, (add, _, text) in KINDS.items():
        one = commands.add_parser(name, help=text.split(":")[0], description=text)
        one.add_argument("--out", type=Path, required=True, metavar="FILE_OR_FOLDER",
                         help="a file that ends in .png or .pdf, or a folder for both; a .csv lies beside")  # fmt: skip
        one.add_argument("--ignore", type=options.names, default=[], metavar="KEYS",
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
    paths = save.targets(given.out, arguments[0])
    KINDS[arguments[0]][1](given, paths)
    for path in [*paths, paths[0].with_suffix(".csv")]:
        print(f"written to {path}")
    return 0


def _add_depth_error(parser: argparse.ArgumentParser) -> None:
    options.add_runs(parser)
    options.add_weights(parser)
    parser.add_argument("--depth-from", type=Path, metavar="RUN",
                        help="draw all runs over the depth error of this one")  # fmt: skip


def _add_maps(parser: argparse.ArgumentParser) -> None:
    options.add_runs(parser)
    options.add_frames(parser)
    parser.add_argument(
        "--epochs", type=options.epochs, default=[], help="by commas (default: all that the run keeps)"
    )
    parser.add_argument("--maps", type=options.names, default=[],
                        help="of dpe,dse,hardness,curriculum (default: all of the run's loss)")  # fmt: skip


def _add_panels(parser: argparse.ArgumentParser) -> None:
    options.add_runs(parser)
    options.add_weights(parser)
    options.add_frames(parser)


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
    places = [Path(word).resolve() for word in given.runs if not options.OVERRIDE.match(word)]
    extra = [] if given.depth_from is None or given.depth_from.resolve() in places else [given.depth_from]
    opened, overrides = options.opened(given, *extra)
    runs = opened[: len(opened) - len(extra)]
    device = options.device(given.device)

    from hardpix.report.charts import depth_error_chart
    from hardpix.report.depth_bins import binned
    from hardpix.run.figure_kinds import depth_errors

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
    title = f"Segmentation errors by depth error: {options.about(given, runs)}"
    save.save_chart(depth_error_chart(bins, title=title, shared=source.label if source else ""), paths)
    header = ("run", "depth_from", "bin", "low", "high", "pixels", "wrong", "rate")
    rows = [
        (run, source.label if source else run, i + 1, b.low, b.high, b.pixels, b.wrong, b.rate)
        for run, members in bins.items()
        for i, b in enumerate(members)
    ]
    save.save_numbers(header, rows, paths[0].with_suffix(".csv"))


def maps(given: argparse.Namespace, paths: list[Path]) -> None:
    options.check_frames(given)
    run, overrides = options.only_run(given)
    epochs = figure_runs.check_snapshots(run, given.epochs)
    device = options.device(given.device)

    from hardpix.report.grid import grid
    from hardpix.run.figure_kinds import LEFT_OUT, fusion_title, known_maps, map_rows

    data, method = figure_runs.build(run, overrides, "last", device)
    figure_runs.check_depth(run, method, data)
    names = known_maps(run, given.maps)
    places = figure_runs.choose_frames(data, given.split, given.frames, given.count)
    rows, numbers = map_rows(run, data, method, places, given.split, epochs, names)
    weight = f"; M: {fusion_title(run)}" if {"hardness", "curriculum"} & set(names) else ""
    picture = grid(
        rows,
        title=f"{run.label}: hardness maps on {options.about(given, [run])}{weight}",
        tile_width=given.tile or 160,
        entries=[("left out or undefined", LEFT_OUT)],
        bar="map low to high",
    )
    save.save_picture(picture, paths)
    save.save_numbers(("frame", "epoch", "map", "mean", "kept"), numbers, paths[0].with_suffix(".csv"))


def panels(given: argparse.Namespace, paths: list[Path]) -> None:
    options.check_frames(given)
    runs, overrides = options.opened(given)
    device = options.device(given.device)

    from hardpix.report.figures import WRONG, class_entries
    from hardpix.report.grid import grid
    from hardpix.run.figure_kinds import panel_rows

    built = {run.label: figure_runs.build(run, overrides, given.weights, device) for run in runs}
    data = built[runs[0].label][0]
    places = figure_runs.choose_frames(data, given.split, given.frames, given.count)
    rows, numbers, present = panel_rows({k: m for k, (_, m) in built.items()}, data, places, given.split)
    picture = grid(
        rows,
        title=f"Predictions on {options.about(given, runs)}",
        tile_width=given.tile or 240,
        entries=[*class_entries(present, data.info), ("wrong", WRONG)],
    )
    save.save_picture(picture, paths)
    save.save_numbers(("frame", "run", "pixels", "wrong", "rate"), numbers, paths[0].with_suffix(".csv"))


def sweep(given: argparse.Namespace, paths: list[Path]) -> None:
    from hardpix.report.sweep import draw_sweep

    for note in draw_sweep(given.runs, given.x, given.metric, given.lines, given.ignore, paths):
        print(f"note: {note}")


def _say_amount(data, split: str, runs: int) -> None:
    print(
        f"{len(data.evaluation_dataset(split))} frames of {data.info.name} {split}, {runs} run(s)", flush=True
    )


Kind = tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace, list[Path]], None], str]
KINDS: dict[str, Kind] = {
    "depth-error": (_add_depth_error, depth_error,
                    "segmentation errors by depth error: the share of wrong pixels in ten bins of |log D - log D*|"),
    "maps": (_add_maps, maps, "hardness maps over epochs: DPE, DSE, their fusion and what the curriculum keeps of it"),
    "sweep": (_add_sweep, sweep, "a score against a swept setting: mean and standard deviation over seeds"),
    "errors": (figure_errors.add_errors, figure_errors.errors,
               "errors of a segmenter, true and predicted: and which of them a detail branch repairs"),
    "thresholds": (figure_errors.add_thresholds, figure_errors.thresholds,
                   "scores over the threshold of predicted errors: error IoU, hard recall and mIoU after fusion"),
    "deciles": (figure_hardness.add_deciles, figure_hardness.deciles,
                "scores by hardness: mIoU and accuracy in ten groups of equally many pixels, ranked by a hardness map"),
    "ranking": (figure_hardness.add_ranking, figure_hardness.ranking,
                "how hardness maps rank errors: AUROC and average precision of every map of the runs"),
    "ssim": (figure_hardness.add_ssim, figure_hardness.ssim,
             "similarity of two runs' hardness maps: SSIM, averaged over the frames of a split"),
    "evolution": (figure_hardness.add_evolution, figure_hardness.evolution,
                  "a hardness map over training: beside loss and prediction on one frame, at the epochs that are kept"),
    "hn-heights": (figure_hn.add_heights, figure_hn.heights,
                   "heights of classes above the floor: of a data set with labels, depth and camera"),
    "hn-labels": (figure_hn.add_labels, figure_hn.labels,
                  "labels of height and normal beside their frames: of a data set with depth, or of data=hn"),
    "stitch": (figure_hn.add_stitch, figure_hn.stitch,
               "cross-stitch factors over training: of a run with model=cross_stitch"),
    "panels": (_add_panels, panels, "predictions of several runs side by side: with the truth and the errors"),
}  # fmt: skip
