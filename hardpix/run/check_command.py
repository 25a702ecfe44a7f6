"""``hardpix data check``: one look over a data set before it is trained on."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardpix.types import ConfigError, DataError

if TYPE_CHECKING:
    from hardpix.data.doctor import Checkup
    from hardpix.report.contact import Frame

SHEET_FRAMES = 6  # of each split on the contact sheet
ROLES = ("train", "val", "test")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="look over a data set: files, labels, depth, copies",
        description="Look at every frame of a data set once: missing and broken files, sizes, label values, depth, "
        "cameras, frames that are in two splits. Says what to do; writes check.json and contact.png. "
        "The exit status is 1 where there are errors.",
    )
    parser.add_argument("overrides", nargs="+", help="the data set, such as data=nyuv2 data.source.root=PATH")
    parser.add_argument("--splits", nargs="+", help="default: those of training, validation and test")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: check/NAME")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only so many frames of each split, evenly spaced"
    )


def run(given: argparse.Namespace) -> int:
    if not any(o.startswith("data=") for o in given.overrides):
        raise ConfigError("hardpix data check: name the data set, for example data=nyuv2")
    for option, value in (("--limit", given.limit), ("--workers", given.workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} {value}: must be at least 1")
    from rich.console import Console

    from hardpix.run.config import compose, validate

    cfg = compose(given.overrides)
    validate(cfg)

    from hardpix.data.doctor import check
    from hardpix.data.statistics import write_json
    from hardpix.run.build import make
    from hardpix.run.check_tables import show
    from hardpix.run.progress import progress
    from hardpix.run.sheets import make_folder

    source = make(cfg.data.source)
    out = given.out or Path("check") / source.info.name
    make_folder(out)
    asked = given.splits or [cfg.data[f"{role}_split"] for role in ROLES]
    splits = list(dict.fromkeys(part for split in asked for part in source.parts(split)))
    workers = given.workers or _cores()
    with progress() as bar:
        checkup = check(
            source,
            splits,
            train=source.parts(cfg.data.train_split),
            limit=given.limit,
            workers=workers,
            progress=bar,
        )
    show(checkup, Console())
    write_json(out / "check.json", checkup.to_json())
    written = [out / "check.json", *_write_sheet(checkup, out / "contact.png")]
    print(f"written to {' and '.join(map(str, written))}")
    return 1 if checkup.errors else 0


def _cores() -> int:
    """Those this process may use, where the system says so (a cluster's job may have few of many)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write_sheet(checkup: Checkup, path: Path) -> list[Path]:
    """The contact sheet; none where no frame is sound."""
    from hardpix.report.contact import contact_sheet
    from hardpix.run.sheets import save_picture

    sections = {}
    for sums in checkup.sums:
        frames = _frames(checkup, sums.split)
        if frames:
            copies = "".join(f" = {plan.split}" for plan in checkup.plans if plan.same_as == sums.split)
            sections[f"{sums.split}{copies}: {len(frames)} of {sums.frames} frames"] = frames
    if not sections:
        path.unlink(missing_ok=True)
        return []
    save_picture(contact_sheet(sections, checkup.info), path)
    return [path]


def _frames(checkup: Checkup, split: str) -> list[Frame]:
    from hardpix.run.sheets import frame_of_sample

    plan = next(plan for plan in checkup.plans if plan.split == split)
    frames = []
    for index in checkup.spread(split, SHEET_FRAMES):
        try:
            frames.append(frame_of_sample(plan.load(index)))
        except DataError:  # it was sound when it was looked at
            continue
    return frames
