"""``hardpix data``: check, show, pack and stitch data sets; ``prepare`` and ``hn-labels`` lie next to it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardpix import record
from hardpix.cli import prepare
from hardpix.config.command_line import Parser, command_words
from hardpix.types import ConfigError, DataError

if TYPE_CHECKING:
    from hardpix.data import DataModule
    from hardpix.data.check import Checkup
    from hardpix.draw.pictures import Frame
    from hardpix.types import Batch


# ``hardpix data check``: one look over a data set before it is trained on.


def add_check(commands: Any) -> None:
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


def run_check(given: argparse.Namespace) -> int:
    if not any(o.startswith("data=") for o in given.overrides):
        raise ConfigError("hardpix data check: name the data set, for example data=nyuv2")
    for option, value in (("--limit", given.limit), ("--workers", given.workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} {value}: must be at least 1")
    from rich.console import Console

    from hardpix.config.compose import compose, validate

    cfg = compose(given.overrides)
    validate(cfg)

    from hardpix.data.check import check
    from hardpix.data.check_report import show
    from hardpix.data.prepare.recipe import progress
    from hardpix.data.statistics import write_json
    from hardpix.train.build import make
    from hardpix.train.results import make_sheet_folder

    source = make(cfg.data.source)
    out = given.out or Path("check") / source.info.name
    make_sheet_folder(out)
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


# ``hardpix data show``: a picture of frames exactly as training sees them.


def add_show(commands: Any) -> None:
    parser = commands.add_parser(
        "show",
        help="a picture of augmented samples, exactly as training sees them",
        description="Draw the first frames of a training epoch after every transform, or of another split as "
        "evaluation sees them: image, label over the image, depth and hardness. Checks mark padding.",
    )
    parser.add_argument("overrides", nargs="+", help="the data set, such as data=nyuv2 data.source.root=PATH")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("--split", default="train", choices=("train", "val", "test"))
    parser.add_argument("--count", type=int, default=12, metavar="N", help="frames (default: 12)")
    parser.add_argument("--seed", type=int, help="of the augmentation and the order (default: the run's)")
    parser.add_argument(
        "--epoch", type=int, default=0, help="each epoch draws other augmentations (default: 0)"
    )


def run_show(given: argparse.Namespace) -> int:
    if not any(o.startswith("data=") for o in given.overrides):
        raise ConfigError("hardpix data show: name the data set, for example data=nyuv2")
    if given.count < 1 or given.epoch < 0:
        raise ConfigError("hardpix data show: --count must be at least 1 and --epoch at least 0")
    if given.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {given.out}: must be a file name that ends in .png")
    from hardpix.config.compose import compose, validate

    seed = [] if given.seed is None else [f"data.seed={given.seed}"]
    cfg = compose([*given.overrides, *seed])
    validate(cfg)

    from hardpix.draw.pictures import contact_sheet
    from hardpix.train.build import make
    from hardpix.train.results import frame_of_batch, make_sheet_folder, save_picture

    data: DataModule = make(cfg.data)
    data.use(SHOWN & data.info.provides)
    make_sheet_folder(given.out.parent)
    frames = [
        frame_of_batch(batch, 0, data.info) for batch in _batches(data, given.split, given.epoch, given.count)
    ]
    way = (
        f"as trained on, epoch {given.epoch}, seed {data.seed}" if given.split == "train" else "as evaluated"
    )
    title = f"{data.info.name} {given.split}: {len(frames)} frames {way}"
    save_picture(contact_sheet({title: frames}, data.info), given.out)
    print(f"written to {given.out}")
    return 0


# ``hardpix data pack``: decode and resize a data set once, for fast loading.


def add_pack(commands: Any) -> None:
    parser = commands.add_parser(
        "pack",
        help="decode and resize once, into files that are mapped into memory",
        description="Write the packed form of a dataset; train on it with data=packed data.source.root=DIR.",
    )
    parser.add_argument("overrides", nargs="+", help="the dataset, such as data=nyuv2 data.source.root=PATH")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="default: sizes as they are")
    parser.add_argument("--splits", nargs="+", help="default: all splits of the dataset")


def run_pack(given: argparse.Namespace) -> int:
    if not any(o.startswith("data=") for o in given.overrides):
        raise ConfigError("hardpix data pack: name the dataset, for example data=nyuv2")
    record.check_output("--out", given.out, folder=True)
    from rich.progress import Progress, TaskID

    from hardpix.config.compose import compose, validate

    cfg = compose(given.overrides)
    validate(cfg)

    from hardpix.data.packed import pack
    from hardpix.train.build import make

    source = make(cfg.data.source)
    size = tuple(given.size) if given.size else None
    splits = list(dict.fromkeys(given.splits or source.splits))
    with Progress() as bar:
        tasks: dict[str, TaskID] = {}

        def advance(split: str, done: int, total: int) -> None:
            """A split gets its bar with its first frame: what cannot be opened leaves only its error."""
            if split not in tasks:
                tasks[split] = bar.add_task(split)
            bar.update(tasks[split], completed=done, total=total)

        pack(source, given.out, size=size, splits=splits, progress=advance)
    use = command_words({"data": "packed", "data.source.root": str(given.out)})
    print(f"packed to {given.out}; train with {use}")
    return 0


# ``hardpix data stitch``: put label patches back together.


def add_stitch(commands: Any) -> None:
    parser = commands.add_parser(
        "stitch",
        help="put predicted label patches back together to full-size label images",
        description="Put label patches, whose names end in _TOP_BOTTOM_LEFT_RIGHT, back together: OUT/FRAME.png. "
        "Where patches overlap, a pixel takes the label of the patch in which it lies deepest.",
    )
    parser.add_argument("patches", type=Path, metavar="PATCHES", help="folder of label PNGs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the result")
    parser.add_argument(
        "--sizes",
        type=Path,
        metavar="FILE",
        help="the sizes.csv that prepare wrote next to the patches: takes the padding of small frames off and "
        "sees patches missing at the right and lower edge",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        default=384,
        metavar="N",
        help="pixels that neighbouring patches share (default: 384)",
    )


def run_stitch(given: argparse.Namespace) -> int:
    from hardpix.data.patches import find_patches, read_sizes, stitch_files
    from hardpix.predict import check_folder

    check_folder(given.out)
    sizes = None if given.sizes is None else read_sizes(given.sizes)
    faults = stitch_files(find_patches(given.patches), given.out, overlap=given.overlap, sizes=sizes)
    print(f"full-size labels are in {given.out}")
    for fault in faults:
        print(f"hardpix: {fault}", file=sys.stderr)
    return 1 if faults else 0


ROLES = ("train", "val", "test")


def _cores() -> int:
    """Those this process may use, where the system says so (a cluster's job may have few of many)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write_sheet(checkup: Checkup, path: Path) -> list[Path]:
    """The contact sheet; none where no frame is sound."""
    from hardpix.draw.pictures import contact_sheet
    from hardpix.train.results import save_picture

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


SHOWN = frozenset({"image", "label", "depth", "depth_valid", "hardness"})


def _batches(data: DataModule, split: str, epoch: int, count: int) -> Iterator[Batch]:
    """Training frames in the epoch's order; those of other splits evenly spaced."""
    if split == "train":
        yield from data.training_frames(epoch, count)
        return
    total = len(data.evaluation_dataset(split))
    for place in range(min(count, total)):
        yield data.evaluation_batch(split, place * total // min(count, total))


def _frames(checkup: Checkup, split: str) -> list[Frame]:
    from hardpix.train.results import frame_of_sample

    plan = next(plan for plan in checkup.plans if plan.split == split)
    frames = []
    for index in checkup.spread(split, SHEET_FRAMES):
        try:
            frames.append(frame_of_sample(plan.load(index)))
        except DataError:  # it was sound when it was looked at
            continue
    return frames


SHEET_FRAMES = 6  # of each split on the contact sheet


# Adds its parser to the commands; runs it and returns the exit status. Only the latter imports torch.
COMMANDS = {
    "prepare": (prepare.add_prepare, prepare.run_prepare),
    "check": (add_check, run_check),
    "show": (add_show, run_show),
    "pack": (add_pack, run_pack),
    "stitch": (add_stitch, run_stitch),
    "hn-labels": (prepare.add_hn_labels, prepare.run_hn_labels),
}


def main(arguments: list[str]) -> int:
    parser = Parser("hardpix data", description="Prepare, look at and pack data sets.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for add_parser, _ in COMMANDS.values():
        add_parser(commands)
    if not arguments:
        parser.print_help()
        return 0
    if arguments[0] not in COMMANDS:
        parser.parse_args(arguments)  # prints the help, or which commands there are
        return 2
    # Overrides may stand between the options, which a parser of sub-commands does not allow.
    given = commands.choices[arguments[0]].parse_intermixed_args(arguments[1:])
    return COMMANDS[arguments[0]][1](given)
