"""``hardpix data show``: a picture of frames exactly as training sees them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardpix.types import ConfigError

if TYPE_CHECKING:
    from hardpix.data import DataModule
    from hardpix.types import Batch

SHOWN = frozenset({"image", "label", "depth", "depth_valid", "hardness"})


def add_parser(commands: Any) -> None:
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
    parser.add_argument("--epoch", type=int, default=0, help="each epoch draws anew (default: 0)")


def run(given: argparse.Namespace) -> int:
    if not any(o.startswith("data=") for o in given.overrides):
        raise ConfigError("hardpix data show: name the data set, for example data=nyuv2")
    if given.count < 1 or given.epoch < 0:
        raise ConfigError("hardpix data show: --count must be at least 1 and --epoch at least 0")
    if given.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {given.out}: must be a file name that ends in .png")
    from hardpix.run.config import compose, validate

    seed = [] if given.seed is None else [f"data.seed={given.seed}"]
    cfg = compose([*given.overrides, *seed])
    validate(cfg)

    from hardpix.report.contact import contact_sheet
    from hardpix.run.build import make
    from hardpix.run.sheets import frame_of_batch, make_folder, save_picture

    data: DataModule = make(cfg.data)
    data.use(SHOWN & data.info.provides)
    make_folder(given.out.parent)
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


def _batches(data: DataModule, split: str, epoch: int, count: int) -> Iterator[Batch]:
    """Training frames in the epoch's order; those of other splits evenly spaced."""
    if split == "train":
        yield from data.training_frames(epoch, count)
        return
    total = len(data.evaluation_dataset(split))
    for place in range(min(count, total)):
        yield data.evaluation_batch(split, place * total // min(count, total))
