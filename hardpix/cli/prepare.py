"""``hardpix data prepare`` and ``hardpix data hn-labels``: make data sets on disk."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import hardpix
from hardpix.config.command_line import command_words
from hardpix.record import check_output
from hardpix.types import ConfigError, DataError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from hardpix.data.hn_labels import HNSettings, Tally
    from hardpix.data.prepare.job import Plan
    from hardpix.data.prepare.recipe import Journal, Part, Recipe
    from hardpix.data.source import Source


SHOWN = 20  # faults that are printed
BOOLS = {"true": True, "false": False}


def add_prepare(commands: Any) -> None:
    parser = commands.add_parser(
        "prepare",
        help="unpack and convert what you downloaded of a data set",
        description="Turn the published files of a data set into what its reader reads. Nothing is downloaded: "
        "without --from it says where the files come from. An interrupted command goes on when it is repeated.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the data set; --list shows them")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="options of the data set's recipe")
    parser.add_argument("--list", action="store_true", help="the data sets there are recipes for")
    parser.add_argument(
        "--from",
        dest="inputs",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="archives, single files, or folders that hold them or what was unpacked from them",
    )
    parser.add_argument("--to", dest="out", type=Path, metavar="DIR", help="a new folder for the result")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a CPU core)")


def run_prepare(given: argparse.Namespace) -> int:
    if given.list:
        return _list()
    inputs, more = _split(given.inputs or [])
    words = [word for word in (given.name, *given.options, *more) if word is not None]
    if not words or "=" in words[0]:
        raise ConfigError("hardpix data prepare: name the data set, or see them all with --list")
    recipe = make_recipe(words[0], words[1:])
    if given.workers is not None and given.workers < 1:
        raise ConfigError(f"--workers {given.workers}: must be 1 or more")
    if not inputs:
        if given.out:
            raise ConfigError("--from is missing: the files you downloaded, or a folder that holds them")
        print(_how(recipe, words[1:]))
        return 0
    if given.out is None:
        raise ConfigError("--to is missing: a new folder for the result")
    check_output("--to", given.out, folder=True)
    return _prepare(recipe, inputs, given.out, given.workers or _cores())


def make_recipe(name: str, words: Sequence[str]) -> Recipe:
    """The recipe with its options from ``key=value`` words; ``ConfigError`` for what does not exist or fit."""
    from hardpix.config.compose import nearest
    from hardpix.data.prepare import RECIPES, find_recipe

    if name not in RECIPES:
        raise ConfigError(f"there is no recipe for {name!r}{nearest(name, list(RECIPES))}")
    recipe = find_recipe(name)
    types = _option_types(recipe)
    options = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{word}: must be an option of {name} as key=value; paths follow --from")
        if key not in types:
            hint = nearest(key, list(types)) if types else "; it has none"
            raise ConfigError(f"{key}: no such option of {name}{hint}")
        options[key] = _value(key, text, types[key])
    return recipe(**options)


def _option_types(recipe: type[Recipe]) -> dict[str, Any]:
    if not is_dataclass(recipe):
        return {}
    hints = get_type_hints(recipe)
    return {field.name: hints[field.name] for field in fields(recipe)}


def _value(key: str, text: str, kind: Any) -> Any:
    try:
        return BOOLS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        right = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise ConfigError(f"{key}={text}: must be {right}") from None


def _split(values: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The paths of --from, and options that were written behind them."""
    options = [v for v in values if v.partition("=")[0].isidentifier() and "=" in v and not Path(v).exists()]
    return [Path(v) for v in values if v not in options], options


def _list() -> int:
    from hardpix.data.prepare import RECIPES, find_recipe

    recipes = [find_recipe(name) for name in sorted(RECIPES)]
    width = max((len(name) for name in RECIPES), default=0)
    for recipe in recipes:
        print(f"{recipe.name:<{width}}  {recipe.title}\n{'':<{width}}  {recipe.page}")
    return 0


def _how(recipe: Recipe, options: Sequence[str]) -> str:
    """Where the files come from, and the command to give when they are there."""
    width = max(len(part.name) for part in recipe.parts)
    folder = Path(os.environ.get("HARDPIX_DATA", "data")) / recipe.name
    command = [
        "hardpix",
        "data",
        "prepare",
        recipe.name,
        *options,
        "--from",
        "downloads",
        "--to",
        str(folder),
    ]
    lines = [
        recipe.title,
        f"page:     {recipe.page}",
        f"licence:  {recipe.licence}",
        "Nothing is downloaded for you. Files to get from the page:",
        *(f"  {part.name:<{width}}  {_what(part)}" for part in recipe.parts),
    ]
    if is_dataclass(recipe):
        shown = ", ".join(f"{key}={value}" for key, value in asdict(recipe).items())
        lines += [f"options:  {shown}"] if shown else []
    return "\n".join([*lines, f"Then, if they are in the folder downloads:\n  {shlex.join(command)}"])


def _what(part: Part) -> str:
    from hardpix.data.prepare.job import size_text

    size = f", {size_text(part.size)}" if part.size else ""
    return f"{part.what}{size}{'' if part.needed else ' (can be left out)'}"


def _prepare(recipe: Recipe, inputs: Sequence[Path], out: Path, workers: int) -> int:
    from hardpix.data.prepare import job
    from hardpix.data.prepare import recipe as journal
    from hardpix.data.prepare.job import gather
    from hardpix.data.prepare.recipe import progress

    options: dict[str, Any] = asdict(recipe) if is_dataclass(recipe) else {}
    state = journal.begin_journal(out, journal.Journal(recipe.name, options, hardpix.__version__))
    if state.status == "done" and _nothing_new(inputs, recipe, state):
        job.clean(out)
        print(f"{out} is already prepared; train with {command_words(recipe.use(out))}")
        return 0
    print(f"{recipe.title}\npage:     {recipe.page}\nlicence:  {recipe.licence}")
    state.given = sorted({*state.given, *(str(path.resolve()) for path in inputs)})
    try:
        plan = job.make_plan(recipe, gather(inputs, recipe.parts), out, state, print)
        _print_plan(plan)
        with progress() as bar:
            state = job.run(plan, state, workers, bar)
    except OSError as error:
        raise DataError(f"{out}: {error}; fix that and rerun the same command to continue") from error
    except KeyboardInterrupt:
        print("hardpix: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return _prepare_summary(plan, state)


def _nothing_new(paths: Sequence[Path], recipe: Recipe, state: Journal) -> bool:
    """Whether a finished command is repeated, be the files still there or not."""
    from hardpix.data.prepare.job import gather

    if not {str(path.resolve()) for path in paths} <= set(state.given):
        return False
    try:
        return all(item.is_folder or item.name in state.inputs for item in gather(paths, recipe.parts))
    except DataError:
        return True


def _print_plan(plan: Plan) -> None:
    from hardpix.data.prepare.job import size_text

    for unpacking in plan.unpackings:
        members, wanted = len(unpacking.members), len(unpacking.wanted)
        count = f"{members} of {wanted} files" if members < wanted else f"{wanted} files"
        print(f"unpack:   {unpacking.item.path} ({count}, {size_text(unpacking.size)})")
    for item in plan.inputs:
        if not item.is_archive:
            print(f"use:      {item.path}")
    print(
        f"disk:     {size_text(plan.missing)} to unpack, removed at the end; {size_text(plan.free)} are free"
    )


def _prepare_summary(plan: Plan, state: Journal) -> int:
    from hardpix.data.prepare import job

    out, use = plan.out, command_words(plan.recipe.use(plan.out))
    if not state.faults:
        print(f"prepared {out}; train with {use}")
        return 0
    faults = job.read_faults(out)
    print(*faults[:SHOWN], sep="\n", file=sys.stderr)
    if len(faults) > SHOWN:
        print(f"... and {len(faults) - SHOWN} more", file=sys.stderr)
    print(
        f"{len(faults)} files could not be used (all in {out / job.LOG}); the rest is in {out}. Repair or download "
        f"them again and rerun the same command: it makes what is missing."
        + f" For that, {out / job.UNPACKED} stays."
        * (out / job.UNPACKED).is_dir()
    )
    return 1


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ``hardpix data hn-labels``: labels of height and normal from depth, as a data set to pre-train on.


BINS = {10: 0.25, 5: 0.5}  # number of height bins -> metres each, the last one without end
RADIUS, GRAVITY_RADIUS = 3, 10  # pixels; Gupta et al. 2014


def add_hn_labels(commands: Any) -> None:
    parser = commands.add_parser(
        "hn-labels",
        help="labels of height and normal from depth, to pre-train on",
        description="Label every pixel of a data set with depth by its height above the floor and whether its "
        "surface is horizontal or vertical. Frames whose floor is not found are left out. Train on the result with "
        "data=hn data.source.root=DIR. An interrupted command goes on when it is repeated. NYUv2 needs --crop 45 40 "
        "424 560: in its white border depth is made up, and passes for a floor.",
    )
    parser.add_argument("overrides", nargs="+", help="the data set, such as data=nyuv2 data.source.root=PATH")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--splits", nargs="+", help="default: those of training and validation")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    bins = parser.add_mutually_exclusive_group()
    bins.add_argument(
        "--heights", type=int, choices=BINS, default=10, help="bins of 0.25 m (10, default) or 0.5 m (5)"
    )
    bins.add_argument(
        "--height-edges",
        type=float,
        nargs="+",
        metavar="M",
        help="start of each height bin, in metres from 0",
    )
    separate = "2: separate horizontal from vertical (default); 1: do not"
    parser.add_argument("--normals", type=int, choices=(1, 2), default=2, help=separate)
    parser.add_argument("--up", choices=("gravity", "manhattan"), default="gravity", help="default: gravity")
    parser.add_argument(
        "--radius", type=int, default=RADIUS, metavar="R", help=f"of the windows of normals ({RADIUS})"
    )
    parser.add_argument(
        "--gravity-radius",
        type=int,
        default=GRAVITY_RADIUS,
        metavar="R",
        help=f"of the windows that the up direction is found with ({GRAVITY_RADIUS})",
    )
    parser.add_argument(
        "--crop",
        type=int,
        nargs=4,
        metavar=("TOP", "LEFT", "H", "W"),
        help="label and write this part of each frame alone, in pixels of the depth from 0",
    )
    parser.add_argument(
        "--camera",
        type=float,
        nargs=4,
        metavar=("FX", "FY", "CX", "CY"),
        help="in pixels of the depth, the first one's centre at 0 0, where the data set does not tell it",
    )
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="only each N-th frame of each split"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only so many frames of each split, evenly spaced"
    )


def run_hn_labels(given: argparse.Namespace) -> int:
    if not any(o.startswith("data=") for o in given.overrides):
        raise ConfigError("hardpix data hn-labels: name the data set, for example data=nyuv2")
    if given.workers is not None and given.workers < 1:
        raise ConfigError(f"--workers {given.workers}: must be at least 1")
    check_output("--out", given.out, folder=True)
    from hardpix.config.compose import validate

    cfg = _composed(given.overrides)
    validate(cfg)

    from hardpix import record
    from hardpix.data.hn_labels import Choice, make_labels
    from hardpix.data.prepare.recipe import progress
    from hardpix.train.build import make
    from hardpix.train.rundir import plain

    settings = _settings(given)
    choice = Choice(given.every, given.limit)
    source: Source = make(cfg.data.source)
    splits = given.splits or _usual_splits(cfg, source)
    try:
        with progress() as bar:
            tallies, faults = make_labels(
                source,
                record.flatten(plain(cfg.data.source)),
                splits,
                given.out,
                settings,
                choice,
                workers=given.workers or _cores(),
                bar=bar,
                say=print,
            )
    except OSError as error:
        raise DataError(f"{given.out}: {error}; fix that and rerun the same command to continue") from error
    except KeyboardInterrupt:
        print("hardpix: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    bins = {"data.source.heights": len(settings.height_edges), "data.source.normals": settings.normals}
    usual = {"data.source.heights": 10, "data.source.normals": 2}
    return _hn_summary(given.out, tallies, faults, {k: str(v) for k, v in bins.items() if v != usual[k]})


def _composed(overrides: list[str]) -> DictConfig:
    """Labels are not read, so data of one's own need no classes here."""
    from omegaconf import OmegaConf

    from hardpix.config.compose import compose

    cfg = compose(overrides)
    if OmegaConf.is_missing(cfg.data.source, "classes"):
        return compose([*overrides, "data.source.classes=[any]"])
    return cfg


def _settings(given: argparse.Namespace) -> HNSettings:
    from hardpix.data.hn_labels import HNSettings

    edges = given.height_edges or [BINS[given.heights] * place for place in range(given.heights)]
    return HNSettings(
        height_edges=tuple(map(float, edges)),
        normals=given.normals,
        up=given.up,
        radius=given.radius,
        gravity_radius=given.gravity_radius,
        crop=None if given.crop is None else tuple(given.crop),
        camera=None if given.camera is None else tuple(given.camera),
    )


def _usual_splits(cfg: DictConfig, source: Source) -> list[str]:
    """Those of training and validation, where the data set has the latter."""
    train, val = cfg.data.train_split, cfg.data.val_split
    return [train, *([val] if val in source.splits else [])]


def _hn_summary(out: Path, tallies: Mapping[str, Tally], faults: list[str], bins: dict[str, str]) -> int:
    from rich.console import Console

    from hardpix.data.sets.hn import LOG

    Console().print(_table(tallies))
    print(*faults[:SHOWN], sep="\n" if faults else "", end="\n" if faults else "", file=sys.stderr)
    if len(faults) > SHOWN:
        print(f"... and {len(faults) - SHOWN} more, all in {out / LOG}", file=sys.stderr)
    if any(tally.labelled for tally in tallies.values()):
        words = command_words({"data": "hn", "data.source.root": str(out)} | bins)
        print(f"look at it:  hardpix data check {words}")
        if "train" not in tallies or tallies["train"].labelled:
            print(f"train on it: hardpix train {words}")
    if faults:
        print(
            f"{len(faults)} frames could not be used; repair their files and rerun the same command: it makes what is "
            "missing",
            file=sys.stderr,
        )
    return 1 if faults else 0


def _table(tallies: Mapping[str, Tally]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("labels of height and normal")
    for name in tallies:
        table.add_column(escape(name), justify="right")
    reasons = sorted({reason for tally in tallies.values() for reason in tally.rejected})
    rows: dict[str, list[str]] = {
        "frames": [f"{tally.frames:,}" for tally in tallies.values()],
        "labelled": [f"{tally.labelled:,}" for tally in tallies.values()],
        **{f"rejected: {r}": [_share(t.rejected[r], t.frames) for t in tallies.values()] for r in reasons},
        "failed": [f"{tally.failed:,}" for tally in tallies.values()],
        "made now": [f"{tally.made:,}" for tally in tallies.values()],
        "frames/s": [f"{t.made / t.seconds:.1f}" if t.seconds else "-" for t in tallies.values()],
    }
    for title, values in rows.items():
        table.add_row(escape(title), *values)
    return table


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / max(total, 1):.1%})"
