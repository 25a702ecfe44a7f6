"""``hardpix figure deciles, ssim, evolution, ranking, errors, thresholds``, and the options that kinds share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardpix import record
from hardpix.draw import charts, pictures
from hardpix.figures import runs as figure_runs
from hardpix.figures.runs import FigureRun
from hardpix.record import IGNORED, covers
from hardpix.train import rundir
from hardpix.train.parent import only_recorded
from hardpix.types import ConfigError

if TYPE_CHECKING:
    from hardpix.data import DataModule
    from hardpix.methods import Method
    from hardpix.ops.hardness import HardMap


MAPS = "true, loss, dpe, dse, hardness, error_probability, entropy or uncertainty"


def _add_split(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add_weights(parser)
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
    add_frames(parser)
    parser.add_argument("--record", type=Path, metavar="FOLDER",
                        help="write the score there as an evaluation of the first run, for hardpix table")  # fmt: skip
    parser.add_argument("--reproduces", type=names, default=[], metavar="CELLS",
                        help="published cells that it stands for: hl/ssim/trainval_vs_train/ssim")  # fmt: skip


def add_evolution(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    _add_map(parser)
    parser.add_argument(
        "--image", default="0", metavar="NAME", help="a frame of the split, or its index from 0"
    )
    parser.add_argument(
        "--epochs", type=epochs, default=[], help="by commas (default: all that the run keeps)"
    )


def deciles(given: argparse.Namespace, paths: list[Path]) -> None:
    _check_limit(given)
    runs, overrides = opened(given)
    if len(runs) > 2:
        raise ConfigError(f"hardpix figure deciles: draws one or two runs, and {len(runs)} are named")
    device = pick_device(given.device)

    from hardpix.figures import hardness, maps
    from hardpix.figures.hardness import decile_chart
    from hardpix.train import results

    data, methods = _built(runs, overrides, given.weights)
    known = {label: results.known_maps(method, data) for label, method in methods.items()}
    name = maps.chosen_map(runs[0], known[runs[0].label], given.map)
    rankings = {label: maps[name] for label, maps in known.items() if name in maps}
    for run in runs[1:]:
        if run.label not in rankings:
            print(f"note: {run.label} has no map {name}, so it is drawn over that of {runs[0].label} alone")
    _start(data, methods, list(rankings.values()), given, device)
    found = results.deciles(methods, rankings, name, data, given.split, given.limit)
    if not next(iter(found.values()))[0].pixels:
        raise ConfigError(f"the {given.split} split of {data.info.name} has no labelled pixel")
    hardness.show_deciles(found)
    about = rankings[runs[0].label].title
    title = f"Scores by hardness: {data_title(given, runs)}"
    charts.save_chart(decile_chart(found, title=title, ranked_by=about), paths)
    rows = [
        (run, by, name, i, *group) for (run, by), groups in found.items() for i, group in enumerate(groups, 1)
    ]
    header = ("run", "ranked_by", "map", "group", "pixels", "miou", "pixel_acc", "low", "high", "tied")
    charts.save_numbers(header, rows, paths[0].with_suffix(".csv"))


def ranking(given: argparse.Namespace, paths: list[Path]) -> None:
    _check_limit(given)
    runs, overrides = opened(given)
    device = pick_device(given.device)

    from hardpix.figures import hardness, maps
    from hardpix.figures.hardness import Ranked, ranking_chart
    from hardpix.train import results

    data, methods = _built(runs, overrides, given.weights)
    known = {label: results.known_maps(method, data) for label, method in methods.items()}
    for note in maps.remarks(runs, methods, data):
        print(f"note: {note}")
    _start(data, methods, [about for maps in known.values() for about in maps.values()], given, device)
    rows = hardness.ranking(methods, known, data, given.split, given.limit)
    hardness.show_ranking(rows)
    title = f"Errors ranked by hardness maps: {data_title(given, runs)}"
    charts.save_chart(ranking_chart(rows, title=title), paths)
    charts.save_numbers(Ranked._fields, rows, paths[0].with_suffix(".csv"))


def ssim(given: argparse.Namespace, paths: list[Path]) -> None:
    check_frames(given)
    _check_limit(given)
    runs, overrides = each_opened(given)
    if len(runs) != 2:
        raise ConfigError(f"hardpix figure ssim: compares the maps of two runs, and {len(runs)} are named")
    device = pick_device(given.device)

    from hardpix.draw.pictures import grid
    from hardpix.figures import hardness
    from hardpix.figures.hardness import FLAT, flat, similarity_rows

    if given.record is not None:
        check_similarity_record(given.record)
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
    values, pairs = hardness.similarities(
        methods, abouts, labels, name, data, given.split, given.limit, shown
    )
    mean = hardness.show_similarities(values, labels, abouts[0].title)
    if flat(pairs):
        print(
            f"note: a map varies by less than {FLAT:g} of its range within each frame drawn: SSIM then is near 1 "
            "whatever it shows"
        )
    picture = grid(
        similarity_rows(pairs, labels, abouts[0].title),
        title=f"SSIM of {abouts[0].title}: {mean:.4f} on {data_title(given, runs)}, {len(values)} frames",
        tile_width=given.tile or 240,
        bar="map low to high",
    )
    charts.save_picture(picture, paths)
    charts.save_numbers(("frame", "ssim"), values, paths[0].with_suffix(".csv"))
    if given.record is not None:
        write_similarity_record(given, runs, data, mean, len(values))


def evolution(given: argparse.Namespace, paths: list[Path]) -> None:
    run, overrides = only_run(given)
    epochs = figure_runs.check_snapshots(run, given.epochs)
    device = pick_device(given.device)

    import numpy as np

    from hardpix.draw.pictures import class_entries
    from hardpix.figures import hardness
    from hardpix.figures import maps as figure_maps
    from hardpix.figures.hardness import evolution_chart
    from hardpix.train import results
    from hardpix.train.results import unnormalize

    data, methods = _built([run], overrides, "last")
    method = methods[run.label]
    known = results.known_maps(method, data)
    name = figure_maps.chosen_map(run, known, given.map)
    maps = {name: known[name], "loss": known["loss"]}
    place = figure_runs.place_of(data, given.split, given.image)
    _start(data, methods, list(known.values()), None, device)
    batch, steps = hardness.evolution(run, method, maps, data, place, given.split, epochs)
    hardness.show_evolution(steps, batch["name"][0], known[name].title)
    truth = batch["label"][0].cpu().numpy()
    true: Any = batch.get("hardness")
    present = {int(c) for labels in (truth, *(step.pred for step in steps)) for c in set(labels.flat)}
    title = f"{run.label}: {known[name].title} on {batch['name'][0]} of {data_title(given, [run])}"
    figure = evolution_chart(
        steps, unnormalize(batch["image"][0], data.info), truth, data.info,
        title=title, map_title=known[name].title, entries=class_entries(present, data.info),
        true=None if true is None else np.where(truth == data.info.ignore_index, np.nan, true[0].cpu().numpy()),
    )  # fmt: skip
    charts.save_chart(figure, paths)
    header = ("epoch", "iteration", "map", "spearman", "wrong")
    rows = [(step.epoch, step.iteration, name, step.rho, step.wrong) for step in steps]
    charts.save_numbers(header, rows, paths[0].with_suffix(".csv"))


def _check_limit(given: argparse.Namespace) -> None:
    if given.limit is not None and given.limit < 1:
        raise ConfigError(f"--limit {given.limit}: must be at least 1 frame")


def _drawn(given: argparse.Namespace, data: DataModule) -> list[str]:
    """The names of the frames to draw, which are among those that count."""
    if given.limit is not None and given.frames:
        raise ConfigError("--frames and --limit: give one of the two, drawn are only frames that count")
    places = figure_runs.choose_frames(data, given.split, given.frames, given.limit or given.count)
    if given.limit is not None:
        spread = pictures.spread(len(places), given.count)
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
    from hardpix.train import results

    results.use(data, list(methods.values()), maps)
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
    from hardpix.figures import maps
    from hardpix.train import results

    known = [results.known_maps(method, data) for method in methods]
    name = maps.chosen_map(runs[0], known[0], wanted)
    maps.chosen_map(runs[1], known[1], name)
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


# Options that several kinds of ``hardpix figure`` share.


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


def data_title(given: argparse.Namespace, runs: Sequence[FigureRun]) -> str:
    return f"{runs[0].data_name}, {given.split} split"


def pick_device(name: str) -> str:
    from hardpix.predict import find_device

    return find_device(name)


# ``hardpix figure errors`` and ``thresholds``: what is known of a segmenter's errors, and what a repair
# changes.


def add_errors(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add_weights(parser)
    add_frames(parser)


def add_thresholds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or directories of runs")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--lines", default="method", metavar="FACTOR",
                        help="a line for each value of this setting (default: method)")  # fmt: skip
    parser.add_argument("--published", action="store_true", help="add the curve that the paper prints")


def errors(given: argparse.Namespace, paths: list[Path]) -> None:
    check_frames(given)
    run, overrides = only_run(given)
    check_method(run)
    device = pick_device(given.device)

    from hardpix.draw.pictures import class_entries, grid
    from hardpix.figures.errors import CHANGE_ENTRIES, ERROR_ENTRIES, HEADER, error_rows, summary

    data, method = figure_runs.build(run, overrides, given.weights, device)
    places = figure_runs.choose_frames(data, given.split, given.frames, given.count)
    width = given.tile or 240
    rows, numbers, present = error_rows(method, data, places, given.split, width)
    repairs = len(rows[0]) > 3
    picture = grid(
        rows,
        title=f"{run.label}, {data_title(given, [run])}, {summary(numbers)}",
        tile_width=width,
        entries=[*class_entries(present, data.info), *ERROR_ENTRIES, *(CHANGE_ENTRIES if repairs else [])],
        bar=f"P(error) 0 to 1, outlined above t = {method.t:g}",
    )
    charts.save_picture(picture, paths)
    charts.save_numbers(HEADER, numbers, paths[0].with_suffix(".csv"))


def check_method(run: figure_runs.FigureRun) -> None:
    """Raise unless the run's method predicts a segmenter's errors."""
    from hardpix.train.build import method_class

    method = method_class(run.cfg)
    if not hasattr(method, "error_logits"):
        raise ConfigError(
            f"{run.directory} is a run of {method.__name__}, which predicts no errors of a segmenter: name a run of "
            "method=error_prediction or method=detail"
        )


def thresholds(given: argparse.Namespace, paths: list[Path]) -> None:
    from hardpix.figures.curves import draw_thresholds

    for note in draw_thresholds(given.runs, given.split, given.lines, given.published, given.ignore, paths):
        print(f"note: {note}")


# The SSIM of two runs' hardness maps as a record for tables.


OTHER = "other"  # prefix of the second run's factors


def check_similarity_record(folder: Path) -> None:
    """Raise where a record would be replaced."""
    if (folder / record.FILE_NAME).exists():
        raise ConfigError(f"--record {folder}: already holds a {record.FILE_NAME}; name a new folder")
    taken = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    if taken is not None:
        raise ConfigError(f"--record {folder}: {taken} is a file; name a folder")


def write_similarity_record(
    given: argparse.Namespace, runs: Sequence[FigureRun], data: DataModule, mean: float, frames: int
) -> None:
    """``run.json`` of an evaluation of the first run, whose one metric is ``SPLIT/ssim``."""
    first, second = (record.read(run.directory) for run in runs)
    factors = record.flatten(rundir.plain(runs[0].cfg)) | {
        "evaluation.split": given.split,
        "evaluation.weights": given.weights,
        "reproduces": given.reproduces,
    }
    factors |= only_recorded(first)
    factors |= {f"{OTHER}.{key}": value for key, value in second.factors.items() if not covers(IGNORED, key)}
    done = replace(
        first, run_id=rundir.new_id(), parent=first.run_id, status="done", error=None, factors=factors,
        metrics={f"{given.split}/ssim": mean}, started=rundir.utc_now(), dataset=data.info.name,
        frames=first.frames | {f"{data.info.name}/{given.split}": frames},
    )  # fmt: skip
    given.record.mkdir(parents=True, exist_ok=True)
    print(f"written to {record.write(done, given.record)}")
