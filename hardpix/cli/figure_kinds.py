"""``hardpix figure deciles, ssim, evolution, ranking``: what the hardness maps of runs are worth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardpix.report import save
from hardpix.run import figure_options as options
from hardpix.run import figure_runs
from hardpix.types import ConfigError

if TYPE_CHECKING:
    from hardpix.data import DataModule
    from hardpix.methods import Method
    from hardpix.ops.hard_map import HardMap
    from hardpix.run.figure_runs import FigureRun

MAPS = "true, loss, dpe, dse, hardness, error_probability, entropy or uncertainty"


def _add_split(parser: argparse.ArgumentParser) -> None:
    options.add_runs(parser)
    options.add_weights(parser)
    parser.add_argument("--limit", type=int, metavar="N",
                        help="so many frames of the split, evenly spaced (default: all)")  # fmt: skip


def _add_map(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--map", metavar="NAME", help=f"{MAPS} (default: the run's own, else uncertainty)")


def add_deciles(parser: argparse.ArgumentParser) -> None:
    _add_split(parser)
    _add_map(parser)


def add_ranking(parser: argparse.ArgumentParser) -> None:
    _add_split(parser)


def add_ssim(parser: argparse.ArgumentParser) -> None:
    _add_split(parser)
    _add_map(parser)
    options.add_frames(parser)
    parser.add_argument("--record", type=Path, metavar="FOLDER",
                        help="write the score there as an evaluation of the first run, for hardpix table")  # fmt: skip
    parser.add_argument("--reproduces", type=options.names, default=[], metavar="CELLS",
                        help="published cells that it stands for: hl/ssim/trainval_vs_train/ssim")  # fmt: skip


def add_evolution(parser: argparse.ArgumentParser) -> None:
    options.add_runs(parser)
    _add_map(parser)
    parser.add_argument(
        "--image", default="0", metavar="NAME", help="a frame of the split, or its index from 0"
    )
    parser.add_argument(
        "--epochs", type=options.epochs, default=[], help="by commas (default: all that the run keeps)"
    )


def deciles(given: argparse.Namespace, paths: list[Path]) -> None:
    _check_limit(given)
    runs, overrides = options.opened(given)
    if len(runs) > 2:
        raise ConfigError(f"hardpix figure deciles: draws one or two runs, and {len(runs)} are named")
    device = options.device(given.device)

    from hardpix.report.hardness_charts import decile_chart
    from hardpix.run import hard_maps, hardness_rows, hardness_tables

    data, methods = _built(runs, overrides, given.weights)
    known = {label: hard_maps.known_maps(method, data) for label, method in methods.items()}
    name = hard_maps.chosen_map(runs[0], known[runs[0].label], given.map)
    rankings = {label: maps[name] for label, maps in known.items() if name in maps}
    for run in runs[1:]:
        if run.label not in rankings:
            print(f"note: {run.label} has no map {name}, so it is drawn over that of {runs[0].label} alone")
    _start(data, methods, list(rankings.values()), given, device)
    found = hardness_rows.deciles(methods, rankings, name, data, given.split, given.limit)
    if not next(iter(found.values()))[0].pixels:
        raise ConfigError(f"the {given.split} split of {data.info.name} has no labelled pixel")
    hardness_tables.show_deciles(found)
    about = rankings[runs[0].label].title
    title = f"Scores by hardness: {options.about(given, runs)}"
    save.save_chart(decile_chart(found, title=title, ranked_by=about), paths)
    rows = [
        (run, by, name, i, *group) for (run, by), groups in found.items() for i, group in enumerate(groups, 1)
    ]
    header = ("run", "ranked_by", "map", "group", "pixels", "miou", "pixel_acc", "low", "high", "tied")
    save.save_numbers(header, rows, paths[0].with_suffix(".csv"))


def ranking(given: argparse.Namespace, paths: list[Path]) -> None:
    _check_limit(given)
    runs, overrides = options.opened(given)
    device = options.device(given.device)

    from hardpix.report.hardness_charts import Ranked, ranking_chart
    from hardpix.run import hard_maps, hardness_rows, hardness_tables

    data, methods = _built(runs, overrides, given.weights)
    known = {label: hard_maps.known_maps(method, data) for label, method in methods.items()}
    for note in hard_maps.remarks(runs, methods, data):
        print(f"note: {note}")
    _start(data, methods, [about for maps in known.values() for about in maps.values()], given, device)
    rows = hardness_rows.ranking(methods, known, data, given.split, given.limit)
    hardness_tables.show_ranking(rows)
    title = f"Errors ranked by hardness maps: {options.about(given, runs)}"
    save.save_chart(ranking_chart(rows, title=title), paths)
    save.save_numbers(Ranked._fields, rows, paths[0].with_suffix(".csv"))


def ssim(given: argparse.Namespace, paths: list[Path]) -> None:
    options.check_frames(given)
    _check_limit(given)
    runs, overrides = options.each_opened(given)
    if len(runs) != 2:
        raise ConfigError(f"hardpix figure ssim: compares the maps of two runs, and {len(runs)} are named")
    device = options.device(given.device)

    from hardpix.report.grid import grid
    from hardpix.report.hardness_charts import FLAT, flat, similarity_rows
    from hardpix.run import hardness_rows, hardness_tables, similarity_record

    if given.record is not None:
        similarity_record.check(given.record)
    built = [figure_runs.build(run, overrides, given.weights, "cpu") for run in runs]
    data, methods = built[0][0], [method for _, method in built]
    name, abouts = _comparable(runs, methods, data, given.map)
    if runs[0].data_name != runs[1].data_name:
        print(
            f"note: both see the frames of {runs[0].label}, {data.info.name}; name first the run whose they are to be"
        )
    shown = _drawn(given, data)
    _start(data, dict(enumerate(methods)), abouts, given, device)  # type: ignore[arg-type]
    labels = [run.label for run in runs]
    values, pairs = hardness_rows.similarities(
        methods, abouts, labels, name, data, given.split, given.limit, shown
    )
    mean = hardness_tables.show_similarities(values, labels, abouts[0].title)
    if flat(pairs):
        print(
            f"note: a map varies by less than {FLAT:g} of its range within each frame drawn: SSIM then is near 1 "
            "whatever it shows"
        )
    picture = grid(
        similarity_rows(pairs, labels, abouts[0].title),
        title=f"SSIM of {abouts[0].title}: {mean:.4f} on {options.about(given, runs)}, {len(values)} frames",
        tile_width=given.tile or 240,
        bar="map low to high",
    )
    save.save_picture(picture, paths)
    save.save_numbers(("frame", "ssim"), values, paths[0].with_suffix(".csv"))
    if given.record is not None:
        similarity_record.write(given, runs, data, mean, len(values))


def evolution(given: argparse.Namespace, paths: list[Path]) -> None:
    run, overrides = options.only_run(given)
    epochs = figure_runs.check_snapshots(run, given.epochs)
    device = options.device(given.device)

    import numpy as np

    from hardpix.report.figures import class_entries
    from hardpix.report.hardness_charts import evolution_chart
    from hardpix.run import hard_maps, hardness_rows, hardness_tables
    from hardpix.run.panels import unnormalize

    data, methods = _built([run], overrides, "last")
    method = methods[run.label]
    known = hard_maps.known_maps(method, data)
    name = hard_maps.chosen_map(run, known, given.map)
    maps = {name: known[name], "loss": known["loss"]}
    place = figure_runs.place_of(data, given.split, given.image)
    _start(data, methods, list(known.values()), None, device)
    batch, steps = hardness_rows.evolution(run, method, maps, data, place, given.split, epochs)
    hardness_tables.show_evolution(steps, batch["name"][0], known[name].title)
    truth = batch["label"][0].cpu().numpy()
    true: Any = batch.get("hardness")
    present = {int(c) for labels in (truth, *(step.pred for step in steps)) for c in set(labels.flat)}
    title = f"{run.label}: {known[name].title} on {batch['name'][0]} of {options.about(given, [run])}"
    figure = evolution_chart(
        steps, unnormalize(batch["image"][0], data.info), truth, data.info,
        title=title, map_title=known[name].title, entries=class_entries(present, data.info),
        true=None if true is None else np.where(truth == data.info.ignore_index, np.nan, true[0].cpu().numpy()),
    )  # fmt: skip
    save.save_chart(figure, paths)
    header = ("epoch", "iteration", "map", "spearman", "wrong")
    rows = [(step.epoch, step.iteration, name, step.rho, step.wrong) for step in steps]
    save.save_numbers(header, rows, paths[0].with_suffix(".csv"))


def _check_limit(given: argparse.Namespace) -> None:
    if given.limit is not None and given.limit < 1:
        raise ConfigError(f"--limit {given.limit}: must be at least 1 frame")


def _drawn(given: argparse.Namespace, data: DataModule) -> list[str]:
    """The names of the frames to draw, which are among those that count."""
    if given.limit is not None and given.frames:
        raise ConfigError("--frames and --limit: give one of the two, drawn are only frames that count")
    places = figure_runs.choose_frames(data, given.split, given.frames, given.limit or given.count)
    if given.limit is not None:
        spread = figure_runs.spread(len(places), given.count)
        places = [places[i] for i in spread]
    frames = data.evaluation_dataset(given.split).frames
    return [frames.name(place) for place in places]


def _built(
    runs: Sequence[FigureRun], overrides: list[str], weights: str
) -> tuple[DataModule, dict[str, Method]]:
    """The first run's data, and the methods by label, on the CPU: what is wrong shows before a GPU is taken."""
    built = {run.label: figure_runs.build(run, overrides, weights, "cpu") for run in runs}
    return built[runs[0].label][0], {label: method for label, (_, method) in built.items()}


def _start(
    data: DataModule,
    methods: dict[str, Method],
    maps: Sequence[HardMap],
    given: argparse.Namespace | None,
    device: str,
) -> None:
    """Load what is needed, to the device; with ``given`` say how much there is to do."""
    from hardpix.run import hard_maps

    hard_maps.use(data, list(methods.values()), maps)
    if given is not None:
        total = len(data.evaluation_dataset(given.split))
        frames = total if given.limit is None else min(total, given.limit)
        print(f"{frames} frames of {data.info.name} {given.split}, {len(methods)} run(s)", flush=True)
    for method in methods.values():
        method.to(device)


def _comparable(
    runs: Sequence[FigureRun], methods: Sequence[Method], data: DataModule, wanted: str | None
) -> tuple[str, list[HardMap]]:
    """The name of the map and what it is in each run; raises unless both have it, with one meaning and range."""
    from hardpix.run import hard_maps

    known = [hard_maps.known_maps(method, data) for method in methods]
    name = hard_maps.chosen_map(runs[0], known[0], wanted)
    hard_maps.chosen_map(runs[1], known[1], name)
    abouts = [maps[name] for maps in known]
    if abouts[0].title != abouts[1].title:
        raise ConfigError(
            f"--map {name}: is {abouts[0].title} in {runs[0].directory} and {abouts[1].title} in {runs[1].directory}, "
            "which are not to be compared; name another map"
        )
    if not abouts[0].bounded:
        raise ConfigError(f"--map {name}: has no upper end, and SSIM needs a known range; name another map")
    if "label" in abouts[1].needs and methods[0].info.classes != methods[1].info.classes:
        raise ConfigError(
            f"--map {name}: is made of the labels, and {runs[1].directory} was trained on other classes; name another "
            "map"
        )
    return name, abouts
