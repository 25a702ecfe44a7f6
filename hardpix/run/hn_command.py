"""``hardpix data hn-labels``: labels of height and normal from depth, as a data set to pre-train on."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardpix.run import writable
from hardpix.run.overrides import command_words
from hardpix.types import ConfigError, DataError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from hardpix.data.base import Source
    from hardpix.data.hn_frame import HNSettings
    from hardpix.data.hn_labels import Tally

BINS = {10: 0.25, 5: 0.5}  # number of height bins -> metres each, the last one without end
RADIUS, GRAVITY_RADIUS = 3, 10  # pixels; Gupta et al. 2014
SHOWN = 20  # faults that are printed


def add_parser(commands: Any) -> None:
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
        help="where each height bin begins, in metres from 0",
    )
    parser.add_argument(
        "--normals",
        type=int,
        choices=(1, 2),
        default=2,
        help="2: tell horizontal from vertical (default); 1: do not",
    )
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


def run(given: argparse.Namespace) -> int:
    if not any(o.startswith("data=") for o in given.overrides):
        raise ConfigError("hardpix data hn-labels: name the data set, for example data=nyuv2")
    if given.workers is not None and given.workers < 1:
        raise ConfigError(f"--workers {given.workers}: must be at least 1")
    writable.check("--out", given.out, folder=True)
    from hardpix.run.config import validate

    cfg = _composed(given.overrides)
    validate(cfg)

    from hardpix import record
    from hardpix.data.hn_labels import Choice, make_labels
    from hardpix.run.build import make
    from hardpix.run.progress import progress
    from hardpix.run.rundir import plain

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
        raise DataError(f"{given.out}: {error}; when that is mended, the same command goes on") from error
    except KeyboardInterrupt:
        print("hardpix: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    bins = {"data.source.heights": len(settings.height_edges), "data.source.normals": settings.normals}
    usual = {"data.source.heights": 10, "data.source.normals": 2}
    return _summary(given.out, tallies, faults, {k: str(v) for k, v in bins.items() if v != usual[k]})


def _composed(overrides: list[str]) -> DictConfig:
    """Labels are not read, so data of one's own need no classes here."""
    from omegaconf import OmegaConf

    from hardpix.run.config import compose

    cfg = compose(overrides)
    if OmegaConf.is_missing(cfg.data.source, "classes"):
        return compose([*overrides, "data.source.classes=[any]"])
    return cfg


def _settings(given: argparse.Namespace) -> HNSettings:
    from hardpix.data.hn_frame import HNSettings

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


def _summary(out: Path, tallies: Mapping[str, Tally], faults: list[str], bins: dict[str, str]) -> int:
    from rich.console import Console

    from hardpix.data.hn_files import LOG

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
            f"{len(faults)} frames could not be used; mend their files and give the same command: it makes what is "
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


def _cores() -> int:
    """Those this process may use, where the system says so (a cluster's job may have few of many)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
